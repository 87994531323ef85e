"""The tars that a source names: a file, a folder of them, or a pattern, on the disk or at a URL."""

import fnmatch
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ..errors import CacheError
from ..location import Location, Url, entries, to_location
from .image_files import CONCURRENT_REQUESTS

SUFFIX = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")
_PATTERN = re.compile(r"[*?\[{]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")


class TarShard(NamedTuple):
    """A tar of a WebDataset.

    Attributes:
        name: its path below the image root.
        location: of the tar.
        state: what changes when the tar does: its size and, in a store, a tag of its content.
        sidecar: the table beside it; None if there is none.
        sidecar_state: the state of the table.
    """

    name: str
    location: Location
    state: str
    sidecar: Location | None
    sidecar_state: str


def names_tars(name: str) -> bool:
    """Whether a path is that of tars. A URL is judged by its name, or listed where that has no suffix."""
    location = to_location(name)
    if str(location).endswith((SUFFIX, *_COMPRESSED)):
        return True
    if isinstance(location, Url):
        return "." not in location.name and any(url.endswith(SUFFIX) for url in _states(location))
    return location.is_dir() and any(location.glob(f"*{SUFFIX}"))


def root_of(name: str) -> str:
    """The folder of a source: itself, or the one that holds the file or the pattern.

    >>> root_of("s3://bucket/cc12m/{00000..01242}.tar"), root_of("s3://bucket/cc12m")
    ('s3://bucket/cc12m', 's3://bucket/cc12m')
    """
    location = to_location(name)
    if isinstance(location, Path) and location.exists():
        return str(location if location.is_dir() else location.parent)
    text = str(location)
    pattern = _PATTERN.search(text)
    if pattern is None and isinstance(location, Url) and "." not in location.name:
        return text
    return text[: pattern.start() if pattern else None].rpartition("/")[0] or "."


def find_shards(name: str, root: Location) -> list[TarShard]:
    """The tars that a path names, in the order of their names.

    Args:
        name: a tar, a folder, or a pattern such as `shards/{00000..00099}.tar` or `shards/*.tar`.
        root: the image root; they lie below it.

    Raises:
        CacheError: one is absent, compressed, or outside the root.
    """
    location = to_location(name)
    if str(name).endswith(_COMPRESSED):
        raise CacheError(
            f"{name}: images are read from their place in a tar, so it must not be compressed: unpack the tar "
            "itself (`gunzip`, `unzstd`, …); images do not compress anyway"
        )
    if isinstance(location, Url) and isinstance(root, Url):
        shards = _remote(location, root)
    elif isinstance(location, Path) and isinstance(root, Path):
        shards = _local(location, root)
    else:
        raise CacheError(f"{name} does not lie below {root}: pass --image-root, a folder or URL that holds the tars")
    if not shards:
        raise CacheError(f"{name}: no {SUFFIX} there: check the path")
    return shards


def _local(path: Path, root: Path) -> list[TarShard]:
    if path.is_dir():
        paths = sorted(path.glob(f"*{SUFFIX}"))
    elif path.exists():
        paths = [path]
    else:
        paths = [match for name in expand(str(path)) for match in _glob(name)]
    shards = []
    for tar in paths:
        if not tar.is_file():
            raise CacheError(f"{tar}: no such file: fetch it again, or leave it out of the pattern")
        beside = tar.with_suffix(".parquet")
        sidecar = beside if beside.is_file() else None
        for file in filter(None, (tar, sidecar)):
            _require_below(root, file)
        name = tar.absolute().relative_to(root.absolute()).as_posix()
        shards.append(TarShard(name, tar, str(tar.stat().st_size), sidecar, ""))
    return shards


def _require_below(root: Path, file: Path) -> None:
    if not file.resolve().is_relative_to(root.resolve()) or not file.absolute().is_relative_to(root.absolute()):
        raise CacheError(f"{file} leads out of the image root {root}: pass an --image-root that holds {file.resolve()}")


def _remote(url: Url, root: Url) -> list[TarShard]:
    if not f"{url}/".startswith(f"{root}/"):
        raise CacheError(f"{url} does not lie below {root}: pass --image-root, a URL that holds the tars")
    if not url.endswith(SUFFIX):
        tars = [tar for tar in _states(url) if tar.endswith(SUFFIX)]
    else:
        tars = [tar for name in expand(url) for tar in (_matching(name) if _PATTERN.search(name) else [name])]
    sidecars = {tar: f"{tar.removesuffix(SUFFIX)}.parquet" for tar in tars}
    states = _states_of([*tars, *sidecars.values()], is_web=url.is_web)
    absent = [tar for tar in tars if tar not in states]
    if absent:
        raise CacheError(f"{absent[0]}: no such object: check the URL, or upload it again")
    return [
        TarShard(
            tar.removeprefix(f"{root}/"),
            Url(tar),
            states[tar],
            Url(sidecar) if sidecar in states else None,
            states.get(sidecar, ""),
        )
        for tar, sidecar in sidecars.items()
    ]


def _glob(name: str) -> list[Path]:
    """The files that match a pattern; a name without `*` or `?` is itself."""
    wild = _PATTERN.search(name)
    if wild is None:
        return [Path(name)]
    start = name.rfind("/", 0, wild.start()) + 1
    return sorted(Path(name[:start] or ".").glob(name[start:]))


def expand(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for.

    >>> expand("{a,b}/{08..10}.tar")
    ['a/08.tar', 'a/09.tar', 'a/10.tar', 'b/08.tar', 'b/09.tar', 'b/10.tar']
    """
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    if numbers := _NUMBERS.fullmatch(braces[1]):
        first, last = numbers.groups()
        choices = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    else:
        choices = braces[1].split(",")
    return [pattern[: braces.start()] + choice + rest for choice in choices for rest in expand(pattern[braces.end() :])]


def _matching(pattern: str) -> list[str]:
    """The URLs that match a pattern in their last part."""
    folder, _, last = pattern.rpartition("/")
    if _PATTERN.search(folder):
        raise CacheError(f"{pattern}: at a URL only the last part may have `*` or `?`: name the folders in braces")
    return [url for url in _states(Url(folder)) if fnmatch.fnmatchcase(url.rpartition("/")[2], last)]


def _states_of(urls: Sequence[str], *, is_web: bool) -> dict[str, str]:
    """The state of each file that exists, by URL."""
    if not is_web:
        folders = dict.fromkeys(url.rpartition("/")[0] for url in urls)
        return {url: state for folder in folders for url, state in _states(Url(folder)).items()}
    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as threads:  # web servers do not list
        states = threads.map(Url.state, map(Url, urls))
        return {url: state for url, state in zip(urls, states, strict=True) if state is not None}


def _states(folder: Url) -> dict[str, str]:
    """The state of each file in a folder, by URL, in the order of their names; empty if there is no such folder."""
    return {f"{folder}/{entry.name}": entry.state for entry in entries(folder) if entry.is_file}
