"""Tables: rows of each format, and errors that name the file, the line and the remedy."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import SourceInfo
from clipglot.cache.sources.source import SourceRow
from clipglot.cache.sources.table import SUFFIXES, TableSource
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fresh_files import write_fresh


def read(path: Path, *text_fields: str, image_field: str = "image") -> list[SourceRow]:
    fields = list(text_fields or ("text",))
    return list(
        TableSource(
            SourceInfo(path=str(path), sha256="", image_root="", image_field=image_field, text_fields=fields)
        ).rows()
    )


def written(path: Path, content: str | bytes) -> Path:
    return write_fresh(path, content if isinstance(content, bytes) else content.encode())


def test_json_lines_hold_a_caption_a_list_or_null(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"image": "a.png", "text": "кошка"},
        {"image": "б/猫.png", "text": ["고양이", "🐈\nna dvou řádcích"], "more": 1},
        {"image": "c.png", "text": None},
        {"image": "d.png", "text": []},
    ]
    path = written(tmp_path / "m.jsonl", "\n".join(json.dumps(record) for record in records))
    assert read(path) == [
        SourceRow(1, "a.png", ["кошка"], [], []),
        SourceRow(2, "б/猫.png", ["고양이", "🐈\nna dvou řádcích"], [], []),
        SourceRow(3, "c.png", [], [], []),
        SourceRow(4, "d.png", [], [], []),
    ]


def test_captions_of_several_columns_keep_the_order_of_the_flags(tmp_path: Path) -> None:
    jsonl = written(tmp_path / "m.jsonl", '{"file": "a.png", "ru": "кот", "zh": ["猫", "貓"]}')
    table = written(tmp_path / "m.csv", "file,ru,zh\na.png,кот,猫")
    assert read(jsonl, "zh", "ru", image_field="file") == [SourceRow(1, "a.png", ["猫", "貓", "кот"], [], [])]
    assert read(table, "zh", "ru", image_field="file") == [SourceRow(2, "a.png", ["猫", "кот"], [], [])]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.jsonl", '\ufeff{"image": "a", "text": "x"}\r\n\n  \n{"image": "b", "text": "y"}\n'),
        ("m.ndjson", '\ufeff\n{"image": "a", "text": "x"}\n\n{"image": "b", "text": "y"}'),
        ("m.csv", "\ufeffimage,text\r\na,x\r\n\r\n\r\nb,y\r\n"),
        ("m.TSV", "\ufefftext\timage\nx\ta\n\n\ny\tb"),
    ],
)
def test_a_byte_order_mark_and_blank_lines_are_skipped(name: str, content: str, tmp_path: Path) -> None:
    rows = read(written(tmp_path / name, content))
    assert [(row.key, row.captions) for row in rows] == [("a", ["x"]), ("b", ["y"])]
    assert rows[1].line > rows[0].line


def test_csv_quotes_newlines_and_commas_and_tsv_quotes_nothing(tmp_path: Path) -> None:
    table = written(tmp_path / "m.csv", 'image,text\na,"one,\ntwo ""three"""\nb,4" nails\n')
    assert read(table) == [SourceRow(2, "a", ['one,\ntwo "three"'], [], []), SourceRow(4, "b", ['4" nails'], [], [])]
    plain = written(tmp_path / "m.tsv", 'image\ttext\na\t"unclosed, and fine\nb\ty\n')
    assert read(plain) == [SourceRow(2, "a", ['"unclosed, and fine'], [], []), SourceRow(3, "b", ["y"], [], [])]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.xml", "", r"unknown kind of table '\.xml'; known are \.jsonl"),
        ("m.csv", "", r"m\.csv: empty: expected a header line"),
        ("m.csv", "file,text\na,x", r"m\.csv:2: no field 'image' \(found: file, text\): pass --image-field"),
        ("m.csv", "image;text\na;x", r"m\.csv:1: one column, 'image;text': semicolons separate nothing here: save"),
        ("m.csv", "image,text\na,x,y", r"m\.csv:2: 3 columns where the header has 2: quote fields"),
        ("m.csv", "image,text\n,x", r"m\.csv:2: 'image' must be the path of an image, found ''"),
        ("m.csv", 'image,text\na,x\nb,"never closed\nc,y\n', r"m\.csv:3: not a row of a table .*: mend or drop it"),
        ("m.csv", "image,text,text\na,x,y", r"m\.csv:1: several columns are called text: rename them"),
        ("m.csv", b"image,text\n" + b"a,x\n" * 3000 + b"b,\xff\n", r"m\.csv:3002: not UTF-8 text"),
        ("m.tsv", "image\ttext\na\tx".encode("utf-16"), r"m\.tsv:1: not UTF-8 text: .*image.*--encoding utf-16"),
        ("m.jsonl", '{"image": "a"}', r"m\.jsonl:1: no field 'text' \(found: image\): pass --text-field"),
        (
            "m.jsonl",
            '\n{"image": "a", "text": 3}',
            r"m\.jsonl:2: 'text' must be a string or a list of strings, found 3",
        ),
        ("m.jsonl", '{"image": "a", "text": [["x"]]}', r"m\.jsonl:1: 'text' must be"),
        (
            "m.jsonl",
            '{"image": null, "text": "x"}',
            r"m\.jsonl:1: 'image' must be the path of an image, found null: mend or drop",
        ),
        ("m.jsonl", '{"image": "\\ud800", "text": "x"}', r"m\.jsonl:1: 'image' holds half of a surrogate pair"),
        ("m.jsonl", '{"image": "a", "text": "x"}\n["a"]', r"m\.jsonl:2: expected a JSON object, found list"),
        ("m.jsonl", '{"image": "a", "text": "x"}{', r"m\.jsonl:1: not a line of JSON in UTF-8 .*: mend or drop it"),
        ("m.jsonl", b'{"image": "a", "text": "\xff"}', r"m\.jsonl:1: not a line of JSON in UTF-8"),
        ("m.jsonl", "[" * 100_000, r"m\.jsonl:1: not a line of JSON"),
        ("m.jsonl", '{"a": ' + "9" * 5000 + "}", r"m\.jsonl:1: not a line of JSON"),
    ],
)
def test_an_error_names_the_file_the_line_and_the_remedy(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CacheError, match=message):
        read(written(tmp_path / name, content))


