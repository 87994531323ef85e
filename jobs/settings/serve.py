"""Settings of `clipglot serve`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...cache.location import Url
from ...distill.settings import require


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """`clipglot serve`: a page and a JSON API that search caches."""

    merged: Annotated[Path, "folder of a merged CLIP, or of its export in ONNX"]
    caches: Annotated[tuple[Path | Url, ...], "caches that its image tower made"]
    against: Annotated[
        tuple[Path, ...],
        "folder of another merged CLIP with the same image tower, shown side by side; repeat for several",
    ] = ()
    index: Annotated[tuple[Path, ...], "index of one of the caches, from `clipglot index`; repeat for several"] = ()
    onnx: Annotated[bool, "run without torch: MERGED is an ONNX export, or has one in its folder onnx"] = False
    host: Annotated[str, "address to listen on; any but this machine's own requires a token"] = "127.0.0.1"
    port: Annotated[int, "port to listen on; 0 takes any free one"] = 8000
    token: Annotated[
        str | None, "token that clients must send (default: none on this machine, a random one with another --host)"
    ] = None
    allow_host: Annotated[tuple[str, ...], "another name of this server, e.g. behind a proxy; repeat for several"] = ()
    image_root: Annotated[Path | Url | None, "folder or URL where the images are now, if they moved since caching"] = (
        None
    )
    fold_above: Annotated[float, "cosine from which two images are near-duplicates"] = 0.98
    thumbnail_folder: Annotated[Path | None, "folder for thumbnails (default: ~/.cache/clipglot/thumbnails)"] = None
    thumbnail_megabytes: Annotated[int, "size limit of that folder"] = 512

    def __post_init__(self) -> None:
        require(bool(self.caches), "no cache: pass at least one")
        for cache in self.caches:
            require(self.caches.count(cache) == 1, f"{cache} is given twice: each of its images would be shown twice")
        require(0 <= self.port < 65_536, f"--port {self.port}: must lie between 0 and 65535")
        require(0 < self.fold_above <= 1, f"--fold-above {self.fold_above}: must lie above 0 and be at most 1")
        require(self.thumbnail_megabytes >= 1, f"--thumbnail-megabytes {self.thumbnail_megabytes}: must be at least 1")
        require(self.token is None or len(self.token) >= 8, "--token: must have at least 8 characters")
        is_plain = self.token is None or re.fullmatch(r"[A-Za-z0-9._-]+", self.token)
        require(bool(is_plain), "--token: may have letters of ASCII, digits, '-', '_' and '.'")
        for name in self.allow_host:
            is_name = re.fullmatch(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9a-fA-F:]+", name)
            require(bool(is_name), f"--allow-host {name}: pass a host name or address, without http:// and port")
