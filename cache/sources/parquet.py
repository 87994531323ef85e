"""Parquet and Arrow files, one or a folder of them, and the folders that Hugging Face's `datasets` saves.

Images stand in a column, as bytes or as the struct of bytes and path that `datasets` writes, or the column has their
paths. Planning reads all columns but those of images.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from ..errors import CacheError
from ..format import SourceInfo
from ..location import Location, Url, to_location
from .download import Files, local_file
from .listing import Entry, entries, is_folder, name_in, state_at
from .parquet_files import UNREADABLE, ArrowFile, ColumnFile, ColumnReader, ParquetFile, as_bytes
from .records import RecordParser, chosen_split
from .source import Locator, Reader, Source, SourceRow
from .where import WhereFilter

SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+(-[0-9a-f]+)?")  # as on the Hub: train-00000-of-00004
SPLIT_NAMES = ("train", "test", "val", "valid", "validation", "dev")
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # what `save_to_disk` writes beside the data


class ColumnSource(Source):
    """Files of columns.

    Attributes:
        suffixes: how the names of such files end.
        file_type: what opens one.
    """

    suffixes: ClassVar[tuple[str, ...]]
    file_type: ClassVar[type[ColumnFile]]

    def __init__(self, info: SourceInfo) -> None:
        super().__init__(info)
        self._files: list[str] = []
        self._record_info = replace(info, split=None)  # splits are files here

    def rows(self) -> Iterator[SourceRow]:
        """Every record.

        Raises:
            CacheError: a file or a record is not readable as such.
        """
        self._files, line = [], 0
        self.left_out.clear()
        for path, file, inside, columns in self._opened():
            if inside:
                self._files.append(name_in(to_location(self.info.image_root), path))
            source = to_location(self.info.path)
            name = path.name if path == source else str(path).removeprefix(f"{source}/")
            reader = RecordParser(self._record_info, has_key=not inside, left_out=self.left_out)
            before = line
            with _naming(path):
                for group, first, batch in file.records(columns):
                    for row, record in enumerate(_records(batch), first):
                        key = f"{name}#{line - before}" if inside else ""
                        locator = Locator(len(self._files) - 1, group, row) if inside else None
                        line += 1
                        found = reader.row(record, line, f"{path}: record {line - before}", key=key, locator=locator)
                        if found:
                            yield found

    def files(self) -> list[str]:
        """The files, if images stand in them."""
        return self._files

    def sha256(self) -> str:
        """Of the columns that are planned from, and the sizes of the others; at a URL of what the store tells."""
        digest = sha256()
        far = [path for path in self._paths() if isinstance(path, Url)]
        if far:
            return sha256("".join(f"{path.name}\0{state_at(path)}\0" for path in far).encode()).hexdigest()
        for path, file, _, columns in self._opened():
            digest.update(path.name.encode(errors="surrogateescape") + b"\0")
            with _naming(path):
                digest.update(file.digest(columns))
        return digest.hexdigest()

    @classmethod
    def reader(cls, root: Location, files: Sequence[str], info: SourceInfo) -> Reader:
        """Of images in a column."""
        return ColumnReader(cls.file_type, Files(root, files), info.image_field)

    def _paths(self) -> list[Location]:
        path, wanted = to_location(self.info.path), self.info.split
        if not is_folder(path):
            if wanted is not None:
                raise CacheError(
                    f"{path}: --split {wanted} chooses files of a folder, and this is one file: leave it out"
                )
            return [path]
        found: dict[str, list[Location]] = {}
        for entry in entries(path):
            if entry.is_folder:
                for file in filter(self._fits, entries(path / entry.name)):
                    place = (
                        path / entry.name / file.name
                    )  # as on the Hub, data/train-0….parquet is of train, not of data
                    found.setdefault(split_of(place) or entry.name, []).append(place)
            elif self._fits(entry):
                found.setdefault(split_of(path / entry.name), []).append(path / entry.name)
        return found[chosen_split(found, wanted, path)] if found else []

    def _fits(self, entry: Entry) -> bool:
        return entry.is_file and entry.name.lower().endswith(self.suffixes) and not entry.name.startswith(".")

    def _opened(self) -> Iterator[tuple[Location, ColumnFile, bool, list[str]]]:
        """Each file, whether images are inside, and the columns to plan from."""
        kinds: set[bool] = set()
        for path in self._paths():
            with _naming(path):
                file = self.file_type.at(path)
                inside = self.info.images and holds_images(file.schema, self.info.image_field, path)
                columns = self._columns(file.schema, path, inside)
            kinds.add(inside)
            if len(kinds) > 1:
                raise CacheError(
                    f"{path}: {self.info.image_field!r} has {'bytes' if inside else 'paths'} of images where the "
                    f"files before it have {'paths' if inside else 'bytes'}: cache them apart"
                )
            yield path, file, inside, columns

    def _columns(self, schema: pa.Schema, path: Location, inside: bool) -> list[str]:
        info = self.info
        flags = dict.fromkeys(info.text_fields, "--text-field")
        flags |= dict.fromkeys(info.teacher_fields, "--teacher-field")
        if info.language_field:
            flags[info.language_field] = "--language-field"
        if info.where is not None:
            flags = dict.fromkeys(WhereFilter(info.where).fields, "--where") | flags
        for name, flag in flags.items():
            require_column(schema, name, flag, path)
        return list(flags) if inside or not info.images else [info.image_field, *flags]


class ParquetSource(ColumnSource):
    """A `.parquet` file or a folder of them."""

    kind = "parquet"
    suffixes = (".parquet", ".pq")
    file_type = ParquetFile


class ArrowSource(ColumnSource):
    """A `.arrow`, `.feather` or `.ipc` file, a folder of them, or what `datasets` wrote by `save_to_disk`."""

    kind = "arrow"
    suffixes = (".arrow", ".feather", ".ipc")
    file_type = ArrowFile

    def _paths(self) -> list[Location]:
        path = to_location(self.info.path)
        listed = entries(path)
        if _has(listed, SAVED_SPLITS):
            folders = [entry.name for entry in listed]
            splits = _json(path / SAVED_SPLITS).get("splits")
            if not isinstance(splits, list) or not all(isinstance(name, str) and name in folders for name in splits):
                raise CacheError(f"{path / SAVED_SPLITS}: expected the names of folders here, found {splits!r:.100}")
            return _saved(path / chosen_split(splits, self.info.split, path))
        if _has(listed, SAVED) and self.info.split is None:
            return _saved(path)
        return super()._paths()


def holds_saved_dataset(path: Location) -> bool:
    """Whether `datasets` wrote a folder by `save_to_disk`."""
    listed = entries(path)
    return _has(listed, SAVED_SPLITS) or _has(listed, SAVED)


def _has(listed: Sequence[Entry], name: str) -> bool:
    return any(entry.is_file and entry.name == name for entry in listed)


def _saved(folder: Location) -> list[Location]:
    state = _json(folder / SAVED)
    if state.get("_indices_data_files"):
        raise CacheError(f"{folder}: its rows are chosen by an index beside the data: save it after flatten_indices()")
    try:
        return [folder / Path(file["filename"]).name for file in state["_data_files"]]
    except (KeyError, TypeError):
        raise CacheError(f"{folder / SAVED}: names no data files: save the dataset again") from None


def _json(path: Location) -> dict[str, Any]:
    try:
        found = json.loads(local_file(str(path)).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CacheError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(found, dict):
        raise CacheError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def split_of(path: Location) -> str:
    """The split that a file's name speaks of, or "".

    >>> split_of(Path("train-00000-of-00004.parquet")), split_of(Path("test.arrow")), split_of(Path("part0.parquet"))
    ('train', 'test', '')
    """
    shard = SHARD.fullmatch(path.stem)
    if shard:
        return shard["split"]
    return path.stem if path.stem in SPLIT_NAMES else ""


def require_column(schema: pa.Schema, name: str, flag: str, path: Location) -> pa.DataType:
    """The type of a column.

    Raises:
        CacheError: there is none, or more than one, of that name.
    """
    found = schema.names.count(name)
    if found != 1:
        what = f"no column {name!r}" if not found else f"{found} columns {name!r}"
        raise CacheError(f"{path}: {what} (found: {', '.join(schema.names)}): pass {flag} NAME")
    kind = schema.field(name).type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def holds_images(schema: pa.Schema, name: str, path: Location) -> bool:
    """Whether a column has images; otherwise it has their paths.

    Raises:
        CacheError: it has neither.
    """
    kind = require_column(schema, name, "--image-field", path)
    is_struct = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    held = kind.field("bytes").type if is_struct else kind
    is_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    if any(fits(held) for fits in is_bytes):
        return True
    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not is_struct and any(fits(held) for fits in is_text):
        return False
    raise CacheError(
        f"{path}: column {name!r} is of type {kind}, expected images as binary or struct<bytes, path>, "
        "or their paths as strings: pass --image-field NAME"
    )


def _records(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """A record for each row; text that is no UTF-8 becomes halves of surrogate pairs, as captions that are dropped."""
    try:
        found: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        columns = [[_lenient(value) for value in as_bytes(column).to_pylist()] for column in batch.columns]
        return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]
    return found


def _lenient(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    return [_lenient(each) for each in value] if isinstance(value, list) else value


@contextmanager
def _naming(path: Location) -> Iterator[None]:
    """Errors of a damaged file name it."""
    try:
        yield
    except UNREADABLE as error:
        raise CacheError(f"{path}: not readable ({error}): fetch or write it again") from None
    except (ValueError, OverflowError) as error:  # Python's dates end with the year 9999, and have no nanoseconds
        raise CacheError(
            f"{path}: a value that cannot be read ({error}): cast its column, or leave it out of --where"
        ) from None
