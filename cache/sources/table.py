"""Tables of images and captions: JSON lines or arrays, CSV and TSV, read as a stream of rows.

No image is opened. A row that is not as promised is an error that names the file, the line and the remedy: a table is
read before any work is spent, so that stopping early is the cheapest moment to learn of it.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from ..errors import CacheError
from ..format import SourceInfo
from ..storage.atomic import sha256_file
from .column_parser import ColumnParser, Columns, Rows
from .delimited import Dialect, delimited_records, following_records, quotes_fields, require_header
from .delimited_columns import Fields, Rest, read_header, read_rows, split_fields
from .download import local_file
from .json_array import array_records, is_json_array
from .jsonl import MAX_LINE_BYTES, blocks, records
from .jsonl_arrow import JsonColumns
from .records import RecordParser
from .source import RowBatch, Source, SourceRow, batched
from .text_files import open_utf8

JSON_LINES = (".jsonl", ".ndjson")
_PLAIN = (*JSON_LINES, ".csv", ".tsv")
SUFFIXES = (*_PLAIN, *(f"{suffix}.gz" for suffix in _PLAIN))


class TableSource(Source):
    """A `.jsonl`, `.ndjson`, `.csv` or `.tsv` file with a record a line; CSV and TSV begin with a header line.

    In JSON a field of captions may hold a string, a list of strings or null. A file that begins as an array of records
    does is read as one, whatever its name. Each may be compressed with gzip.
    """

    kind = "table"

    def __init__(self, info: SourceInfo) -> None:
        super().__init__(info)
        self._parser = RecordParser(info, left_out=self.left_out)
        self._columns = ColumnParser(info, self.left_out)

    def rows(self) -> Iterator[SourceRow]:
        """Every record.

        Raises:
            CacheError: the file or a record is not readable as such.
        """
        path, suffix = self._path()
        name, encoding = self.info.path, self.info.encoding
        if suffix in (".csv", ".tsv"):
            yield from self._parsed(delimited_records(path, name, self._dialect(suffix), self._parser.fields, encoding))
        elif is_json_array(path, name):
            yield from self._parsed(array_records(path, name, encoding), " record ")
        else:
            for block in blocks(path, name, encoding):
                yield from self._parsed(records(name, block))

    def batches(self) -> Iterator[RowBatch]:
        """The same as columns, read as such block by block, where a block is plain; JSON arrays record by record."""
        path, suffix = self._path()
        name, encoding = self.info.path, self.info.encoding
        is_json_lines = suffix in JSON_LINES and not is_json_array(path, name)
        is_plain_json = is_json_lines and not (self._columns.is_conditional or self.info.language_field)
        # Reading within a limit ends with a batch, so its batches stay those of records.
        if self._columns.is_possible and (self.info.limit is None or is_plain_json):
            if is_json_lines:
                yield from filter(len, self._json_batches(path, name, encoding))
                return
            if suffix in (".csv", ".tsv"):
                yield from filter(len, self._delimited_batches(path, self._dialect(suffix)))
                return
        yield from super().batches()

    def _json_batches(self, path: Path, name: str, encoding: str) -> Iterator[RowBatch]:
        columns = JsonColumns(self.info, self._columns)
        for block in blocks(path, name, encoding):
            batch = columns.batch(block.data)
            if batch is not None:
                yield batch
            else:
                yield from batched(self._parsed(records(name, block)))

    def _delimited_batches(self, path: Path, dialect: Dialect) -> Iterator[RowBatch]:
        name, required = self.info.path, self._parser.fields
        with open_utf8(path, name, self.info.encoding) as file:
            block, line = file.readline(MAX_LINE_BYTES + 1), 1
            header = read_header(block, dialect) if block else None
            if header is not None:
                require_header(header, path, name, dialect.delimiter, required)
                if any(header.count(field) != 1 for field in (*required, *self._columns.conditions)):
                    header = None
            if header is not None:
                line = 2
                while block := self._read_ahead(file, dialect):
                    fields = split_fields(block, dialect, len(header))
                    batch = None if fields is None else self._batch_of(header, fields)
                    if batch is None:
                        break
                    yield batch
                    line += block.count(b"\n")
            if header is None or block:
                rest = Rest.of(block, file)
                # Closed before the file is, also where a record is refused.
                with closing(following_records(rest, path, name, dialect, required, header, line)) as following:
                    yield from batched(self._parsed(following))

    def _read_ahead(self, file: BinaryIO, dialect: Dialect) -> bytes:
        """The next rows of a CSV or TSV."""
        try:
            return read_rows(file, dialect)
        except Exception:
            for _ in self.rows():  # a record before the damage may be at fault, too, and is named first
                pass
            raise

    def _batch_of(self, header: list[str], fields: Fields) -> RowBatch | None:
        def column(name: str, rows: Rows | None) -> pa.Array:
            return fields.column(header.index(name), rows)

        return self._columns.batch(Columns(len(fields.starts), column))

    def sha256(self) -> str:
        """Digest of the file's bytes."""
        return sha256_file(local_file(self.info.path))

    def _path(self) -> tuple[Path, str]:
        """The file on the disk, and its suffix without `.gz`."""
        name = self.info.path
        suffix = Path(name.lower().removesuffix(".gz")).suffix
        if suffix not in (*_PLAIN, ".json"):
            raise CacheError(f"{name}: unknown kind of table {suffix!r}; known are {', '.join(SUFFIXES)}")
        path = local_file(name)
        if not path.is_file():
            raise CacheError(f"{name}: no such file")
        self.left_out.clear()
        self.notes.clear()
        return path, suffix

    @cached_property
    def _quotes_fields(self) -> bool | None:
        """Kept, because it takes all of the file, and rows are begun more than once."""
        return quotes_fields(local_file(self.info.path), self.info.path, self.info.encoding)

    def _dialect(self, suffix: str) -> Dialect:
        if suffix == ".csv":
            return Dialect(",", is_quoted=True)
        is_quoted = self._quotes_fields
        if is_quoted is not None:
            how = (
                'quotes fields where needed, as csv writers do: "" in them is one' if is_quoted else "quotes no fields"
            )
            self.notes.append(
                f"{self.info.path} {how}{'' if is_quoted else ': quotation marks belong to the captions'}"
            )
        return Dialect("\t", bool(is_quoted))

    def _parsed(self, records: Iterable[tuple[int, dict[str, Any]]], unit: str = "") -> Iterator[SourceRow]:
        for line, record in records:
            row = self._parser.row(record, line, f"{self.info.path}:{unit}{line}")
            if row is not None:
                yield row
