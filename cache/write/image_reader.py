"""Reads the images of a cache's rows, each from the source that it came from."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import SourceInfo, Status
from ..location import to_location
from ..read.cache import Cache
from ..sources.image_files import PathReader
from ..sources.kinds import KINDS
from ..sources.source import Reader, Source


class ImageReader(NamedTuple):
    """Reads images of a cache by their rows, each from the source that it came from."""

    readers: tuple[tuple[int, Reader], ...]  # with the first row of each, ascending

    def read(self, start: int, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of the images from row `start` on, or why there are none."""
        ends = [min(max(first - start, 0), len(keys)) for first, _ in self.readers[1:]]
        for (_, reader), a, b in zip(self.readers, [0, *ends], [*ends, len(keys)], strict=True):
            if a < b:
                are_files = locators is None or locators[a, 0] < 0  # also beside images inside larger files
                yield from reader.read(keys[a:b], None if locators is None or are_files else locators[a:b])


def reader_of(
    cache: Cache,
    kinds: Mapping[str, type[Source]] = KINDS,
    *,
    sources: Sequence[SourceInfo] | None = None,
    rows: Collection[range] | None = None,
) -> ImageReader:
    """What reads the images that a cache was planned from.

    Args:
        cache: planned.
        kinds: the sources that are known, by their names.
        sources: of the cache, as they lie for this process; by default as the cache has them.
        rows: that are to be read; by default all. A source that has none of them need not be there.

    Raises:
        CacheError: an image root that is not there, or a source that is not known.
    """
    files, sources = cache.files(), cache.info.sources if sources is None else sources
    asked = [range(len(cache))] if rows is None else rows
    readers: list[tuple[int, Reader]] = []
    for info, end in zip(sources, [*(s.first_row for s in cache.info.appended), len(cache)], strict=True):
        own = range(info.first_row, end)
        if not own:
            continue  # all its images were there already
        try:
            readers.append((info.first_row, _reader_of(cache, info, files, kinds)))
        except CacheError as error:
            if any(max(own.start, some.start) < min(own.stop, some.stop) for some in asked):
                raise _named(info, error, alone=len(sources) == 1) from error
            readers.append((info.first_row, _Absent()))
    return ImageReader(tuple(readers))


def _reader_of(cache: Cache, info: SourceInfo, files: Sequence[str], kinds: Mapping[str, type[Source]]) -> Reader:
    root = to_location(info.image_root)
    located = cache.locators(info.first_row, info.first_row + 1)
    if located is None or located[0, 0] < 0:
        return PathReader.below(root)
    if info.kind in kinds:
        return kinds[info.kind].reader(root, files, info)
    raise CacheError(f"{cache.path}: its images come from a source {info.kind!r} that is not known here")


def _named(info: SourceInfo, error: CacheError, *, alone: bool) -> CacheError:
    """The error of a source that is not at hand; of several, it says which one must be named to say where it is."""
    if alone:
        return error
    how = "--append --image-root DIR" if info.first_row else "--image-root DIR"
    return CacheError(
        f"{error}. These are images of {info.path}: run its `clipglot cache` command with {how} to say where they are"
    )


class _Absent(Reader):
    """Stands in for a source that is not at hand, none of whose images is read."""

    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        raise AssertionError("an image of a source that was not to be read")
