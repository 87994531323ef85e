"""Table of the kinds of sources: the shape of a path tells which source reads it.

A new source takes these steps:

1. write a `Source` in one file of this folder, with a `kind` of its own;
2. add a line to `KINDS`, before the kinds whose paths look alike;
3. inherit `SourceContract` (tests/support/source_contract.py) in a test class;
4. show it in docs/sources.md, where a test runs every command.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from ..errors import CacheError
from ..format import SourceInfo
from ..location import Location, Url, did_you_mean, entries, to_location
from .coco import CocoSource
from .download import local_file
from .image_folder import ImageFolderSource, holds_class_folders
from .image_root import require_root
from .json_array import is_json_array
from .muge import MugeSource, holds_muge
from .parquet import ArrowSource, ParquetSource, holds_saved_dataset
from .sidecars import SidecarSource, holds_sidecars
from .source import Source
from .table import SUFFIXES, TableSource
from .tar_shards import names_tars, root_of
from .webdataset import WebDatasetSource

JSON = (".json", ".json.gz")


class SourceKind(NamedTuple):
    """A kind of source.

    Attributes:
        source: reads it.
        shape: of a path to one, for messages.
        matches: whether a path has that shape.
    """

    source: type[Source]
    shape: str
    matches: Callable[[Location], bool]


KINDS = (  # the first that matches decides
    SourceKind(
        TableSource,
        "a file .jsonl, .ndjson, .csv or .tsv, also .gz, or .json with an array of records",
        lambda path: _is_file(path, SUFFIXES) or (_is_file(path, JSON) and _holds_array(path)),
    ),
    SourceKind(WebDatasetSource, "a .tar, or a folder or pattern of them", lambda path: names_tars(str(path))),
    SourceKind(CocoSource, "a COCO file .json of images and annotations", lambda path: _is_file(path, JSON)),
    SourceKind(MugeSource, "a folder of {split}_imgs.tsv and {split}_texts.jsonl", holds_muge),
    SourceKind(ArrowSource, "a dataset by save_to_disk of `datasets`", holds_saved_dataset),
    SourceKind(SidecarSource, "a folder of images with a .txt or .caption beside them", holds_sidecars),
    SourceKind(ParquetSource, "a file .parquet or a folder of them", lambda path: _has(path, ParquetSource.suffixes)),
    SourceKind(
        ArrowSource,
        "a file .arrow, .feather or .ipc or a folder of them",
        lambda path: _has(path, ArrowSource.suffixes),
    ),
    SourceKind(ImageFolderSource, "a folder of class folders of images", holds_class_folders),
)
SOURCES: dict[str, type[Source]] = {kind.source.kind: kind.source for kind in KINDS}
FOLDERS_LISTED = 20  # in search of splits; each takes a request at a URL, and class folders may be thousands


def open_source(info: SourceInfo, source: type[Source] | None = None) -> Source:
    """Open the source at a path.

    Args:
        info: what was asked for; sha256 is computed later, and an empty root or fields are the source's own.
        source: the class that reads it; by default recognised by the path's shape.

    Raises:
        CacheError: nothing there, or of no known kind.
    """
    location = to_location(info.path)
    if isinstance(location, Url):
        location.refresh()
    source = source or _recognise(info.path)
    root = info.image_root or root_of(info.path)
    opened = source(
        replace(
            info,
            kind=source.kind,
            image_root=root,
            image_field=info.image_field or source.image_field,
            text_fields=info.text_fields or list(source.text_fields),
        )
    )
    require_root(to_location(root))
    return opened


def _recognise(path: str) -> type[Source]:
    if names_tars(path):  # also patterns, which are not the name of any file
        return WebDatasetSource
    location = to_location(path)
    if not location.exists():
        if isinstance(location, Url):
            raise CacheError(f"{location}: nothing there: check the URL")
        raise CacheError(f"{location}: no such file or folder{did_you_mean(location)}")
    for kind in KINDS:
        if kind.matches(location):
            return kind.source
    known = "; ".join(kind.shape for kind in KINDS)
    raise CacheError(f"{location} is {_described(location)}, no known source. Known are: {known} (docs/sources.md)")


def _is_file(location: Location, suffixes: Sequence[str]) -> bool:
    return location.name.lower().endswith(tuple(suffixes)) and location.is_file()


def _holds_array(location: Location) -> bool:
    return is_json_array(local_file(str(location)), str(location))


def _has(location: Location, suffixes: Sequence[str]) -> bool:
    """Whether it is such a file, or a folder that has some, perhaps in folders of splits."""
    if not location.is_dir():
        return _is_file(location, suffixes)
    here = entries(location)
    folders = (entry.name for entry in here if entry.is_dir)
    deeper = (file for name in islice(folders, FOLDERS_LISTED) for file in entries(location / name))
    return any(entry.is_file and entry.name.lower().endswith(tuple(suffixes)) for entry in chain(here, deeper))


def _described(location: Location) -> str:
    """What is at a location, for messages: `a folder of 3 .txt, 1 folders`."""
    if isinstance(location, Url) and location.is_web:
        return "on a web server, where files are read but no folders"
    if not location.is_dir():
        return f"a file {location.suffix or 'without suffix'}"
    counts = Counter("folders" if entry.is_dir else Path(entry.name).suffix or "others" for entry in entries(location))
    return f"a folder of {', '.join(f'{count} {name}' for name, count in counts.most_common(5)) or 'nothing'}"
