"""Tables of images and captions: JSON lines or arrays, CSV and TSV, read as a stream of rows.

No image is opened. A row that is not as promised is an error that names the file, the line and the remedy: a table is
read before any work is spent, so that stopping early is the cheapest moment to learn of it.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import CacheError
from ..format import SourceInfo
from ..storage.atomic import sha256_file
from .delimited import Dialect, delimited_records, quotes_fields
from .download import local_file
from .json_array import array_records, is_json_array
from .jsonl import blocks, records
from .jsonl_arrow import has_columns, plain_batch
from .records import RecordParser
from .source import RowBatch, Source, SourceRow, batched

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
        """The same as columns; JSON lines are parsed as such, block by block, where a block is plain."""
        path, suffix = self._path()
        name, encoding = self.info.path, self.info.encoding
        if suffix not in JSON_LINES or not has_columns(self.info) or is_json_array(path, name):
            yield from super().batches()
            return
        for block in blocks(path, name, encoding):
            batch = plain_batch(block.data, self.info)
            if batch is not None:
                yield batch
            else:
                yield from batched(self._parsed(records(name, block)))

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
