"""Blocks of JSON lines as columns, by Arrow's parser, several times as fast as line by line.

Only for plain blocks: those for which Arrow and Python agree. Whatever is odd makes a block not plain, and
`records.RecordParser` reads it, so that there is one definition of what is taken or refused, and one wording.
"""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.json
from numpy.typing import NDArray

from ..format import SourceInfo
from ..storage.ragged_bytes import RaggedBytes
from .jsonl import MAX_LINE_BYTES
from .source import RowBatch

LONG_LINE = 500  # bytes, above which a line may be nested deeper than Python's parser goes
LONG_NUMBER = 4000  # bytes, above which a line may hold a number of more digits than Python's parser takes
DEEP = 100  # opened brackets
INF = re.compile(rb"Inf[\s,}\]]")


def has_columns(info: SourceInfo) -> bool:
    """Whether the fields that are asked for can be read as columns."""
    filtered = info.where is not None or info.split is not None
    return info.images and not (filtered or info.teacher_fields or info.language_field)


def plain_batch(block: bytes, info: SourceInfo) -> RowBatch | None:
    """The rows of a block of lines, or None if it is not plain.

    Args:
        block: whole lines.
        info: with `has_columns`.
    """
    starts, ends = _lines(block)
    if not _is_plain(block, starts, ends):
        return None
    try:
        schema = _schema(json.loads(block[: ends[0]]), info)
        if schema is None:
            return None
        table = pyarrow.json.read_json(
            pa.BufferReader(block),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
        table.validate(full=True)  # also of UTF-8: escapes may be halves of surrogate pairs
        _as_one_string(block).validate(full=True)
    except (pa.ArrowInvalid, ValueError, RecursionError):
        return None
    keys = table[info.image_field].combine_chunks()
    if len(table) != len(ends) or keys.null_count:
        return None
    columns = {name: _captions(table[name].combine_chunks()) for name in info.text_fields}
    key_texts = _texts(keys)
    if not np.diff(key_texts.offsets).all():
        return None
    if not _has_all_fields(block, starts, ends, table, info.text_fields):
        return None
    return _batch(key_texts, [columns[name] for name in info.text_fields], info.languages)


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
    return b"\0" in block or b"-NaN" in block or (b"Inf" in block and INF.search(block) is not None)


def _as_one_string(block: bytes) -> pa.Array:
    offsets = pa.py_buffer(np.array([0, len(block)], np.int64))
    return pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(block)])


def _schema(record: object, info: SourceInfo) -> pa.Schema | None:
    """The types of the fields that are asked for, as the first line has them."""
    if not isinstance(record, dict):
        return None
    types = {
        name: pa.list_(pa.string()) if isinstance(record.get(name), list) else pa.string() for name in info.text_fields
    }
    return pa.schema({**types, info.image_field: pa.string()})


def _texts(strings: pa.Array) -> RaggedBytes:
    """The texts of an array, without a copy; null is an empty text."""
    _, offsets, data = strings.buffers()
    ends = np.frombuffer(offsets, np.int32)[strings.offset : strings.offset + len(strings) + 1].astype(np.int64)
    raw = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]] if data and data.size else np.zeros(0, np.uint8)
    return RaggedBytes(raw, ends - ends[0])


def _captions(column: pa.Array) -> tuple[RaggedBytes, NDArray[np.int64]]:
    """The captions of a field, without nulls, and the row of each."""
    rows, values = np.arange(len(column)), column
    if pa.types.is_list(column.type):
        values = column.flatten()
        sizes = np.nan_to_num(column.value_lengths().to_numpy(zero_copy_only=False)).astype(np.int64)
        rows = np.repeat(rows, sizes)
    texts = _texts(values)
    if not values.null_count:
        return texts, rows
    valid = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
    return texts.take(valid), rows[valid]


def _has_all_fields(
    block: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64], table: pa.Table, names: list[str]
) -> bool:
    """Whether no field is absent. To Arrow, an absent field and null are one."""
    for name in names:
        if not table[name].null_count:
            continue
        for i in np.flatnonzero(table[name].is_null().to_numpy()).tolist():
            if name not in json.loads(block[starts[i] : ends[i]]):
                return False
    return True


def _batch(keys: RaggedBytes, columns: list[tuple[RaggedBytes, NDArray[np.int64]]], languages: list[str]) -> RowBatch:
    """The captions of all fields in the order of their rows."""
    captions, image_index = columns[0]
    fields = np.zeros(len(image_index), np.int64)
    if len(columns) > 1:
        captions = RaggedBytes.joined([texts for texts, _ in columns])
        image_index = np.concatenate([rows for _, rows in columns])
        fields = np.repeat(np.arange(len(columns)), [len(rows) for _, rows in columns])
        order = np.argsort(image_index, kind="stable")
        captions, image_index, fields = captions.take(order), image_index[order], fields[order]
    tags = languages * (len(columns) if len(languages) == 1 else 1)
    return RowBatch.of(keys, captions, image_index, languages=[tags[i] for i in fields.tolist()] if tags else None)