def test_an_absent_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"absent\.jsonl: no such file"):
        read(tmp_path / "absent.jsonl")


LIMITS = """
import csv
from pathlib import Path
limits = [csv.field_size_limit()]
import clipglot.cache.sources.kinds
from support.table_outcome import open_table
limits.append(csv.field_size_limit())
path = Path("long.csv")
path.write_text("image,text\\n" + "".join(f"{i}.jpg,{'x' * 200_000}\\n" for i in range(3)))
for row in open_table(path).rows():
    assert len(row.captions[0]) == 200_000
    limits.append(csv.field_size_limit())
path.write_text('image,text\\n1.jpg,"never closed')
try:
    list(open_table(path).rows())
except clipglot.cache.errors.CacheError:
    limits.append(csv.field_size_limit())
print(len(limits), len(set(limits)))
"""


def test_the_field_limit_of_csv_is_not_changed(tmp_path: Path) -> None:
    """It is the whole process's: after an import, between rows and after an error."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LIMITS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "6 1\n"


table_like = st.lists(
    st.sampled_from(
        [b"image", b"text", b",", b"\t", b'"', b"\n", b"\r", b"\xff", b"\0", b"{", b'{"image": "a", "text": ']
    )
    | st.binary(max_size=4),
    max_size=30,
).map(b"".join)


@settings(deadline=None, max_examples=300)
@given(
    suffix=st.sampled_from(SUFFIXES), header=st.sampled_from([b"", b"image,text\n", b"image\ttext\n"]), body=table_like
)
def test_arbitrary_bytes_are_rows_or_one_clear_error(
    suffix: str, header: bytes, body: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = written(tmp_path_factory.getbasetemp() / f"fuzzed{suffix}", header + body)
    try:
        rows = read(path)
    except CacheError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
    else:
        assert all(row.key.encode() for row in rows)
