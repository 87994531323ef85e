"""JSON lines as columns equal JSON lines read one by one: the same rows, the same errors."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.format import SourceInfo
from clipglot.cache.sources import jsonl as json_lines
from clipglot.cache.sources.captions import MAX_CAPTION_BYTES
from clipglot.cache.sources.column_parser import ColumnParser
from clipglot.cache.sources.jsonl_arrow import JsonColumns
from clipglot.cache.sources.source import RowBatch
from clipglot.cache.sources.table import TableSource
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batch_content import Content, columns_as_records
from support.fresh_files import write_fresh


def source(path: Path, *text_fields: str, languages: tuple[str, ...] = ()) -> SourceInfo:
    return SourceInfo(
        path=str(path),
        sha256="",
        image_root="",
        image_field="image",
        text_fields=list(text_fields or ("text",)),
        languages=list(languages),
    )


def both(info: SourceInfo) -> Content:
    return columns_as_records(lambda: TableSource(info))


def plain_batch(block: bytes, info: SourceInfo) -> RowBatch | None:
    return JsonColumns(info, ColumnParser(info, Counter())).batch(block)


ODD_TEXTS = [
    "",
    " ",
    "\u3000",
    "\u2003 ",
    "\x1c",
    "\x85",
    "\xa0",
    "\u200b",
    "「",
    "あ",
    "x\0y",
    "\0",
    "\ud83d",
    "\udc00x",
    "Inf ",
]
ODD_CAPTIONS = [3, True, {}, ["x", None], [["x"]], [3]]
texts = st.text(max_size=6) | st.sampled_from([*ODD_TEXTS, "a\\", '"}\n{'])
captions = st.none() | texts | st.lists(texts, max_size=3) | st.sampled_from(ODD_CAPTIONS)
scalars = st.none() | texts | st.integers() | st.floats()
others = st.recursive(scalars, lambda x: st.lists(x, max_size=2) | st.dictionaries(texts, x, max_size=2))
plain = st.fixed_dictionaries(
    {"image": st.sampled_from("abc"), "text": st.just("x") | texts}, optional={"other": others}
)
odd = st.dictionaries(st.sampled_from(["image", "text", "zh", "image "]), captions, max_size=4)
written_lines = st.tuples(plain | odd, st.booleans()).map(lambda given: json.dumps(given[0], ensure_ascii=given[1]))
odd_lines = st.sampled_from(
    [
        "",
        " ",
        "{}",
        "[]",
        '{"image": "a", "text": "x", "text": "y"}',
        '{"image": "a", "text": "x", "z": 1, "z": 2}',
        '{"image": "a", "text": "x"}{"image": "b", "text": "y"}',
        '{"image": "a", "text": "x"} {"image": "b", "text":',
        '{"image": "a", "text": "x"}}',
        '{"image": "a", "text": "x", "z": Inf}',
        '{"image": "a", "text": "x", "z": [-Inf]}',
        '{"image": "a", "text": "x", "z": -NaN}',
        '{"image": "a", "text": "x", "z": [NaN, Infinity, -Infinity, 1e999, 1E-5]}',
        '{"image": "a", "text": "x", "z": 01}',
        '{"image": "a", "text": "x", "z": 1.}',
        '{"image": "a", "text": "x", "z": +1}',
        '{"image": "a", "text": "x", "z": "\t"}',
        '{"image": "a", "text": "x", "z": "\\x"}',
        '{"image": "a", "text": "x", "z": "\\ud800"}',
        '{"image": "a", "text": "x",}',
        '{"image": "a", "text": "x"}\r',
        '{"image": "a", "text": "x"} ',
        ' {"image": "a", "text": "x"}',
        '{"image": "a", "text": "x"}\0',
        '{"image": "a", "text": "x"}/**/',
        '{"image": "a", "text": ["x", "\\u0000", "' + "я" * (MAX_CAPTION_BYTES // 2 + 1) + '"]}',
        '{"image": "a", "text": "x", "z": ' + "[" * 3000 + "]" * 3000 + "}",
        '{"image": "a", "text": "x", "z": ' + "9" * 5000 + "}",
        '{"image": "a", "text": "x", "\\u0074ext": "y"}',
        '{"image": "2020-01-01", "text": "1970-01-01T00:00:00Z"}',
        "\ufeff",
    ]
)


@settings(deadline=None, max_examples=400)
@given(
    lines=st.lists(written_lines, max_size=8) | st.lists(written_lines | odd_lines, max_size=5),
    fields=st.sampled_from([("text",), ("text", "zh"), ("zh", "text"), ("text", "text")]),
    tagged=st.booleans(),
    broken=st.tuples(st.integers(0, 10_000), st.binary(max_size=2)) | st.none(),
    line_break=st.sampled_from(["\n", "\r\n"]),
)
def test_columns_equal_lines(
    lines: list[str],
    fields: tuple[str, ...],
    tagged: bool,
    broken: tuple[int, bytes] | None,
    line_break: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = line_break.join(lines).encode(errors="surrogatepass")
    if broken:
        at = broken[0] % (len(data) + 1)
        data = data[:at] + broken[1] + data[at:]
    path = write_fresh(tmp_path_factory.getbasetemp() / "fuzzed.jsonl", data)
    both(source(path, *fields, languages=fields if tagged else ()))


@pytest.mark.parametrize(
    "line",
    [
        '{"image": "a", "text": "x"}',
        '{"image": "a", "text": "Infant", "other": [NaN, -Infinity]}\r',
        '{"image": "a", "text": null}',
        '{"image": "a", "text": ["x", "", "\\u0000"]}',
        '{"image": "a", "text": "' + "猫" * 5000 + '"}',
        '{"text": "\\ud83d\\ude00", "zh": 3, "image": "猫/a"}',
    ],
)
def test_common_lines_are_read_as_columns(line: str, tmp_path: Path) -> None:
    assert plain_batch(f"{line}\n".encode() * 3, source(tmp_path)) is not None
    path = tmp_path / "m.jsonl"
    path.write_text(f"{line}\n" * 3)
    content = both(source(path))
    assert (len(content.rows), content.error) == (3, "")


def test_line_numbers_continue_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record: dict[str, Any] = {"image": "a", "text": "x" * 50}
    path = tmp_path / "m.jsonl"
    path.write_text("\ufeff" + f"{json.dumps(record)}\n" * 300 + "\n" + json.dumps(record | {"text": 3}))
    monkeypatch.setattr(json_lines, "BLOCK_BYTES", 1000)
    split = list(json_lines.blocks(path, path))
    assert len(split) > 10
    assert b"".join(block.data for block in split) == path.read_bytes()[3:]
    assert both(source(path)).error == f"{path}:302: 'text' must be a string or a list of strings, found 3"


def test_an_endless_line_is_named_and_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"image": "a", "text": "x"}\n{"image": "')
        file.truncate(2**31)  # a hole: it takes no room
    assert both(source(path)).error.startswith(
        f"{path}:2: a line of more than 16,777,216 bytes: write one record a line"
    )
