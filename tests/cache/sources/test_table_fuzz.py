"""Hostile manifests: whatever the bytes, rows or one clear error, soon, and in bounded memory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import SourceInfo
from clipglot.cache.read.cache import Cache
from clipglot.cache.sources.jsonl import MAX_LINE_BYTES
from clipglot.cache.sources.table import SUFFIXES, TableSource
from clipglot.cache.write.plan import plan_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import INFO

MEMORY_MB = 400  # above what the imports take


def table(path: Path) -> TableSource:
    return TableSource(SourceInfo(path=str(path), sha256="", image_root="", image_field="image", text_fields=["text"]))


def outcome(path: Path) -> tuple[int, str]:
    """Rows and no error, or no rows and the error; the fast way and the careful way agree."""
    outcomes = []
    for read in (lambda: sum(map(len, table(path).batches())), lambda: sum(1 for _ in table(path).rows())):
        try:
            outcomes.append((read(), ""))
        except CacheError as error:
            outcomes.append((0, str(error)))
    assert outcomes[0] == outcomes[1]
    return outcomes[0]


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
def test_changed_manifests_are_rows_or_one_clear_error(
    data: bytes, edits: list[tuple[int, int, bytes]], suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for at, size, new in edits:
        data = data[:at] + new + data[at + size :]
    path = tmp_path_factory.getbasetemp() / f"changed{suffix}"
    path.write_bytes(data)
    num, error = outcome(path)
    assert not error or (num == 0 and error.startswith(f"{path}:"))


@pytest.mark.parametrize(
    ("name", "start", "repeated", "message"),
    [
        ("m.jsonl", b'{"image": "a", "text": "', b"x", r":1: a line of more than 16,777,216 bytes"),
        ("m.jsonl", b'{"image": "a", "text": "x"}\n', b"\0", r":2: a line of more than"),
        ("m.jsonl", b"", b"[", r":1: a line of more than"),
        ("m.jsonl", b'{"image": "a", "text": "x", "n": ', b"9", r":1: a line of more than"),
        ("m.csv", b"image,text\n", b"x", r":2: (a row of more than 16,777,216 characters|not a row of a table)"),
        ("m.csv", b"image,text\n", b'"\n",', r":2: a row of more than 16,777,216 characters"),
        ("m.csv", b"image,text\na,\"", b"x\n", r":2: (a row of more than|not a row of a table)"),
        ("m.csv", b"", b",", r"(a row of more than|several columns)"),
        ("m.tsv", b"image\ttext\n", b"\t", r":2: (a row of more than|[\d,]+ columns)"),
    ],
)  # fmt: skip
def test_a_line_of_hundreds_of_megabytes_takes_little_memory(
    name: str, start: bytes, repeated: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    with open(path, "wb") as file:
        file.write(start)
        for _ in range(60):
            file.write(repeated * (2**22 // len(repeated)))
    script = (
        "import resource, sys; from pathlib import Path; import test_table_fuzz as fuzz\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(fuzz.outcome(Path(sys.argv[1]))[1])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    tests = Path(__file__).parents[2]  # for `support`, and this module by its name
    here = {"env": os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(Path(__file__).parent), *sys.path])}}
    printed = subprocess.run(
        [sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True, **here
    )
    error, peak_mb = printed.stdout.splitlines()
    assert re.search(message, error)
    assert int(peak_mb) < MEMORY_MB


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
    info = plan_cache(tmp_path / "c.zarr", table(path).batches(), INFO)
    assert info.dropped_captions == {"too long": 2, "holds NUL": 1, "not unicode": 1, "empty": 1}
    assert Cache(tmp_path / "c.zarr").captions() == ["кот", "猫" * 21_845]
