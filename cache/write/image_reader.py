"""Opens the sources of a cache to read its images, each from the source that it came from."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import SourceInfo, Status
from ..location import to_location
from ..read.cache import Cache
from ..sources.image_files import PathReader
from ..sources.kinds import SOURCES
from ..sources.reader import ImageReader, Reader
from ..sources.source import Source


def reader_of(
    cache: Cache,
    kinds: Mapping[str, type[Source]] = SOURCES,
    *,
    sources: Sequence[SourceInfo] | None = None,
    rows: Collection[range] | None = None,
) -> ImageReader:
    """Open the sources of a cache for reading its images.

    Args:
        cache: planned.
        kinds: classes of sources by kind.
        sources: of the cache, with their paths on this machine; by default as the cache has them.
        rows: to be read; by default all. A source with none of these rows may be absent.

    Raises:
        CacheError: an image root is absent, or the kind of a source is unknown.
    """
    files, sources = cache.files(), cache.info.sources if sources is None else sources
    needed = [range(len(cache))] if rows is None else rows
    readers: list[tuple[int, Reader]] = []
    for info, end in zip(sources, [*(s.first_row for s in cache.info.appended), len(cache)], strict=True):
        own = range(info.first_row, end)
        if not own:
            continue  # an earlier source has all its images
        try:
            readers.append((info.first_row, _reader_of(cache, info, files, kinds)))
        except CacheError as error:
            if any(max(own.start, some.start) < min(own.stop, some.stop) for some in needed):
                raise _with_source(info, error, alone=len(sources) == 1) from error
            readers.append((info.first_row, _Absent()))
    return ImageReader(tuple(readers))


def _reader_of(cache: Cache, info: SourceInfo, files: Sequence[str], kinds: Mapping[str, type[Source]]) -> Reader:
    root = to_location(info.image_root)
    located = cache.locators(info.first_row, info.first_row + 1)
    if located is None or located[0, 0] < 0:
        return PathReader.below(root)
    if info.kind in kinds:
        return kinds[info.kind].reader(root, files, info)
    raise CacheError(
        f"{cache.path}: the kind of one of its sources, {info.kind!r}, is unknown: pass the class of that source"
    )


def _with_source(info: SourceInfo, error: CacheError, *, alone: bool) -> CacheError:
    """The error of an absent source; where a cache has several, it names the source and the command that mends it."""
    if alone:
        return error
    how = "--append --image-root DIR" if info.first_row else "--image-root DIR"
    return CacheError(
        f"{error}. These are images of {info.path}: run its `clipglot cache` command with {how} to say where they are"
    )


class _Absent(Reader):
    """Stands in for an absent source, whose images are not read."""

    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        raise AssertionError("an image of an absent source is read")
