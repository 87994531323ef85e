"""Which kind of source a path is, by its shape; and the readers of the images that a cache was planned from."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from ..errors import CacheError
from ..format import SourceInfo
from ..location import Location, Url, to_location
from ..storage.urls import HTTP
from .coco import CocoSource
from .image_files import require_root
from .image_folder import ImageFolderSource, holds_class_folders
from .listing import entries, is_file, is_folder, is_there, look_again
from .muge import MugeSource, holds_muge
from .parquet import ArrowSource, ParquetSource, holds_saved_dataset
from .source import Source
from .table import SUFFIXES, TableSource
from .tar_urls import names_tars, root_of
from .webdataset import WebDatasetSource


class Shape(NamedTuple):
    """What a path must look like to be a source of some kind."""

    source: type[Source]
    words: str
    fits: Callable[[Location], bool]


SHAPES = (  # the first that fits decides
    Shape(TableSource, "a file .jsonl, .ndjson, .csv or .tsv", lambda path: _is_file(path, SUFFIXES)),
    Shape(WebDatasetSource, "a .tar, or a folder or pattern of them", lambda path: names_tars(str(path))),
    Shape(CocoSource, "a COCO file .json of images and annotations", lambda path: _is_file(path, (".json",))),
    Shape(MugeSource, "a folder of {split}_imgs.tsv and {split}_texts.jsonl", holds_muge),
    Shape(ArrowSource, "a dataset by save_to_disk of `datasets`", holds_saved_dataset),
    Shape(ParquetSource, "a file .parquet or a folder of them", lambda path: _is_or_has(path, ParquetSource.suffixes)),
    Shape(
        ArrowSource,
        "a file .arrow, .feather or .ipc or a folder of them",
        lambda path: _is_or_has(path, ArrowSource.suffixes),
    ),
    Shape(ImageFolderSource, "a folder of class folders of images", holds_class_folders),
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
        return WebDatasetSource.kind
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
