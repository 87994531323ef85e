"""Blocks of CSV and TSV files as columns, several times as fast as row by row.

Only plain blocks: those in which each quotation mark opens or closes a field, or is doubled within one, and each row
has the columns of the header. The first block that is not plain, and all that follows, is left to
`delimited.following_records`, so that there is one definition of what is taken or refused, and one wording.
"""

import io
from typing import BinaryIO, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .column_parser import Rows
from .delimited import Dialect
from .jsonl import BLOCK_BYTES, MAX_LINE_BYTES
from .jsonl_arrow import as_one_string

MAX_FIELDS = BLOCK_BYTES // 2  # of a block; each takes tens of bytes
LINE_FEED, CARRIAGE_RETURN, QUOTE = b'\n\r"'


class Fields(NamedTuple):
    """The fields of n rows of C columns, as places in a block.

    Attributes:
        block: whole rows.
        starts: `[n, C]`.
        ends: `[n, C]`.
        has_quotes: whether some fields are quoted.
        has_doubled: whether some quoted fields have quotation marks, which are doubled.
    """

    block: bytes
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    has_quotes: bool
    has_doubled: bool

    def column(self, i: int, rows: Rows | None = None) -> pa.Array:
        """The texts of a column at some rows, ascending, or at all."""
        starts, ends = self.starts[:, i], self.ends[:, i]
        if rows is not None:
            starts, ends = starts[rows], ends[rows]
        if not len(starts):
            return pa.array([], pa.large_string())
        places = np.empty(2 * len(starts), np.int64)
        places[::2], places[1::2] = starts, ends
        if self.has_quotes:
            raw = np.frombuffer(self.block, np.uint8)
            is_quoted = (ends > starts) & (raw.take(starts, mode="clip") == QUOTE)
            places[::2] += is_quoted
            places[1::2] -= is_quoted
        # Every second text lies between two fields of the column.
        buffers = [None, pa.py_buffer(places), pa.py_buffer(self.block)]
        texts = pa.Array.from_buffers(pa.large_string(), len(places) - 1, buffers)
        texts = texts.take(pa.array(np.arange(0, len(places), 2)))
        return pc.replace_substring(texts, '""', '"') if self.has_doubled else texts


def read_header(line: bytes, dialect: Dialect) -> list[str] | None:
    """The names of the columns; None if the first line is not plain."""
    fields = split_fields(line, dialect)
    if fields is None or len(fields.starts) != 1:
        return None
    return [fields.column(i)[0].as_py() for i in range(fields.starts.shape[1])]


def read_rows(file: BinaryIO, dialect: Dialect) -> bytes:
    """Read a block of whole rows, if it is plain; empty at the end of the file."""
    parts = [file.read(BLOCK_BYTES)]
    if parts[0] and not parts[0].endswith(b"\n"):
        parts.append(file.readline(MAX_LINE_BYTES + 1))
    if dialect.is_quoted:
        is_open, size = sum(part.count(b'"') for part in parts) % 2, 0
        while is_open and size <= MAX_LINE_BYTES and (line := file.readline(MAX_LINE_BYTES + 1)):
            parts.append(line)
            is_open, size = (is_open + line.count(b'"')) % 2, size + len(line)
    return b"".join(parts)


def split_fields(block: bytes, dialect: Dialect, num_columns: int | None = None) -> Fields | None:
    """Split whole rows; None if they are not plain.

    Args:
        block: the rows; blank lines among them are none.
        dialect: of the file.
        num_columns: that each row must have; by default those of the first.
    """
    raw = np.frombuffer(block, np.uint8)
    returns = np.flatnonzero(raw == CARRIAGE_RETURN)
    if b"\0" in block or (raw.take(returns + 1, mode="clip") != LINE_FEED).any():
        return None
    try:
        as_one_string(block).validate(full=True)
    except pa.ArrowInvalid:
        return None
    is_end = raw == LINE_FEED
    is_separator = is_end | (raw == ord(dialect.delimiter))
    if np.count_nonzero(is_separator) > MAX_FIELDS:
        return None
    separators = np.flatnonzero(is_separator)
    quotes = np.flatnonzero(raw == QUOTE) if dialect.is_quoted else np.zeros(0, np.int64)
    if len(quotes):
        if not _are_well_formed(raw, quotes, ord(dialect.delimiter)):
            return None
        separators = separators[np.searchsorted(quotes, separators) % 2 == 0]
    ends = np.flatnonzero(is_end[separators])
    if not block.endswith(b"\n"):
        separators = np.append(separators, len(block))
        ends = np.append(ends, len(separators) - 1)
    starts = np.append(0, separators[:-1] + 1)
    stops = separators.copy()
    is_return = (stops[ends] > starts[ends]) & (raw.take(stops[ends] - 1, mode="clip") == CARRIAGE_RETURN)
    stops[ends] -= is_return
    sizes = np.diff(ends, prepend=-1)
    is_blank = (sizes == 1) & (starts[ends] == stops[ends])
    if is_blank.any():
        starts, stops, sizes = np.delete(starts, ends[is_blank]), np.delete(stops, ends[is_blank]), sizes[~is_blank]
    num_columns = num_columns or (int(sizes[0]) if len(sizes) else 1)
    if (sizes != num_columns).any():
        return None
    has_doubled = bool((quotes[2::2] == quotes[1:-1:2] + 1).any())
    shape = (-1, num_columns)
    fields = Fields(block, starts.reshape(shape), stops.reshape(shape), len(quotes) > 0, has_doubled)
    row_bytes = fields.ends[:, -1] - fields.starts[:, 0] + 2  # with the end of the line
    return None if len(row_bytes) and row_bytes.max() > MAX_LINE_BYTES else fields


def _are_well_formed(raw: NDArray[np.uint8], quotes: NDArray[np.int64], delimiter: int) -> bool:
    """Whether each mark opens a field at its beginning, closes one at its end, or is one of two within one.

    Args:
        raw: bytes of whole rows.
        quotes: places of all marks.
        delimiter: between fields.
    """
    if len(quotes) % 2:
        return False
    opening, closing = quotes[::2], quotes[1::2]
    follows = np.append(False, opening[1:] == closing[:-1] + 1)
    before = raw.take(opening - 1, mode="clip")
    begins = (opening == 0) | (before == LINE_FEED) | (before == delimiter)
    after = raw.take(closing + 1, mode="clip")
    stops = (closing == len(raw) - 1) | (after == LINE_FEED) | (after == CARRIAGE_RETURN) | (after == delimiter)
    is_followed = np.append(follows[1:], False)
    return bool((begins | follows).all() and (stops | is_followed).all())


class Rest(io.RawIOBase):
    """What is left of a file of which some bytes were read too many."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        """Begin with these bytes, then go on with the file."""
        self._head, self._file = memoryview(head), file

    @classmethod
    def of(cls, head: bytes, file: BinaryIO) -> BinaryIO:
        """The rest, buffered."""
        return cast(BinaryIO, io.BufferedReader(cls(head, file)))

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """See `io.RawIOBase`."""
        part = self._head[: len(buffer)] if self._head else self._file.read(len(buffer))
        self._head = self._head[len(part) :]
        buffer[: len(part)] = part
        return len(part)
