"""Small Parquet and Arrow files in which one long value stands in every row."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROWS, VALUE_BYTES = 500, 4_000_000


def repeated() -> pa.DictionaryArray:
    """A long text, once, in every row."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), pa.array(["x" * VALUE_BYTES]))


def table(text: pa.Array) -> pa.Table:
    return pa.table({"image": [f"{i}.jpg" for i in range(ROWS)], "text": text})


def parquet_dictionary(path: Path) -> None:
    pq.write_table(table(repeated()), path, compression="zstd")


def parquet_list(path: Path) -> None:
    lists = pa.ListArray.from_arrays(pa.array(range(ROWS + 1), pa.int32()), repeated())
    pq.write_table(table(lists), path, compression="zstd")


def parquet_prefixes(path: Path) -> None:
    """Each value is the one before it, and its own last bytes."""
    text = pa.array(("x" * VALUE_BYTES for _ in range(ROWS)), pa.large_string())
    encoding = {"image": "PLAIN", "text": "DELTA_BYTE_ARRAY"}
    pq.write_table(table(text), path, use_dictionary=False, column_encoding=encoding, compression="zstd")


def arrow_dictionary(path: Path) -> None:
    with pa.ipc.new_file(path, (written := table(repeated())).schema) as writer:
        writer.write_table(written)


def arrow_views(path: Path) -> None:
    """Every view leads to the same bytes."""
    view = VALUE_BYTES.to_bytes(4, "little") + b"xxxx" + bytes(8)
    buffers = [None, pa.py_buffer(view * ROWS), pa.py_buffer(b"x" * VALUE_BYTES)]
    text = pa.Array.from_buffers(pa.string_view(), ROWS, buffers)
    with pa.ipc.new_file(path, (written := table(text)).schema) as writer:
        writer.write_table(written)


COLUMN_BOMBS: dict[str, Callable[[Path], None]] = {
    "dictionary.parquet": parquet_dictionary,
    "list.parquet": parquet_list,
    "prefixes.parquet": parquet_prefixes,
    "dictionary.arrow": arrow_dictionary,
    "views.arrow": arrow_views,
}
