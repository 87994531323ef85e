"""CSV and TSV files, read as a stream of records, and the dialect of a TSV.

A TSV either quotes fields where needed, as csv writers and pandas do, or quotes nothing, as hand-made lists do. Only
the whole file tells which, because a caption may begin and end with a quotation mark.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TextIO

from ..errors import CacheError
from .image_names import has_image_extension
from .jsonl import MAX_LINE_BYTES
from .records import is_unicode
from .text_files import SAMPLE_BYTES, UTF_8, encoding_remedy, open_utf8

SHOWN_COLUMNS = 40  # names of columns in a message
_NUMBER_OR_URL = re.compile(r"[-+]?[\d.]+|https?://.*", re.IGNORECASE)
_UNQUOTED = re.compile(rb'[^"\t\r\n]*+')
_IN_QUOTES = re.compile(rb'(?:[^"]|"")*+')


class Dialect(NamedTuple):
    """How the fields of a file are separated and quoted."""

    delimiter: str
    is_quoted: bool


def delimited_records(
    path: Path, name: str, dialect: Dialect, fields: Collection[str], encoding: str = UTF_8
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the records after the header line; yields line and record of each.

    Args:
        path: of the file.
        name: of the file, for messages.
        dialect: of the file.
        fields: that a record must have; they tell a file without a header line.
        encoding: of the file.

    Raises:
        CacheError: there is no header line, or a line is not a record.
    """
    with open_utf8(path, name, encoding) as content:
        yield from following_records(content, path, name, dialect, fields)


