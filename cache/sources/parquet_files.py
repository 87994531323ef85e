"""Open Parquet and Arrow files: their columns of texts to plan from, and single images by their place.

A group is a row group of a Parquet file, or a record batch of an Arrow file; a row is counted within its group. Files
are mapped into memory, so that the kernel pages images in and out.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..format import RejectedImageError, Status
from ..location import Location, RangeFile, Url
from .download import SourceFiles, local_file
from .image_files import PathReader, UrlReader
from .reader import Reader
from .source import ROWS_AT_A_TIME

IMAGES_AT_A_TIME = 16  # in memory of a row group, which may have gigabytes of them
BATCH_BYTES = 2**27  # of texts in memory, unless a single one is longer
LONG_TEXT = 2**20
PAGE_HEADER_BYTES = 32
UNREADABLE = (pa.ArrowException, OSError, EOFError, UnicodeDecodeError)  # raised on damaged files


class ColumnFile(ABC):
    """An open file of columns.

    Attributes:
        schema: its columns.
    """

    schema: pa.Schema

    @abstractmethod
    def __init__(self, path: Path) -> None: ...

    @classmethod
    def at(cls, location: Location) -> Self:
        """Open the file at a location, to plan from it.

        Raises:
            CacheError: a URL at which there is nothing, or that cannot be read.
        """
        return cls(local_file(str(location)))

    @abstractmethod
    def records(self, columns: Sequence[str]) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        """Some columns of every row, as (group, row of the first, some rows)."""

    @abstractmethod
    def value(self, column: str, group: int, row: int) -> pa.Scalar:
        """A value by its place; cheap if the place comes after that of the last call."""

    @abstractmethod
    def digest(self, columns: Sequence[str]) -> bytes:
        """Digest that changes with these columns and with the size of any."""


class ParquetFile(ColumnFile):
    """A Parquet file. Row groups are streamed, never held whole."""

    def __init__(self, path: Path | RangeFile) -> None:
        is_remote = isinstance(path, RangeFile)  # then neighbouring columns come by one request
        self._content: Any = path if is_remote else pa.memory_map(str(path))
        self._file = pq.ParquetFile(self._content, pre_buffer=is_remote, page_checksum_verification=True)
        self.schema = self._file.schema_arrow
        self._place: tuple[str, int] | None = None
        self._first = 0  # row of `_batch`

    @classmethod
    def at(cls, location: Location) -> Self:
        """Open a file; of one in an object store only the footer and the columns asked for are fetched."""
        if isinstance(location, Url) and not location.is_web:  # a web server need not serve ranges
            return cls(location.open())
        return super().at(location)

    def records(self, columns: Sequence[str]) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        """See `ColumnFile`."""
        for group in range(self._file.num_row_groups):
            row = 0
            rows = self._rows_at_a_time(columns, group, ROWS_AT_A_TIME)
            for batch in _joined(self._batches(columns, group, rows)):
                yield group, row, batch
                row += batch.num_rows

    def value(self, column: str, group: int, row: int) -> pa.Scalar:
        """See `ColumnFile`."""
        if self._place != (column, group) or row < self._first:
            self._place, self._first = (column, group), 0
            rows = self._rows_at_a_time([column], group, IMAGES_AT_A_TIME)
            self._following = self._batches([column], group, rows)
            self._batch = next(self._following)
        while row >= self._first + self._batch.num_rows:
            self._first += self._batch.num_rows
            self._batch = next(self._following)
        return self._batch.column(0)[row - self._first]

    def digest(self, columns: Sequence[str]) -> bytes:
        """Digest of the footer, which has the sizes of all columns, and of these columns."""
        digest = hashlib.sha256()
        self._content.seek(-8, 2)
        self._content.seek(-8 - int.from_bytes(self._content.read(4), "little"), 2)
        digest.update(self._content.read())
        for _, _, batch in self.records(columns):
            _update(digest, batch)
        return digest.digest()

    def _rows_at_a_time(self, columns: Sequence[str], group: int, most: int) -> int:
        """Rows to decode at once: a few bytes of a file can stand for a long text in each of them.

        No value is longer than the dictionary of its column, or, where a value can repeat the beginning of the one
        before, than all bytes of the column.
        """
        rows = most
        row_group = self._file.metadata.row_group(group)
        for i in range(row_group.num_columns):
            chunk = row_group.column(i)
            if not any(f"{chunk.path_in_schema}.".startswith(f"{column}.") for column in columns):
                continue
            values_a_row = chunk.num_values / max(1, row_group.num_rows)
            if "DELTA_BYTE_ARRAY" in chunk.encodings:
                longest = chunk.total_uncompressed_size
            else:
                longest = max(self._dictionary_bytes(chunk), chunk.total_uncompressed_size // max(1, chunk.num_values))
            while rows > 1 and rows * values_a_row * longest > BATCH_BYTES:
                rows //= 2  # so that `most` is a multiple
        return rows

    def _dictionary_bytes(self, chunk: Any) -> int:
        """Size of the dictionary of a column in a row group, from the header of its page; 0 if it has none."""
        start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)), default=0)
        self._content.seek(start)
        return _dictionary_bytes(self._content.read(PAGE_HEADER_BYTES))

    def _batches(self, columns: Sequence[str], group: int, rows: int) -> Iterator[pa.RecordBatch]:
        batches: Iterator[pa.RecordBatch] = self._file.iter_batches(
            rows, row_groups=[group], columns=list(columns), use_threads=False
        )
        return batches


def _dictionary_bytes(header: bytes) -> int:
    """Uncompressed size of a page by its header, in Thrift's compact form; 0 if the page is no dictionary.

    The header begins with the fields 1 (kind; 2 is a dictionary) and 2 (size), both numbers in zigzag.
    """
    if header[:3] != b"\x15\x04\x15":
        return 0
    size = shift = 0
    for byte in header[3:8]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return size >> 1


def _joined(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of `ROWS_AT_A_TIME`, of smaller ones, unless they have too many bytes."""
    parts: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0
    for batch in batches:
        if parts and (num_rows + batch.num_rows > ROWS_AT_A_TIME or num_bytes + batch.nbytes > BATCH_BYTES):
            yield _one(parts)
            parts, num_rows, num_bytes = [], 0, 0
        parts.append(batch)
        num_rows, num_bytes = num_rows + batch.num_rows, num_bytes + batch.nbytes
    if parts:
        yield _one(parts)


