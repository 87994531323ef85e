"""Which kind of source a path is, by its shape; and the readers of the pictures that a cache was planned from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import CacheError
from .format import SourceInfo, Status
from .location import to_location
from .manifest import SUFFIXES, Table
from .paths import PathReader
from .pictures import require_image_root
from .source import Reader, Source
from .store import Cache

KINDS: dict[str, type[Source]] = {source.kind: source for source in (Table,)}


def open_source(info: SourceInfo) -> Source:
    """The source at a path.

    Args:
        info: what was asked for; kind and sha256 are found here, and an empty root or fields are the kind's own.

    Raises:
        CacheError: nothing there, or of no known kind.
    """
    kind = KINDS[_recognised(info.path)]
    root = info.image_root or str(Path(info.path).parent)
    require_image_root(Path(root))
    return kind(
        replace(
            info,
            kind=kind.kind,
            image_root=root,
            image_field=info.image_field or kind.image_field,
            text_fields=info.text_fields or list(kind.text_fields),
        )
    )


def _recognised(named: str) -> str:
    path = Path(named)
    if not path.exists():
        raise CacheError(f"{path}: no such file")
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return "table"
    raise CacheError(f"{path}: no known kind of source; known are {', '.join(SUFFIXES)}")


class RowsReader(NamedTuple):
    """Reads pictures of a cache by their rows, each from the source that it came from."""

    readers: tuple[tuple[int, Reader], ...]  # with the first row of each, ascending

    def read(self, start: int, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of the pictures from row `start` on, or why there are none."""
        ends = [min(max(first - start, 0), len(keys)) for first, _ in self.readers[1:]]
        for (_, reader), a, b in zip(self.readers, [0, *ends], [*ends, len(keys)], strict=True):
            if a < b:
                yield from reader.read(keys[a:b], None if locators is None else locators[a:b])


def reader_of(cache: Cache, kinds: Mapping[str, type[Source]] = KINDS) -> RowsReader:
    """What reads the pictures that a cache was planned from.

    Args:
        cache: planned.
        kinds: the sources that are known, by their names.

    Raises:
        CacheError: an image root that is not there, or a source that is not known.
    """
    files = cache.files()
    readers: list[tuple[int, Reader]] = []
    for info in cache.info.sources:
        root = to_location(info.image_root)
        located = cache.locators(info.first_row, info.first_row + 1)
        if located is None or located[0, 0] < 0:
            readers.append((info.first_row, PathReader.below(root)))
        elif info.kind in kinds:
            readers.append((info.first_row, kinds[info.kind].reader(root, files, info)))
        else:
            raise CacheError(f"{cache.path}: its pictures come from a source {info.kind!r} that is not known here")
    return RowsReader(tuple(readers))