def following_records(
    content: BinaryIO,
    path: Path,
    name: str,
    dialect: Dialect,
    fields: Collection[str],
    header: list[str] | None = None,
    line: int = 1,
) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """The records of a file that is open, see `delimited_records`.

    Args:
        content: from its beginning, or from the beginning of a row.
        path: of the file.
        name: of the file, for messages.
        dialect: of the file.
        fields: that a record must have.
        header: names of the columns, if they are read already.
        line: number of the first line of `content`.

    Raises:
        CacheError: there is no header line, or a line is not a record.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if dialect.is_quoted else csv.QUOTE_NONE
    # Bytes that are not UTF-8 pass as surrogates, because a decoder that reads ahead could not name their line.
    file = io.TextIOWrapper(content, encoding=UTF_8, errors="surrogateescape", newline="")
    lines = _LimitedLines(file, name, line)
    # Strict: a quotation mark that is never closed is an error, not a caption of the size of the file.
    reader = csv.reader(lines, delimiter=dialect.delimiter, quoting=quoting, strict=True)
    try:
        if header is None:
            header = _next_row(reader)
            if header is None:
                raise CacheError(f"{name}: empty: expected a header line with the names of the columns")
            require_header(header, path, name, dialect.delimiter, fields)
            line = lines.begin_row()
        while (row := _next_row(reader)) is not None:
            if not is_unicode("".join(row)):
                raise _not_utf8(path, name, line, row, dialect.delimiter)
            if row and len(row) != len(header):
                raise CacheError(
                    f"{name}:{line}: {len(row)} columns where the header has {len(header)}: "
                    "quote fields that hold the delimiter" + ("" if dialect.is_quoted else ", and the header")
                )
            if row:
                yield line, dict(zip(header, row, strict=True))
            line = lines.begin_row()
    except csv.Error as error:
        raise CacheError(f"{name}:{line}: not a row of a table ({error}): mend or drop it") from None
    finally:
        file.detach()  # who opened the file closes it


class _LimitedLines:
    """The lines of a file, as many as a row may have: a row without end is not read whole."""

    def __init__(self, file: TextIO, name: str, first: int) -> None:
        self._file, self._name = file, name
        self._num, self._row, self._size = first - 1, first, 0

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


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """The next row. csv's limit of a field's length, one for the whole process, is raised only meanwhile."""
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(limit)


def require_header(header: list[str], path: Path, name: str, delimiter: str, fields: Collection[str]) -> None:
    """Refuse a first line that cannot name the columns.

    Raises:
        CacheError: it is not UTF-8, looks like a record, has one column that is several, or repeats a name.
    """
    if not is_unicode("".join(header)) or any("\0" in column for column in header):
        raise _not_utf8(path, name, 1, header, delimiter)
    if not set(fields) <= set(header) and (cell := next(filter(_is_data, header), None)):
        raise CacheError(
            f"{name}:1: a record ({cell!r:.80}) where a header line should be: put the names of the columns before it, "
            f"e.g. image{delimiter}text"
        )
    for other, what in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
        if len(header) == 1 and other in header[0] and other != delimiter:
            raise CacheError(
                f"{name}:1: one column, {header[0]!r:.200}: {what} separate nothing here: save it with commas "
                "(.csv) or tabs (.tsv)"
            )
    repeated = sorted(column for column, num in Counter(filter(None, header)).items() if num > 1)
    if repeated:
        raise CacheError(f"{name}:1: several columns are called {', '.join(repeated[:SHOWN_COLUMNS])}: rename them")


def _not_utf8(path: Path, name: str, line: int, row: list[str], delimiter: str) -> CacheError:
    content = delimiter.join(row).encode(UTF_8, "surrogateescape")
    if line == 1 or b"\0" in content:  # of UTF-16 a row is no whole line
        with open_utf8(path, name) as file:
            content = file.read(SAMPLE_BYTES)
    return CacheError(f"{name}:{line}: not UTF-8 text: {encoding_remedy(content)}")


def _is_data(cell: str) -> bool:
    """Whether a cell of the first line is no name of a column: a file of an image, a number or a URL."""
    return has_image_extension(cell) or _NUMBER_OR_URL.fullmatch(cell) is not None


def quotes_fields(path: Path, name: str, encoding: str = UTF_8) -> bool | None:
    """Whether a TSV quotes fields where needed, decided by all of it; None if it has no quotation marks.

    It does if all its fields are well-formed so, and it shows it: by a doubled quotation mark in a quoted field, by a
    quoted header, or because its lines alone do not have the columns of the header. Without a quoted header it does not
    if one field would swallow lines that are rows by themselves: a caption may begin with a quotation mark, and one
    some rows later may end with one.
    """
    with open_utf8(path, name, encoding) as file:
        if not any(b'"' in part for part in iter(lambda: file.read(2**20), b"")):
            return None
    with open_utf8(path, name, encoding) as file:
        return _QuoteScan().is_quoted(file)


class _QuoteScan:
    """Reads a TSV as if it quoted fields where needed, line by line.

    Attributes:
        num_fields: of the row so far.
        is_open: whether the line before ended within a quoted field.
        is_doubled: whether a quoted field has a quotation mark, which is doubled.
    """

    def __init__(self) -> None:
        self.num_fields, self.is_open, self.is_doubled = 0, False, False

    def is_quoted(self, file: BinaryIO) -> bool:
        """Decide about a file."""
        num_tabs, lines_fit, row_fits, has_quoted_header = -1, True, True, False
        while line := file.readline(MAX_LINE_BYTES + 1):
            if num_tabs < 0:
                num_tabs, has_quoted_header = line.count(b"\t"), line.startswith(b'"')
            is_continued = self.is_open
            if not is_continued:
                self.num_fields, row_fits = 0, True
            if not self._take(line):
                return False
            is_blank = not line.strip(b"\r\n")
            fits = is_blank or line.count(b"\t") == num_tabs
            lines_fit, row_fits = lines_fit and fits, row_fits and fits
            is_row_swallowed = is_continued and not is_blank and fits and (row_fits or self.is_open)
            if is_row_swallowed and num_tabs and not has_quoted_header:
                return False
            if not self.is_open and not is_blank and self.num_fields != num_tabs + 1:
                return False
        return not self.is_open and (not lines_fit or self.is_doubled or has_quoted_header)

    def _take(self, line: bytes) -> bool:
        """Take in a line; returns whether its fields are well-formed."""
        if not self.is_open and b'"' not in line:
            self.num_fields += line.count(b"\t") + 1
            return True
        at = 0
        while True:
            if self.is_open or line[at : at + 1] == b'"':
                match = _IN_QUOTES.match(line, at if self.is_open else at + 1)
                assert match is not None
                self.is_doubled |= b'""' in match[0]
                self.is_open, at = match.end() == len(line), match.end() + 1
                if self.is_open:
                    return True
            else:
                match = _UNQUOTED.match(line, at)
                assert match is not None
                at = match.end()
            self.num_fields += 1
            if line[at : at + 1] != b"\t":
                return not line[at:].strip(b"\r\n")
            at += 1
