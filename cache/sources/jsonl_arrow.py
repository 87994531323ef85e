"""Blocks of JSON lines as columns, by Arrow's parser, several times as fast as line by line.

Only for plain blocks: those for which Arrow and Python agree. Whatever is odd makes a block not plain, and
`records.RecordParser` reads it, so that there is one definition of what is taken or refused, and one wording.
"""

import json
import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
from numpy.typing import NDArray

from ..format import SourceInfo
from .column_parser import ColumnParser, Columns, taken
from .jsonl import MAX_LINE_BYTES
from .records import SPLIT
from .source import RowBatch
from .where_columns import MAX_WHOLE

LONG_LINE = 500  # bytes, above which a line may be nested deeper than Python's parser goes
LONG_NUMBER = 4000  # bytes, above which a line may hold a number of more digits than Python's parser takes
DEEP = 100  # opened brackets
LINES_OF_TYPES = 100  # that are looked at for the type of a field, which may be null in the first
SCALARS = {bool: pa.bool_(), int: pa.float64(), float: pa.float64(), str: pa.string()}
INF = re.compile(rb"Inf[\s,}\]]")


class JsonColumns:
    """Reads blocks of lines as columns."""

    def __init__(self, info: SourceInfo, parser: ColumnParser) -> None:
        """Remember what is read.

        Args:
            info: the fields.
            parser: of these fields.
        """
        self._parser, self._texts = parser, info.text_fields
        always_texts = [info.image_field, *([info.language_field] if info.language_field else [])]
        self._strings = [*always_texts, *([SPLIT] if info.split is not None else [])]
        known = {*self._strings, *self._texts}
        self._scalars = [name for name in parser.conditions if name not in known]

    def batch(self, block: bytes) -> RowBatch | None:
        """The rows of a block of whole lines, or None if it is not plain."""
        starts, ends = _lines(block)
        if not _is_plain(block, starts, ends):
            return None
        try:
            schema = self._schema(block, starts, ends)
            if schema is None:
                return None
            table = pyarrow.json.read_json(
                pa.BufferReader(block),
                pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
                pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
            as_one_string(block).validate(full=True)
            if b"\\" in block:  # escapes may be halves of surrogate pairs
                table.validate(full=True)
        except (pa.ArrowInvalid, ValueError, RecursionError):
            return None
        columns = {name: table[name].combine_chunks() for name in schema.names}
        if len(table) != len(ends) or not _has_all_fields(block, starts, ends, columns):
            return None
        if any(_may_be_rounded(columns[name]) for name in self._scalars):
            return None
        return self._parser.batch(Columns(len(table), lambda name, rows: taken(columns[name], rows)))

    def _schema(self, block: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> pa.Schema | None:
        """The types of the fields that are asked for, as the first lines have them."""
        types: dict[str, pa.DataType] = {}
        for i in range(min(len(ends), LINES_OF_TYPES)):
            record = json.loads(block[starts[i] : ends[i]])
            if not isinstance(record, dict):
                return None
            if not i:
                is_list = {name: isinstance(record.get(name), list) for name in self._texts}
                types |= {name: pa.list_(pa.string()) if is_list[name] else pa.string() for name in self._texts}
                types |= dict.fromkeys(self._strings, pa.string())
            for name in self._scalars:
                value = record.get(name)
                if name not in types and value is not None:
                    if not isinstance(value, tuple(SCALARS)):
                        return None
                    types[name] = SCALARS[type(value)]
            if all(name in types for name in self._scalars):
                break
        return pa.schema(types | {name: pa.string() for name in self._scalars if name not in types})


def _lines(block: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where lines start and end, without their line breaks."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    if not block.endswith(b"\n"):
        ends = np.append(ends, len(block))
    return np.append(0, ends[:-1] + 1), ends


def _is_plain(block: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> bool:
    """Whether each line is one object as far as its ends tell, and nothing in it is too deep or too long for Python.

    Lines that begin and end with a brace hold whole objects: no JSON goes on with an opening brace after a closing one.
    """
    raw, lengths = np.frombuffer(block, np.uint8), ends - starts
    if lengths.min() < 3 or lengths.max() > MAX_LINE_BYTES:
        return False
    last = raw[ends - 1]
    last = np.where(last == ord("\r"), raw[ends - 2], last)
    if (raw[starts] != ord("{")).any() or (last != ord("}")).any() or _may_be_arrow_only(block):
        return False
    for i in np.flatnonzero(lengths > LONG_LINE).tolist():
        a, b = int(starts[i]), int(ends[i])
        if b - a > LONG_NUMBER or block.count(b"[", a, b) + block.count(b"{", a, b) > DEEP:
            try:
                json.loads(block[a:b])
            except (ValueError, RecursionError):
                return False
    return True


def _may_be_arrow_only(block: bytes) -> bool:
    """Whether a block may hold what Arrow's parser takes and Python's refuses."""
    if b"\0" in block:
        return True
    raw = np.frombuffer(block, np.uint8)
    # By one character first: to look for several takes longer than all else here.
    minus = raw.take(np.flatnonzero(raw == ord("N")) - 1, mode="clip") == ord("-")
    if minus.any() and b"-NaN" in block:
        return True
    following = raw.take(np.flatnonzero(raw == ord("I")) + 1, mode="clip") == ord("n")
    return bool(following.any()) and INF.search(block) is not None


def as_one_string(block: bytes) -> pa.Array:
    """Bytes as one text of Arrow, to have them validated."""
    offsets = pa.py_buffer(np.array([0, len(block)], np.int64))
    return pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(block)])


def _has_all_fields(
    block: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64], columns: Mapping[str, pa.Array]
) -> bool:
    """Whether no field is absent. To Arrow, an absent field and null are one."""
    for name, column in columns.items():
        if not column.null_count:
            continue
        for i in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist():
            if name not in json.loads(block[starts[i] : ends[i]]):
                return False
    return True


def _may_be_rounded(column: pa.Array) -> bool:
    """Whether a number may have been a whole one that float64 does not hold."""
    return pa.types.is_float64(column.type) and pc.any(pc.greater_equal(pc.abs(column), MAX_WHOLE)).as_py() is True
