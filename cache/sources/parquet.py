"""Sources of Parquet and Arrow files, one or a folder of them, and of datasets saved by Hugging Face `datasets`.

The image column has the encoded images, the struct of bytes and path that `datasets` writes, or paths. Planning reads
the other columns alone.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import SourceInfo
from ..location import Entry, Location, Url, entries, to_location
from ..storage.ragged_bytes import RaggedBytes
from .column_parser import ColumnParser, Columns, Rows, taken
from .download import SourceFiles, local_file
from .image_root import name_below
from .parquet_files import (
    UNREADABLE,
    ArrowFile,
    ColumnFile,
    ColumnReader,
    ParquetFile,
    as_bytes,
    cut,
    has_long_values,
    plain_column,
    small_parts,
)
from .reader import Locator, Reader
from .records import RecordParser, choose_split, is_unicode
from .source import RowBatch, Source, SourceRow, batched
from .text_files import decode_text
from .where import WhereFilter

SHARD = re.compile(r"(?P<split>.+?)-\d+-of-\d+(-[0-9a-f]+)?")  # as on the Hub: train-00000-of-00004
SPLIT_NAMES = ("train", "test", "val", "valid", "validation", "dev")
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"  # what `save_to_disk` writes beside the data


class ColumnSource(Source):
    """Base of the sources of Parquet and of Arrow files.

    Attributes:
        suffixes: of such files.
        file_type: opens one.
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
        for part in self._parts():
            with _explain_file_error(part.path):
                yield from part.rows()

    def batches(self) -> Iterator[RowBatch]:
        """The same as columns, taken from the file's own where those are plain."""
        parser = ColumnParser(self._record_info, self.left_out)
        if not parser.is_possible or self.info.limit is not None:  # with which reading ends with a batch of records
            yield from super().batches()
            return
        for part in self._parts():
            with _explain_file_error(part.path):
                batch = part.columns(parser)
                yield from batched(part.rows()) if batch is None else filter(len, [batch])

    def _parts(self) -> Iterator["_Part"]:
        """Records of each file in turn, some at a time."""
        self._files, line = [], 0
        self.left_out.clear()
        for path, file, has_images, columns in self._open_files():
            if has_images:
                self._files.append(name_below(to_location(self.info.image_root), path))
            source = to_location(self.info.path)
            name = path.name if path == source else str(path).removeprefix(f"{source}/")
            parser = RecordParser(self._record_info, has_key=not has_images, left_out=self.left_out)
            before = line
            with _explain_file_error(path):
                for group, first, batch in file.records(columns):
                    place = (len(self._files) - 1, group, first) if has_images else None
                    yield _Part(path, name, before, line, place, batch, parser)
                    line += batch.num_rows

    def files(self) -> list[str]:
        """The files, if they hold the images."""
        return self._files

    def sha256(self) -> str:
        """Digest of the columns that are planned from and the sizes of the others; at URLs, of the files' states."""
        digest = sha256()
        urls = [path for path in self._paths() if isinstance(path, Url)]
        if urls:
            return sha256("".join(f"{url.name}\0{url.state() or ''}\0" for url in urls).encode()).hexdigest()
        for path, file, _, columns in self._open_files():
            digest.update(path.name.encode(errors="surrogateescape") + b"\0")
            with _explain_file_error(path):
                digest.update(file.digest(columns))
        return digest.hexdigest()

    @classmethod
    def reader(cls, root: Location, files: Sequence[str], info: SourceInfo) -> Reader:
        """The reader of images in a column."""
        return ColumnReader(cls.file_type, SourceFiles(root, files), info.image_field)

    def _paths(self) -> list[Location]:
        path, split = to_location(self.info.path), self.info.split
        if not path.is_dir():
            if split is not None:
                raise CacheError(
                    f"{path}: --split {split} chooses files of a folder, and this is one file: leave it out"
                )
            return [path]
        by_split: dict[str, list[Location]] = {}
        for entry in entries(path):
            if entry.is_dir:
                for file in filter(self._fits, entries(path / entry.name)):
                    location = path / entry.name / file.name
                    # As on the Hub, data/train-0….parquet is of the split train, not data.
                    by_split.setdefault(split_of(location) or entry.name, []).append(location)
            elif self._fits(entry):
                by_split.setdefault(split_of(path / entry.name), []).append(path / entry.name)
        return by_split[choose_split(by_split, split, path)] if by_split else []

    def _fits(self, entry: Entry) -> bool:
        return entry.is_file and entry.name.lower().endswith(self.suffixes) and not entry.name.startswith(".")

    def _open_files(self) -> Iterator[tuple[Location, ColumnFile, bool, list[str]]]:
        """Each file, whether it holds the images, and the columns to plan from."""
        kinds: set[bool] = set()
        for path in self._paths():
            with _explain_file_error(path):
                file = self.file_type.at(path)
                has_images = self.info.images and holds_images(file.schema, self.info.image_field, path)
                columns = self._columns(file.schema, path, has_images)
            kinds.add(has_images)
            if len(kinds) > 1:
                raise CacheError(
                    f"{path}: {self.info.image_field!r} has {'bytes' if has_images else 'paths'} of images where the "
                    f"files before it have {'paths' if has_images else 'bytes'}: cache them apart"
                )
            yield path, file, has_images, columns

    def _columns(self, schema: pa.Schema, path: Location, has_images: bool) -> list[str]:
        info = self.info
        flags = dict.fromkeys(info.text_fields, "--text-field")
        flags |= dict.fromkeys(info.teacher_fields, "--teacher-field")
        if info.language_field:
            flags[info.language_field] = "--language-field"
        if info.where is not None:
            flags = dict.fromkeys(WhereFilter(info.where).fields, "--where") | flags
        for name, flag in flags.items():
            require_column(schema, name, flag, path)
        return list(flags) if has_images or not info.images else [info.image_field, *flags]