def _one(parts: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    if len(parts) == 1:
        return parts[0]
    (batch,) = pa.Table.from_batches(parts).combine_chunks().to_batches()
    return batch


class ArrowFile(ColumnFile):
    """A file of Arrow's own format, as a file (also Feather) or as a stream, which is how `datasets` saves it."""

    def __init__(self, path: Path) -> None:
        self._content = pa.memory_map(str(path)).read_buffer()  # stays, even if the path leads elsewhere later
        self._is_stream = self._content[:6] != b"ARROW1"
        self.schema = self._open().schema
        self._reader: Any = None
        self._group = -1  # of `_batch`

    def records(self, columns: Sequence[str]) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        """See `ColumnFile`."""
        for group, batch in enumerate(self._batches(columns)):
            for column in batch.columns:
                as_bytes(column).validate(full=True)  # Arrow checks nothing of a mapped file
            for row in range(0, batch.num_rows, ROWS_AT_A_TIME):
                yield group, row, batch.slice(row, ROWS_AT_A_TIME)

    def value(self, column: str, group: int, row: int) -> pa.Scalar:
        """See `ColumnFile`."""
        if self._reader is None or (self._is_stream and group < self._group):  # a stream is read forward only
            self._reader, self._group = self._open(), -1  # all columns: mapped, where a choice of them would be copied
        while self._group != group:
            self._batch = self._reader.read_next_batch() if self._is_stream else self._reader.get_batch(group)
            self._group = self._group + 1 if self._is_stream else group
            images = self._batch.column(column)
            images.validate()
            for part in images.flatten() if pa.types.is_struct(images.type) else (images,):
                as_bytes(part).validate(full=True)
        return self._batch.column(column)[row]

    def digest(self, columns: Sequence[str]) -> bytes:
        """Digest of the size of the file and of these columns."""
        digest = hashlib.sha256(f"{self._content.size} {self.schema.names}".encode(errors="replace"))
        for _, _, batch in self.records(columns):
            _update(digest, batch)
        return digest.digest()

    def _batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        reader = self._open(columns)
        if self._is_stream:
            yield from reader
        else:
            yield from map(reader.get_batch, range(reader.num_record_batches))

    def _open(self, columns: Sequence[str] | None = None) -> Any:
        fields = None if columns is None else [self.schema.get_field_index(name) for name in columns]
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        return (pa.ipc.open_stream if self._is_stream else pa.ipc.open_file)(self._content, options=options)


def as_bytes(column: pa.Array) -> pa.Array:
    """View a column of texts, or of lists of texts, as bytes, UTF-8 or not; other columns are returned unchanged."""
    return column.view(bytes_type) if (bytes_type := _bytes_type(column.type)) is not None else column


def _bytes_type(column_type: pa.DataType) -> pa.DataType | None:
    if pa.types.is_list(column_type) or pa.types.is_large_list(column_type):
        value_type = _bytes_type(column_type.value_type)
        lists = pa.list_ if pa.types.is_list(column_type) else pa.large_list
        return None if value_type is None else lists(value_type)
    pairs = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
    return pairs.get(column_type)


def plain_column(column: pa.Array) -> pa.Array | None:
    """A column of numbers, texts or lists of texts, without dictionary; None if it is another, or has odd texts.

    Odd are texts that are not UTF-8, or are longer than `LONG_TEXT`.
    """
    try:
        column.validate(full=True)
        if pa.types.is_dictionary(column.type):
            longest = _longest(column.dictionary)
            if longest is None or longest * len(column) > BATCH_BYTES:
                return None
            column = column.dictionary_decode()
    except pa.ArrowInvalid:
        return None
    types, kind = pa.types, column.type
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind):
        return column
    longest = _longest(column.flatten() if types.is_list(kind) or types.is_large_list(kind) else column)
    return column if longest is not None and longest <= LONG_TEXT else None


