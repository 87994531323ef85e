"""The tars that a source names: a file, a folder of them, or a pattern, on the disk or at a URL."""

import fnmatch
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ..errors import CacheError
from ..location import Location, Url, to_location
from ..storage.urls import AT_ONCE, HTTP, state_of
from .listing import entries

SUFFIX = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")
_PATTERN = re.compile(r"[*?\[{]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")


class Shard(NamedTuple):
    """A tar.

    Attributes:
        name: its path below the image root.
        place: where it is.
        state: what the store tells of it that changes when it does, such as its size.
        sidecar: the table beside it, if any.
        sidecar_state: likewise of that.
    """

    name: str
    place: Location
    state: str
    sidecar: Location | None
    sidecar_state: str


def names_tars(named: str) -> bool:
    """Whether a path is that of tars; a URL by its name alone, unless it has none of a file."""
    location = to_location(named)
    if str(location).endswith((SUFFIX, *_COMPRESSED)):
        return True
    if isinstance(location, Url):
        return "." not in location.rpartition("/")[2] and any(name.endswith(SUFFIX) for name in _listed(location))
    return location.is_dir() and any(location.glob(f"*{SUFFIX}"))


def root_of(named: str) -> str:
    """The folder of a source: itself, or what the file or the pattern lies in.

    >>> root_of("s3://bucket/cc12m/{00000..01242}.tar"), root_of("s3://bucket/cc12m")
    ('s3://bucket/cc12m', 's3://bucket/cc12m')
    """
    location = to_location(named)
    if isinstance(location, Path) and location.exists():
        return str(location if location.is_dir() else location.parent)
    text = str(location)
    pattern = _PATTERN.search(text)
    if pattern is None and isinstance(location, Url) and "." not in text.rpartition("/")[2]:
        return text
    return text[: pattern.start() if pattern else None].rpartition("/")[0] or "."


def find_shards(named: str, root: Location) -> list[Shard]:
    """The tars that a path names, in the order of their names.

    Args:
        named: a tar, a folder, or a pattern such as `shards/{00000..00099}.tar` or `shards/*.tar`.
        root: the image root; they lie below it.

    Raises:
        CacheError: one is not there, compressed, or outside the root.
    """
    location = to_location(named)
    if isinstance(location, Url) is not isinstance(root, Url):
        raise CacheError(f"{named} does not lie below {root}: pass --image-root, a folder or URL that holds the tars")
    if str(named).endswith(_COMPRESSED):
        raise CacheError(
            f"{named}: images are read from their place in a tar, so it must not be compressed: unpack the tar "
            "itself (`gunzip`, `unzstd`, …); images do not compress anyway"
        )
    found = _remote(location, root) if isinstance(location, Url) else _local(location, Path(root))  # type: ignore[arg-type]
    if not found:
        raise CacheError(f"{named}: no {SUFFIX} there: check the path")
    return found


def _local(path: Path, root: Path) -> list[Shard]:
    if path.is_dir():
        paths = sorted(path.glob(f"*{SUFFIX}"))
    elif path.exists():
        paths = [path]
    else:
        paths = [found for name in expand(str(path)) for found in _globbed(name)]
    shards = []
    for tar in paths:
        if not tar.is_file():
            raise CacheError(f"{tar}: no such file: fetch it again, or leave it out of the pattern")
        beside = tar.with_suffix(".parquet")
        sidecar = beside if beside.is_file() else None
        for file in filter(None, (tar, sidecar)):
            _require_below(root, file)
        name = tar.absolute().relative_to(root.absolute()).as_posix()
        shards.append(Shard(name, tar, str(tar.stat().st_size), sidecar, ""))
    return shards


def _require_below(root: Path, file: Path) -> None:
    if not file.resolve().is_relative_to(root.resolve()) or not file.absolute().is_relative_to(root.absolute()):
        raise CacheError(f"{file} leads out of the image root {root}: pass an --image-root that holds {file.resolve()}")


def _remote(url: Url, root: Url) -> list[Shard]:
    if not f"{url}/".startswith(f"{root}/"):
        raise CacheError(f"{url} does not lie below {root}: pass --image-root, a URL that holds the tars")
    if not url.endswith(SUFFIX):
        names = [name for name in _listed(url) if name.endswith(SUFFIX)]
    else:
        names = [name for one in expand(url) for name in (_matching(one) if _PATTERN.search(one) else [one])]
    sidecars = {name: f"{name.removesuffix(SUFFIX)}.parquet" for name in names}
    known = _told_of([*names, *sidecars.values()], Url(url))
    absent = [name for name in names if name not in known]
    if absent:
        raise CacheError(f"{absent[0]}: no such object: check the URL, or upload it again")
    return [
        Shard(
            name.removeprefix(f"{root}/"),
            Url(name),
            known[name],
            Url(sidecar) if sidecar in known else None,
            known.get(sidecar, ""),
        )
        for name, sidecar in sidecars.items()
    ]


def _globbed(name: str) -> list[Path]:
    """The files that match a pattern; a name without `*` or `?` is itself."""
    wild = _PATTERN.search(name)
    if wild is None:
        return [Path(name)]
    start = name.rfind("/", 0, wild.start()) + 1
    return sorted(Path(name[:start] or ".").glob(name[start:]))


def expand(pattern: str) -> list[str]:
    """The names that braces stand for.

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
    return [name for name in _listed(Url(folder)) if fnmatch.fnmatchcase(name.rpartition("/")[2], last)]


def _told_of(names: Sequence[str], source: Url) -> dict[str, str]:
    """What a store tells of those of the files that are there, by URL."""
    if source.scheme not in HTTP:
        found: dict[str, str] = {}
        for folder in dict.fromkeys(name.rpartition("/")[0] for name in names):
            found |= _listed(Url(folder))
        return found
    with ThreadPoolExecutor(AT_ONCE) as threads:  # web servers do not list
        states = threads.map(state_of, map(Url, names))
        return {name: state for name, state in zip(names, states, strict=True) if state is not None}


def _listed(folder: Url) -> dict[str, str]:
    """What a store tells of each file in a folder, by URL, in the order of their names; nothing if there is none."""
    return {f"{folder}/{entry.name}": entry.state for entry in entries(folder) if entry.is_file}
