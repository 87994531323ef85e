"""Hostile tables: whatever the bytes, rows or one clear error, soon, and in bounded memory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clipglot.cache.read.cache import Cache
from clipglot.cache.sources.jsonl import MAX_LINE_BYTES
from clipglot.cache.sources.table import SUFFIXES
from clipglot.cache.write.plan import plan_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cache_info import INFO
from support.fresh_files import write_fresh
from support.table_outcome import open_table, outcome

MEMORY_MB = 400  # above what the imports take
FILE_BYTES = 2**31

seeds = st.sampled_from(
    [
        b'{"image": "a.png", "text": "x"}\n{"image": "b.png", "text": ["y", null]}\n',
        "\ufeff{\"image\": \"б.png\", \"text\": \"кот\\ud83d\"}\r\n".encode(),
        b'image,text\r\na.png,"x, ""y""\nz"\r\n\r\nb.png,w\r\n',
        "image\ttext\n猫.png\t\"猫\n".encode(),
        b'{"image": "a", "text": "x", "n": [1e400, -0, 1E+2, {"": {}}]}',
    ]
)  # fmt: skip
bits = st.sampled_from(
    [b"", b"\0", b"\xff", b"\xed\xa0\x80", b'"', b"\\u", b"\n", b"\r", b"[" * 2000, b"{", b"9" * 5000, b"\\ud83d"]
)  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(
    data=seeds,
    edits=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 20), bits | st.binary(max_size=3)), max_size=4),
    suffix=st.sampled_from(SUFFIXES),
)
def test_changed_tables_are_rows_or_one_clear_error(
    data: bytes, edits: list[tuple[int, int, bytes]], suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for at, size, new in edits:
        data = data[:at] + new + data[at + size :]
    path = write_fresh(tmp_path_factory.getbasetemp() / f"changed{suffix}", data)
    num, error = outcome(path)
    assert not error or (num == 0 and error.startswith(f"{path}:"))


ENDLESS = {  # start, what is repeated behind it, and the error
    "0.jsonl": (b'{"image": "a", "text": "', b"x", r":1: a line of more than 16,777,216 bytes"),
    "1.jsonl": (b'{"image": "a", "text": "x"}\n', b"\0", r":2: a line of more than"),
    "2.jsonl": (b"", b"[", r":1: a line of more than"),
    "3.jsonl": (b'{"image": "a", "text": "x", "n": ', b"9", r":1: a line of more than"),
    "4.csv": (b"image,text\n", b"x", r":2: (a row of more than 16,777,216 characters|not a row of a table)"),
    "5.csv": (b"image,text\n", b'"' + b"x" * 60 + b'\n",', r":2: a row of more than 16,777,216 characters"),
    "6.csv": (b"image,text\na,\"", b"x" * 60 + b"\n", r":2: (a row of more than|not a row of a table)"),
    "7.csv": (b"", b",", r"(a row of more than|several columns)"),
    "8.tsv": (b"image\ttext\n", b"\t", r":2: (a row of more than|[\d,]+ columns)"),
}  # fmt: skip
READ_ALL = """
import resource, sys
from pathlib import Path
from support.table_outcome import outcome

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    error = outcome(Path(path))[1]
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, error)
"""


def test_an_endless_line_takes_little_memory(tmp_path: Path) -> None:
    """The peak of all files is in bounds, so that of each is."""
    for name, (start, repeated, _) in ENDLESS.items():
        with open(tmp_path / name, "wb") as file:
            file.write(start + repeated * (MAX_LINE_BYTES * 5 // 4 // len(repeated)))
            file.truncate(FILE_BYTES)  # the rest is a hole: it takes no room
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    paths = [str(tmp_path / name) for name in ENDLESS]
    command = [sys.executable, "-c", READ_ALL, *paths]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    for (name, (_, _, message)), line in zip(ENDLESS.items(), done.stdout.splitlines(), strict=True):
        peak_mb, _, error = line.partition(" ")
        assert re.search(message, error), name
        assert int(peak_mb) < MEMORY_MB, name


@pytest.mark.parametrize("at", [MAX_LINE_BYTES - 1, MAX_LINE_BYTES, MAX_LINE_BYTES + 1])
def test_the_limit_of_a_line_is_exact(at: int, tmp_path: Path) -> None:
    record = json.dumps({"image": "a", "text": ["x", ""]})
    path = tmp_path / "m.jsonl"
    path.write_text(f"{record}\n{record[:-3]}{'y' * (at - len(record))}{record[-3:]}\n{record}")
    num, error = outcome(path)
    assert (num, bool(error)) == ((3, False) if at <= MAX_LINE_BYTES else (0, True))


def test_texts_of_megabytes_and_odd_texts_cost_a_caption(tmp_path: Path) -> None:
    captions = ["кот", "x" * 5_000_000, "a\0b", "\ud83d", "\u2003", "猫" * 21_845, "猫" * 21_846]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(json.dumps({"image": "a.png", "text": text}) for text in captions))
    info = plan_cache(tmp_path / "c.zarr", open_table(path).batches(), INFO)
    assert info.dropped_captions == {"too long": 2, "holds NUL": 1, "not unicode": 1, "empty": 1}
    assert Cache(tmp_path / "c.zarr").captions() == ["кот", "猫" * 21_845]