class _Part(NamedTuple):
    """Some records of a file.

    Attributes:
        path: of the file.
        name: of the file, in keys.
        before: number of records in the files before.
        line: number of records before these.
        place: file, group and row of the first image, if the file has the images.
        records: columns.
        parser: of a record.
    """

    path: Location
    name: str
    before: int
    line: int
    place: tuple[int, int, int] | None
    records: pa.RecordBatch
    parser: RecordParser

    def rows(self) -> Iterator[SourceRow]:
        """The rows, record by record."""
        for i, record in enumerate(_records(self.records)):
            number = self.line + i - self.before
            key, locator = "", None
            if self.place is not None:
                file, group, first = self.place
                key, locator = f"{self.name}#{number}", Locator(file, group, first + i)
            where = f"{self.path}: record {number + 1}"
            row = self.parser.row(record, self.line + i + 1, where, key=key, locator=locator)
            if row:
                yield row

    def columns(self, parser: ColumnParser) -> RowBatch | None:
        """The rows as columns; None if they have to be read record by record."""
        num, is_located = self.records.num_rows, self.place is not None
        if is_located and not is_unicode(self.name):
            return None
        columns = {}
        for name, column in zip(self.records.schema.names, self.records.columns, strict=True):
            plain = plain_column(column)
            if plain is None:
                return None
            columns[name] = plain

        def keys(rows: Rows | None) -> RaggedBytes:
            numbers = (np.arange(num) if rows is None else rows) + (self.line - self.before)
            return RaggedBytes.of([f"{self.name}#{number}".encode() for number in numbers.tolist()])

        def locators(rows: Rows | None) -> NDArray[np.int64]:
            assert self.place is not None
            rows = np.arange(num) if rows is None else rows
            file, group, first = self.place
            return np.stack([np.full(len(rows), file), np.full(len(rows), group), first + rows], 1)

        return parser.batch(
            Columns(
                num,
                lambda name, rows: taken(columns[name], rows),
                keys if is_located else None,
                locators if is_located else None,
            )
        )


class ParquetSource(ColumnSource):
    """A `.parquet` file or a folder of them."""

    kind = "parquet"
    suffixes = (".parquet", ".pq")
    file_type = ParquetFile