def _longest(texts: pa.Array) -> int | None:
    """Bytes of the longest text; None of anything else."""
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        return None
    return pc.max(pc.binary_length(texts)).as_py() or 0


def small_parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch in parts whose values take at most `BATCH_BYTES` as Python objects, or are those of one row.

    Raises:
        ValueError: times with nanoseconds, which Python does not have.
    """
    batch = _in_microseconds(batch)
    rows = batch.num_rows
    for column in batch.columns:
        if _repeats_values(column.type):
            rows = min(rows, max(1, BATCH_BYTES // max(1, column.get_total_buffer_size())))
    for start in range(0, batch.num_rows, max(1, rows)):
        yield batch.slice(start, rows)


def _in_microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Times as Python has them; left as they are, their values would depend on whether pandas is installed."""
    for i, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            try:
                time = batch.column(i).cast(pa.timestamp("us", field.type.tz))
            except pa.ArrowInvalid as error:  # which also says that a file is damaged
                raise ValueError(str(error)) from None
            batch = batch.set_column(i, field.name, time)
    return batch


def has_long_values(batch: pa.RecordBatch) -> bool:
    """Whether a value may be longer than `LONG_TEXT`."""
    for column in batch.columns:
        if column.get_total_buffer_size() > LONG_TEXT:
            longest = _longest(column)
            if longest is None or longest > LONG_TEXT:
                return True
    return False


def cut(value: Any) -> Any:
    """A value with its texts cut after `LONG_TEXT`: no caption is as long, and the same one can come in every row."""
    if isinstance(value, str | bytes):
        return value[:LONG_TEXT] if len(value) > LONG_TEXT else value
    return [cut(each) for each in value] if isinstance(value, list) else value


def _repeats_values(column_type: pa.DataType) -> bool:
    """Whether several rows of a column can have one value, which is stored once."""
    types = pa.types
    kinds = [types.is_dictionary, types.is_run_end_encoded, types.is_string_view, types.is_binary_view]
    if any(fits(column_type) for fits in (*kinds, types.is_list_view, types.is_large_list_view)):
        return True
    return any(_repeats_values(column_type.field(i).type) for i in range(column_type.num_fields))


def _update(digest: Any, batch: pa.RecordBatch) -> None:
    """Add the values of a batch to a digest, however its buffers lie: of each column `repr((name, values))`."""
    for name in batch.schema.names:
        between = f"({name!r}, ["
        for part in small_parts(batch.select([name])):
            values = as_bytes(part.column(0)).to_pylist()
            if not has_long_values(part):
                digest.update(f"{between}{repr(values)[1:-1]}".encode(errors="replace"))
                between = ", "
                continue
            for value in map(cut, values):
                digest.update(f"{between}{value!r}".encode(errors="replace"))
                between = ", "
        digest.update(b"])")


class ColumnReader(Reader):
    """Reads images from a column of files, one of which is open at a time."""

    def __init__(self, file_type: type[ColumnFile], files: SourceFiles, column: str) -> None:
        self._file_type, self._files, self._column = file_type, files, column
        self._by_path = UrlReader(files.root) if isinstance(files.root, Url) else PathReader(files.root)
        self._open: tuple[int, ColumnFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but the open file."""
        return self.__dict__ | {"_open": None}

    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The images; missing where the column is null. Where a struct has a path alone, that file is read."""
        assert locators is not None
        for file, group, row in locators.tolist():
            image = self._image(file, group, row)
            if isinstance(image, str):
                yield from self._by_path.read([image], None)
            else:
                yield image

    def _image(self, file: int, group: int, row: int) -> bytes | str | Status:
        """An image, or its path, or why there is neither."""
        try:
            if self._open is None or self._open[0] != file:
                self._open = None
                with self._files.open(file) as opened:  # by descriptor: another process may remove its name
                    self._open = file, self._file_type(Path(f"/proc/self/fd/{opened.fileno()}"))
            scalar = self._open[1].value(self._column, group, row)
            for name in ("bytes", "path") if isinstance(scalar, pa.StructScalar) and scalar.is_valid else ():
                if name in scalar and scalar[name].is_valid:
                    scalar = scalar[name]
                    break
            value: bytes | str | dict[str, Any] | None = scalar.as_py()
        except RejectedImageError as rejected:
            return rejected.status
        except (*UNREADABLE, StopIteration, LookupError):  # damaged, or not the file that was planned
            self._open = None
            return Status.UNREADABLE
        return Status.MISSING if not value or isinstance(value, dict) else value
