"""Settings of `clipglot search`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ...cache.location import Location
from ...distill.settings import require, require_at_least_one


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """`clipglot search`: the images of a cache that fit queries best."""

    merged: Annotated[Path, "folder of a merged CLIP"]
    cache: Annotated[Location, "cache of images, made by the same image tower"]
    query: Annotated[tuple[str, ...], "texts to search for"] = ()
    image: Annotated[tuple[Path, ...], "search by this image; repeat for several"] = ()
    queries: Annotated[Path | None, "text file of queries, one per line"] = None
    index: Annotated[Path | None, "index of the cache, from `clipglot index` (default: all embeddings)"] = None
    top: Annotated[int, "number of best images to show for each query"] = 10
    language: Annotated[str | None, "search only images with a caption in the language of this tag"] = None
    caption: Annotated[str | None, "search only images with a caption that contains this text, ignoring case"] = None

    def __post_init__(self) -> None:
        require(
            bool(self.query or self.image or self.queries),
            "nothing to search for: pass a query, --queries FILE or --image FILE",
        )
        require_at_least_one(self, "top")
        for name in ("language", "caption"):
            value = getattr(self, name)
            require(value is None or bool(value.strip()), f"--{name} is empty: leave it out, or write what to look for")