class ArrowSource(ColumnSource):
    """A `.arrow`, `.feather` or `.ipc` file, a folder of them, or a folder that `save_to_disk` of `datasets` wrote."""

    kind = "arrow"
    suffixes = (".arrow", ".feather", ".ipc")
    file_type = ArrowFile

    def _paths(self) -> list[Location]:
        path = to_location(self.info.path)
        names = [entry.name for entry in entries(path) if entry.is_file]
        if SAVED_SPLITS in names:
            folders = [entry.name for entry in entries(path)]
            splits = _json(path / SAVED_SPLITS).get("splits")
            if not isinstance(splits, list) or not all(isinstance(name, str) and name in folders for name in splits):
                raise CacheError(f"{path / SAVED_SPLITS}: expected the names of folders here, found {splits!r:.100}")
            return _saved_files(path / choose_split(splits, self.info.split, path))
        if SAVED in names and self.info.split is None:
            return _saved_files(path)
        return super()._paths()


def holds_saved_dataset(path: Location) -> bool:
    """Whether a folder was written by `save_to_disk` of `datasets`."""
    return any(entry.is_file and entry.name in (SAVED_SPLITS, SAVED) for entry in entries(path))


def _saved_files(folder: Location) -> list[Location]:
    state = _json(folder / SAVED)
    if state.get("_indices_data_files"):
        raise CacheError(f"{folder}: its rows are chosen by an index beside the data: save it after flatten_indices()")
    try:
        return [folder / Path(file["filename"]).name for file in state["_data_files"]]
    except (KeyError, TypeError):
        raise CacheError(f"{folder / SAVED}: names no data files: save the dataset again") from None


def _json(path: Location) -> dict[str, Any]:
    try:
        content = json.loads(decode_text(local_file(str(path)).read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise CacheError(f"{path}: not readable as JSON ({error}): save the dataset again") from None
    if not isinstance(content, dict):
        raise CacheError(f"{path}: expected a JSON object, found {type(content).__name__}: save the dataset again")
    return content


def split_of(path: Location) -> str:
    """The split that a file's name tells; "" if none.

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
        CacheError: no column has that name, or several do.
    """
    num = schema.names.count(name)
    if num != 1:
        problem = f"no column {name!r}" if not num else f"{num} columns {name!r}"
        raise CacheError(f"{path}: {problem} (found: {', '.join(schema.names)}): pass {flag} NAME")
    column_type = schema.field(name).type
    return column_type.value_type if pa.types.is_dictionary(column_type) else column_type


def holds_images(schema: pa.Schema, name: str, path: Location) -> bool:
    """Whether a column has images; otherwise it has their paths.

    Raises:
        CacheError: it has neither.
    """
    column_type = require_column(schema, name, "--image-field", path)
    is_struct = pa.types.is_struct(column_type) and column_type.get_field_index("bytes") >= 0
    value_type = column_type.field("bytes").type if is_struct else column_type
    is_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    if any(fits(value_type) for fits in is_bytes):
        return True
    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not is_struct and any(fits(value_type) for fits in is_text):
        return False
    raise CacheError(
        f"{path}: column {name!r} is of type {column_type}, expected images as binary or struct<bytes, path>, "
        "or their paths as strings: pass --image-field NAME"
    )


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The records of a batch; text that is not UTF-8 becomes halves of surrogate pairs, and so dropped captions."""
    for part in small_parts(batch):
        try:
            if not has_long_values(part):
                yield from part.to_pylist()
                continue
            columns = [list(map(cut, column.to_pylist())) for column in part.columns]
        except UnicodeDecodeError:
            columns = [[_lenient(cut(value)) for value in as_bytes(column).to_pylist()] for column in part.columns]
        for values in zip(*columns, strict=True):
            yield dict(zip(part.schema.names, values, strict=True))


def _lenient(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    return [_lenient(each) for each in value] if isinstance(value, list) else value


@contextmanager
def _explain_file_error(path: Location) -> Iterator[None]:
    """Explain what a damaged file raises, by its name.

    Raises:
        CacheError: in place of the library's error.
    """
    try:
        yield
    except UNREADABLE as error:
        raise CacheError(f"{path}: not readable ({error}): fetch or write it again") from None
    except (ValueError, OverflowError) as error:  # Python's dates end with the year 9999, and have no nanoseconds
        raise CacheError(
            f"{path}: a value that cannot be read ({error}): cast its column, or leave it out of --where"
        ) from None
