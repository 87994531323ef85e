"""Tables of images and captions: JSON lines, CSV and TSV, read as a stream of rows.

No image is opened. A row that is not as promised is an error that names the file, the line and the remedy: a table is
read before any work is spent, so that stopping early is the cheapest moment to learn of it.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TextIO

from ..errors import CacheError
from ..format import SourceInfo
from ..storage.atomic import sha256_file
from .download import local_file
from .jsonl import MAX_LINE_BYTES, blocks, records
from .jsonl_arrow import has_columns, plain_batch
from .records import RecordParser, is_unicode
from .source import RowBatch, Source, SourceRow, batched

JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (*JSON_LINES, ".csv", ".tsv")


class TableSource(Source):
    """A `.jsonl`, `.ndjson`, `.csv` or `.tsv` file with a record a line; CSV and TSV begin with a header line.

    In JSON lines a field of captions may hold a string, a list of strings or null.
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
        if suffix in JSON_LINES:
            for block in blocks(path):
                yield from self._parsed(records(self.info.path, block))
        else:
            yield from self._parsed(_table_records(path, self.info.path, "," if suffix == ".csv" else "\t"))

    def batches(self) -> Iterator[RowBatch]:
        """The same as columns; JSON lines are parsed as such, block by block, where a block is plain."""
        path, suffix = self._path()
        if suffix not in JSON_LINES or not has_columns(self.info):
            yield from super().batches()
            return
        for block in blocks(path):
            batch = plain_batch(block.data, self.info)
            if batch is not None:
                yield batch
            else:
                yield from batched(self._parsed(records(self.info.path, block)))

    def sha256(self) -> str:
        """Digest of the file's bytes."""
        return sha256_file(local_file(self.info.path))

    def _path(self) -> tuple[Path, str]:
        """The file on the disk, and its suffix."""
        name = self.info.path
        suffix = Path(name).suffix.lower()
        if suffix not in SUFFIXES:
            raise CacheError(f"{name}: unknown kind of table {suffix!r}; known are {', '.join(SUFFIXES)}")
        path = local_file(name)
        if not path.is_file():
            raise CacheError(f"{name}: no such file")
        self.left_out.clear()
        return path, suffix

    def _parsed(self, records: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[SourceRow]:
        for line, record in records:
            row = self._parser.row(record, line, f"{self.info.path}:{line}")
            if row is not None:
                yield row


class _LimitedLines:
    """The lines of a file, as many as a row may have: a row without end is not read whole."""

    def __init__(self, file: TextIO, name: str) -> None:
        self._file, self._name = file, name
        self._num, self._row, self._size = 0, 1, 0

    def begin_row(self) -> int:
        """The number of the next line, which begins a row."""
        self._row, self._size = self._num + 1, 0
        return self._row

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(MAX_LINE_BYTES + 1 - self._size):
            self._size += len(line)
            self._num += 1
            if self._size > MAX_LINE_BYTES:
                raise CacheError(
                    f"{self._name}:{self._row}: a row of more than {MAX_LINE_BYTES:,} characters: "
                    "write one record a line, close its quotation marks, or drop it"
                )
            yield line


def _table_records(path: Path, name: str, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # TSV in the wild does not quote: a lone quotation mark in a caption must not swallow the next lines.
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    # Strict: a quotation mark that is never closed is an error, not a caption of the size of the file.
    # Bytes that are not UTF-8 pass as surrogates, because a decoder that reads ahead could not name their line.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = _LimitedLines(file, name)
        reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
        line = 1
        try:
            header = _next_row(reader)
            if header is None:
                raise CacheError(f"{name}: empty: expected a header line with the names of the columns")
            _require_header(header, name)
            line = lines.begin_row()
            while (fields := _next_row(reader)) is not None:
                if not is_unicode("".join(fields)):
                    raise CacheError(f"{name}:{line}: not UTF-8 text: save the file as UTF-8, or mend the row")
                if fields and len(fields) != len(header):
                    raise CacheError(
                        f"{name}:{line}: {len(fields)} columns where the header has {len(header)}: "
                        "quote fields that hold the delimiter"
                    )
                if fields:
                    yield line, dict(zip(header, fields, strict=True))
                line = lines.begin_row()
        except csv.Error as error:
            raise CacheError(f"{name}:{line}: not a row of a table ({error}): mend or drop it") from None


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row. csv's limit of a field's length, one for the whole process, is raised only meanwhile."""
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def _require_header(header: list[str], name: str) -> None:
    if not is_unicode("".join(header)):
        raise CacheError(f"{name}:1: not UTF-8 text: save the file as UTF-8")
    if len(header) == 1 and ";" in header[0]:
        raise CacheError(
            f"{name}:1: one column, {header[0]!r}: semicolons separate nothing here: save it with commas (.csv) or "
            "tabs (.tsv)"
        )
    repeated = sorted({column for column in header if column and header.count(column) > 1})
    if repeated:
        raise CacheError(f"{name}:1: several columns are called {', '.join(repeated)}: rename them")
