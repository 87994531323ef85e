"""Which kind of source a path is, by its shape; and the readers of the pictures that a cache was planned from."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrow import Arrow, Parquet, holds_saved_dataset
from .class_folders import ClassFolders, holds_class_folders
from .coco import Coco
from .errors import CacheError
from .format import SourceInfo, Status
from .listing import entries, is_file, is_folder, is_there, look_again
from .location import Location, Url, to_location
from .manifest import SUFFIXES, Table
from .muge import Muge, holds_muge
from .paths import PathReader, require_root
from .remote import HTTP
from .shards import names_tars, root_of
from .source import Reader, Source
from .store import Cache
from .tars import Tars


class Shape(NamedTuple):
    """What a path must look like to be a source of some kind."""

    source: type[Source]
    words: str
    fits: Callable[[Location], bool]


SHAPES = (  # the first that fits decides
    Shape(Table, "a file .jsonl, .ndjson, .csv or .tsv", lambda path: _is_file(path, SUFFIXES)),
    Shape(Tars, "a .tar, or a folder or pattern of them", lambda path: names_tars(str(path))),
    Shape(Coco, "a COCO file .json of images and annotations", lambda path: _is_file(path, (".json",))),
    Shape(Muge, "a folder of {split}_imgs.tsv and {split}_texts.jsonl", holds_muge),
    Shape(Arrow, "a dataset by save_to_disk of `datasets`", holds_saved_dataset),
    Shape(Parquet, "a file .parquet or a folder of them", lambda path: _is_or_has(path, Parquet.suffixes)),
    Shape(Arrow, "a file .arrow, .feather or .ipc or a folder of them", lambda path: _is_or_has(path, Arrow.suffixes)),
    Shape(ClassFolders, "a folder of class folders of pictures", holds_class_folders),
)
FOLDERS_LOOKED_INTO = 20  # for splits; each takes a request at a URL, and class folders may be thousands
KINDS: dict[str, type[Source]] = {shape.source.kind: shape.source for shape in SHAPES}


def open_source(info: SourceInfo, kind: type[Source] | None = None) -> Source:
    """The source at a path.

    Args:
        info: what was asked for; sha256 is found later, and an empty root or fields are the kind's own.
        kind: of source; by default recognised by the path's shape.

    Raises:
        CacheError: nothing there, or of no known kind.
    """
    look_again(to_location(info.path))
    kind = kind or KINDS[_recognised(info.path)]
    root = info.image_root or root_of(info.path)
    source = kind(
        replace(
            info,
            kind=kind.kind,
            image_root=root,
            image_field=info.image_field or kind.image_field,
            text_fields=info.text_fields or list(kind.text_fields),
        )
    )
    require_root(to_location(root))
    return source


def _recognised(named: str) -> str:
    if names_tars(named):
        return Tars.kind
    path = to_location(named)
    if not is_there(path):
        raise CacheError(
            f"{path}: {'nothing there: check the URL' if isinstance(path, Url) else 'no such file or folder'}"
        )
    for shape in SHAPES:
        if shape.fits(path):
            return shape.source.kind
    known = "; ".join(shape.words for shape in SHAPES)
    raise CacheError(f"{path} is {_described(path)}, no known source. Known are: {known} (docs/sources.md)")


def _is_file(path: Location, suffixes: Sequence[str]) -> bool:
    return path.suffix.lower() in suffixes and is_file(path)


def _is_or_has(path: Location, suffixes: Sequence[str]) -> bool:
    """Whether it is such a file, or a folder that has some, perhaps in folders of splits."""
    if not is_folder(path):
        return _is_file(path, suffixes)
    listed = entries(path)
    folders = (entry.name for entry in listed if entry.is_folder)
    deeper = (file for name in islice(folders, FOLDERS_LOOKED_INTO) for file in entries(path / name))
    return any(entry.is_file and entry.name.lower().endswith(tuple(suffixes)) for entry in chain(listed, deeper))


def _described(path: Location) -> str:
    """What there is, for messages: `a folder of 3 .txt, 1 folders`."""
    if isinstance(path, Url) and path.scheme in HTTP:
        return "on a web server, where files are read but no folders"
    if not is_folder(path):
        return f"a file {path.suffix or 'without suffix'}"
    found = Counter("folders" if entry.is_folder else Path(entry.name).suffix or "others" for entry in entries(path))
    return f"a folder of {', '.join(f'{count} {name}' for name, count in found.most_common(5)) or 'nothing'}"


class RowsReader(NamedTuple):
    """Reads pictures of a cache by their rows, each from the source that it came from."""

    readers: tuple[tuple[int, Reader], ...]  # with the first row of each, ascending

    def read(self, start: int, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of the pictures from row `start` on, or why there are none."""
        ends = [min(max(first - start, 0), len(keys)) for first, _ in self.readers[1:]]
        for (_, reader), a, b in zip(self.readers, [0, *ends], [*ends, len(keys)], strict=True):
            if a < b:
                are_files = locators is None or locators[a, 0] < 0  # also beside pictures inside larger files
                yield from reader.read(keys[a:b], None if locators is None or are_files else locators[a:b])


def reader_of(
    cache: Cache,
    kinds: Mapping[str, type[Source]] = KINDS,
    *,
    sources: Sequence[SourceInfo] | None = None,
    rows: Collection[range] | None = None,
) -> RowsReader:
    """What reads the pictures that a cache was planned from.

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
            continue  # all its pictures were there already
        try:
            readers.append((info.first_row, _reader_of(cache, info, files, kinds)))
        except CacheError as error:
            if any(max(own.start, some.start) < min(own.stop, some.stop) for some in asked):
                raise _named(info, error, alone=len(sources) == 1) from error
            readers.append((info.first_row, _Absent()))
    return RowsReader(tuple(readers))


def _reader_of(cache: Cache, info: SourceInfo, files: Sequence[str], kinds: Mapping[str, type[Source]]) -> Reader:
    root = to_location(info.image_root)
    located = cache.locators(info.first_row, info.first_row + 1)
    if located is None or located[0, 0] < 0:
        return PathReader.below(root)
    if info.kind in kinds:
        return kinds[info.kind].reader(root, files, info)
    raise CacheError(f"{cache.path}: its pictures come from a source {info.kind!r} that is not known here")


def _named(info: SourceInfo, error: CacheError, *, alone: bool) -> CacheError:
    """The error of a source that is not at hand; of several, it says which one must be named to say where it is."""
    if alone:
        return error
    how = "--append --image-root DIR" if info.first_row else "--image-root DIR"
    return CacheError(
        f"{error}. These are pictures of {info.path}: run its `clipglot cache` command with {how} to say where they are"
    )


class _Absent(Reader):
    """Stands in for a source that is not at hand, none of whose pictures is read."""

    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        raise AssertionError("a picture of a source that was not to be read")
