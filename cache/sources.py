"""Which kind of source a path is, by its shape; and the readers of the pictures that a cache was planned from."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .arrow import Arrow, Parquet, holds_saved_dataset
from .class_folders import ClassFolders, holds_class_folders
from .coco import Coco
from .errors import CacheError
from .format import SourceInfo, Status
from .location import Url, to_location
from .manifest import SUFFIXES, Table
from .muge import Muge, holds_muge
from .paths import PathReader, require_root
from .remote import state_of
from .shards import names_tars, root_of
from .source import Reader, Source
from .store import Cache
from .tars import Tars


class Looks(NamedTuple):
    """How a path looks: how many names in it end how, or the suffix of a file."""

    path: Path
    suffixes: Counter[str]
    deeper: Counter[str]  # in the folders in it

    @classmethod
    def of(cls, path: Path) -> "Looks":
        """Look at a path, into each folder only as far as one can see."""
        if not path.is_dir():
            return cls(path, Counter([path.suffix.lower()]), Counter())
        entries = list(path.iterdir())
        folders = [entry for entry in entries if entry.is_dir()]
        files = Counter(entry.suffix.lower() for entry in entries if not entry.is_dir())
        some = (file for folder in folders for file in islice(folder.iterdir(), 1000) if not file.is_dir())
        return cls(path, files + Counter({"folders": len(folders)}), Counter(file.suffix.lower() for file in some))

    def is_file(self, suffixes: Sequence[str]) -> bool:
        """Whether it is a file that ends so."""
        return self.path.is_file() and self.suffixes.keys() <= set(suffixes)

    def has(self, suffixes: Sequence[str]) -> bool:
        """Whether it is such a file, or a folder that has some, perhaps in folders of splits."""
        return not (self.suffixes.keys() | self.deeper.keys()).isdisjoint(suffixes)

    def __str__(self) -> str:
        if not self.path.is_dir():
            return f"a file {self.path.suffix}" if self.path.suffix else "a file without suffix"
        listed = ", ".join(f"{count} {name or 'without suffix'}" for name, count in self.suffixes.most_common(5))
        return f"a folder with {listed or 'nothing in it'}"


class Shape(NamedTuple):
    """What a path must look like to be a source of some kind."""

    source: type[Source]
    words: str
    fits: Callable[[Looks], bool]


SHAPES = (  # the first that fits decides
    Shape(Table, "a file .jsonl, .ndjson, .csv or .tsv", lambda looks: looks.is_file(SUFFIXES)),
    Shape(Tars, "a .tar, or a folder or pattern of them", lambda looks: names_tars(str(looks.path))),
    Shape(Arrow, "a dataset by save_to_disk of `datasets`", lambda looks: holds_saved_dataset(looks.path)),
    Shape(Coco, "a COCO file .json of images and their annotations", lambda looks: looks.is_file((".json",))),
    Shape(Muge, "a folder of {split}_imgs.tsv and {split}_texts.jsonl", lambda looks: holds_muge(looks.path)),
    Shape(Parquet, "a file .parquet or a folder of them", lambda looks: looks.has(Parquet.suffixes)),
    Shape(Arrow, "a file .arrow, .feather or .ipc or a folder of them", lambda looks: looks.has(Arrow.suffixes)),
    Shape(
        ClassFolders,
        "a folder of class folders of pictures",
        lambda looks: holds_class_folders(looks.path),
    ),
)
KINDS: dict[str, type[Source]] = {shape.source.kind: shape.source for shape in SHAPES}


def open_source(info: SourceInfo) -> Source:
    """The source at a path.

    Args:
        info: what was asked for; kind and sha256 are found here, and an empty root or fields are the kind's own.

    Raises:
        CacheError: nothing there, or of no known kind.
    """
    kind = KINDS[_recognised(info.path)]
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
    if isinstance(path, Url):
        if not path.lower().endswith(SUFFIXES):
            raise CacheError(f"{path}: read from URLs are {', '.join(SUFFIXES)} and tars: copy it to a local folder")
        if state_of(path) is None:
            raise CacheError(f"{path}: nothing there: check the URL")
        return Table.kind
    if not path.exists():
        raise CacheError(f"{path}: no such file or folder")
    looks = Looks.of(path)
    for shape in SHAPES:
        if shape.fits(looks):
            return shape.source.kind
    known = "; ".join(shape.words for shape in SHAPES)
    raise CacheError(f"{path}: is {looks}, which is no known source. Known are: {known} (docs/sources.md)")


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
