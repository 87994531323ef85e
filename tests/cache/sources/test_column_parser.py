"""Tables read as columns equal tables read record by record: rows, what is left out, and errors, in every format."""

import csv
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clipglot.cache.format import SourceInfo
from clipglot.cache.read.cache import Cache
from clipglot.cache.sources import delimited_columns, parquet_files
from clipglot.cache.sources.parquet import ArrowSource, ParquetSource
from clipglot.cache.sources.source import Source, batched
from clipglot.cache.sources.table import TableSource
from clipglot.cache.write.plan import plan_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batch_content import Content, columns_as_records
from support.cache_bytes import files
from support.cache_info import INFO
from support.fresh_files import write_fresh

KINDS: dict[str, type[Source]] = {".parquet": ParquetSource, ".arrow": ArrowSource}


def opened(path: Path, **options: Any) -> Callable[[], Source]:
    fields: dict[str, Any] = {
        "image_field": "image",
        "text_fields": ["text"],
        "sha256": "",
        "image_root": str(path.parent),
    }
    info = SourceInfo(path=str(path), **fields | options)
    return lambda: KINDS.get(path.suffix, TableSource)(info)


def both(path: Path, **options: Any) -> Content:
    return columns_as_records(opened(path, **options))


texts = st.sampled_from(
    ["", "x", "кот", "猫", 'a "b"', "a,b", "a\tb", "a\nb", "a\r\nb", '"', '""', " ", "\ufeff", "\0", "é"]
)
numbers = st.sampled_from([0, 1, 3, 0.25, -1.5, 2**53 + 1, 1e300, float("nan")])
CONDITIONS = [
    None,
    "s > 0.3",
    "s is not None and s > 0.3",
    "s != '' and s > 0.3",
    "0 <= s < 2 and lang in ('zh', 'ja')",
    "lang not in ('zh', 'ja')",
    "lang == 'zh' or s == 1",
    "lang == None or lang != 'ru'",
    "not (s > 1)",
    "'lang' == 'zh'",
    "1 < 2",
    "text != ''",
    "text == 'x' or 'a' in text",
    "image is not None and image != ''",
    "s > 5 and absent == 1",
    "'a' in tags",
    "ok",
    "ok and s > 0",
]
options = st.fixed_dictionaries(
    {},
    optional={
        "where": st.sampled_from(CONDITIONS),
        "split": st.sampled_from(["train", "val", "\udc80"]),
        "language_field": st.just("lang"),
        "text_fields": st.sampled_from([["text", "en"], ["en", "text"]]),
        "limit": st.sampled_from([1, 3]),
    },
)
plain_records = st.fixed_dictionaries(
    {
        "image": st.sampled_from(["a.png", "b.png", "c/猫.png"]),
        "text": texts,
        "en": texts,
        "s": st.sampled_from([0, 0.25, 1, 3.5]),
        "lang": st.sampled_from(["zh", "ja", "ru", "en"]),
        "split": st.sampled_from(["train", "val"]),
        "ok": st.booleans(),
    }
)
odd_values = st.none() | texts | numbers | st.booleans() | st.lists(st.none() | texts, max_size=2) | st.just([[3]])
odd_records = st.tuples(
    plain_records, st.dictionaries(st.sampled_from(["image", "text", "s", "lang", "ok"]), odd_values)
).map(lambda both: both[0] | both[1])
short_records = st.tuples(plain_records, st.sampled_from(["text", "s", "lang", "split"])).map(
    lambda both: {name: value for name, value in both[0].items() if name != both[1]}
)
nulls = st.tuples(plain_records, st.sampled_from(["image", "text", "s", "lang", "ok"])).map(
    lambda two: two[0] | {two[1]: None}
)


@settings(deadline=None, max_examples=500)
@given(
    records=st.lists(plain_records | nulls, max_size=6)
    | st.lists(plain_records | nulls | odd_records | short_records, max_size=4),
    given=options,
)
def test_json_lines(
    records: list[dict[str, Any]], given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = "".join(f"{json.dumps(record)}\n" for record in records)
    both(write_fresh(tmp_path_factory.getbasetemp() / "columns.jsonl", lines.encode()), **given)


def test_whole_numbers_beyond_float64_are_compared_as_they_are(tmp_path: Path) -> None:
    numbers = [2**53, 2**53 + 1, 2**53 + 2]
    path = write(tmp_path, ".jsonl", [{"image": f"{i}.png", "text": "x", "s": n} for i, n in enumerate(numbers)])
    content = both(path, where=f"s > {2**53} and s != {2**53 + 2}")
    assert [row[0] for row in content.rows] == ["1.png"]
    assert [row[0] for row in both(path, where=f"{float(2**53)} < s <= {2**53 + 2}.0").rows] == ["1.png", "2.png"]


cells = texts | st.sampled_from(["0.5", "1", " 2", "3.5e-1", "nan", "1_0", "zh", "ja", "train", "a.png", "True"])
edits = st.sampled_from(
    [b"", b'"', b"\r", b"\n", b",", b"\t", b"\xff", b"\0", b'""', b'",', b'\n"', b"\xed\xa0\x80", b"\r\n"]
)


@settings(deadline=None, max_examples=1500)
@given(
    rows=st.lists(
        plain_records | st.tuples(plain_records, st.just("s"), cells).map(lambda t: t[0] | {t[1]: t[2]}), max_size=6
    ),
    how=st.sampled_from([{}, {"quoting": csv.QUOTE_ALL}, {"lineterminator": "\r\n"}, {"quoting": csv.QUOTE_NONE}]),
    suffix=st.sampled_from([".csv", ".tsv"]),
    edit=st.none() | st.tuples(st.integers(0, 300), st.integers(0, 3), edits),
    given=options,
    header=st.sampled_from([None, None, None, ["image", "text"], ["image"], ["image", "text", "text"], [""]]),
)
def test_csv_and_tsv(
    rows: list[dict[str, Any]],
    how: dict[str, Any],
    suffix: str,
    edit: tuple[int, int, bytes] | None,
    given: dict[str, Any],
    header: list[str] | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    file, delimiter = io.StringIO(), "," if suffix == ".csv" else "\t"
    names = header or ["image", "text", "en", "s", "lang", "split", "ok"]
    table = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    if how.get("quoting") == csv.QUOTE_NONE:
        file.write("".join(delimiter.join(row) + "\n" for row in table))
    else:
        csv.writer(file, delimiter=delimiter, **{"lineterminator": "\n"} | how).writerows(table)
    data = file.getvalue().encode()
    if edit:
        at = edit[0] % (len(data) + 1)
        data = data[:at] + edit[2] + data[at + edit[1] :]
    both(write_fresh(tmp_path_factory.getbasetemp() / f"columns{suffix}", data), **given)


lists = st.lists(st.none() | texts, max_size=3)
COLUMNS: dict[str, list[tuple[pa.DataType, st.SearchStrategy[Any]]]] = {
    "image": [
        (pa.string(), st.sampled_from(["a.png", "b.png"])),
        (pa.large_string(), st.sampled_from(["a.png", "猫.png"])),
        (pa.binary(), st.binary(max_size=2)),
        (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["a.png", "b.png"])),
    ],
    "text": [
        (pa.string(), texts),
        (pa.large_string(), texts),
        (pa.list_(pa.string()), lists),
        (pa.large_list(pa.large_string()), lists),
        (pa.dictionary(pa.int32(), pa.string()), texts),
        (pa.list_(pa.list_(pa.string())), st.just([["x"]])),
        (pa.int64(), st.integers(0, 3)),
    ],
    "s": [
        (pa.float64(), st.sampled_from([0, 0.25, 1, 3.5, float("nan")])),
        (pa.float32(), st.sampled_from([0.25, 0.5])),
        (pa.int64(), st.sampled_from([0, 1, 2**53 + 1])),
        (pa.string(), st.sampled_from(["0.25", "1", "", " 3"])),
        (pa.timestamp("ns"), st.integers(0, 3)),
        (pa.decimal128(5, 2), st.integers(0, 3)),
    ],
    "lang": [
        (pa.string(), st.sampled_from(["zh", "ja", "ru", ""])),
        (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["zh", "en"])),
        (pa.list_(pa.string()), st.just(["zh"])),
        (pa.string(), st.just("not a tag")),
    ],
    "ok": [(pa.bool_(), st.booleans()), (pa.null(), st.none())],
    "tags": [(pa.list_(pa.string()), lists)],
}
COLUMNS["en"] = COLUMNS["text"][:3]


@st.composite
def tables(draw: Callable[[st.SearchStrategy[Any]], Any]) -> pa.Table:
    num, columns = draw(st.integers(0, 7)), {}
    for name, kinds in COLUMNS.items():
        kind, values = draw(st.sampled_from([*kinds[:1] * 3, *kinds]))
        has_nulls = draw(st.sampled_from([False, False, True]))
        columns[name] = pa.array(
            draw(st.lists(values | st.none() if has_nulls else values, min_size=num, max_size=num)), kind
        )
    return pa.table(columns)


@settings(deadline=None, max_examples=500)
@given(table=tables(), suffix=st.sampled_from([".parquet", ".arrow"]), given=options, group=st.integers(1, 4))
def test_parquet_and_arrow(
    table: pa.Table, suffix: str, given: dict[str, Any], group: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"columns{suffix}"
    path.unlink(missing_ok=True)
    given = {name: value for name, value in given.items() if name != "split"}
    if suffix == ".parquet":
        pq.write_table(table, path, row_group_size=group)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
    both(path, **given)


def write(folder: Path, suffix: str, records: list[dict[str, Any]]) -> Path:
    """Records in a file of each format."""
    path = folder / f"pairs{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif suffix == ".arrow":
        with pa.ipc.new_file(path, (table := pa.Table.from_pylist(records)).schema) as writer:
            writer.write_table(table)
    elif suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    else:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]), delimiter="," if suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(records)
    return path


SUFFIXES = [".jsonl", ".csv", ".tsv", ".parquet", ".arrow"]
RECORDS: list[dict[str, Any]] = [
    {"image": f"{i % 90}.png", "text": f'кот, "{i}"', "en": f"cat\n{i}", "lang": ["zh", "ru"][i % 2], "s": i / 100}
    for i in range(200)
]


def unread(self: Source, *arguments: Any) -> Any:
    raise AssertionError("read record by record")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"where": "s > 0.5 and lang in ('zh', 'ja')"},
        {"where": "s >= 0.25", "language_field": "lang", "text_fields": ["en", "text"]},
        {
            "where": "0.1 < s <= 1.2 and lang == 'ru' and text != ''",
            "languages": ["ru", "en"],
            "text_fields": ["text", "en"],
        },
    ],
)
def test_common_tables_are_read_as_columns(
    suffix: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache has the same bytes, and no record was made."""
    monkeypatch.setattr(delimited_columns, "BLOCK_BYTES", 500)
    monkeypatch.setattr(parquet_files, "ROWS_AT_A_TIME", 50)
    source = opened(write(tmp_path, suffix, RECORDS), **options)
    both(Path(source().info.path), **options)
    careful = source()
    plan_cache(tmp_path / "records.zarr", batched(careful.rows()), INFO, left_out=careful.left_out)
    monkeypatch.setattr("clipglot.cache.sources.records.RecordParser.row", unread)
    fast = source()
    plan_cache(tmp_path / "columns.zarr", fast.batches(), INFO, left_out=fast.left_out)
    assert files(tmp_path / "columns.zarr") == files(tmp_path / "records.zarr")
    assert 0 < len(Cache(tmp_path / "columns.zarr")) <= 90


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("records", "options"),
    [
        (
            [{"image": f"{i}.png", "text": None if i else "x", "s": i} for i in range(9)],
            {"where": "s > 3", "languages": ["ru"]},
        ),
        # Of batches of 8,192 records that are kept, the second one has an image within the limit, the third has none.
        (
            [{"image": f"{10_000 if i in (25_000, 40_000) else i}.png", "text": "x", "s": i} for i in range(45_000)],
            {"where": "s >= 10_000", "limit": 3},
        ),
    ],
    ids=["no captions", "limit"],
)
def test_the_cache_is_that_of_records(
    suffix: str, records: list[dict[str, Any]], options: dict[str, Any], tmp_path: Path
) -> None:
    source = opened(write(tmp_path, suffix, records), **options)
    info = replace(INFO, source=source().info)
    for name, batches in (("records", Source.batches), ("columns", type(source()).batches)):
        made = source()
        plan_cache(tmp_path / f"{name}.zarr", batches(made), info, left_out=made.left_out)
    assert files(tmp_path / "columns.zarr") == files(tmp_path / "records.zarr")
    assert Cache(tmp_path / "columns.zarr").info.num_captions == (4 if "limit" in options else 0)


def test_an_odd_row_is_named_by_its_line_after_blocks_of_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delimited_columns, "BLOCK_BYTES", 500)
    path = write(tmp_path, ".csv", RECORDS)
    with open(path, "a", newline="") as file:
        file.write("odd\n")
    # Each record has a line break in a field, and the header is a line.
    assert both(path).error.startswith(f"{path}:402: 1 columns where the header has 5")


@pytest.mark.parametrize("fault", ["gzip", "encoding"])
def test_the_first_of_two_faults_is_told(fault: str, tmp_path: Path) -> None:
    """A block is read ahead of its records, and the other fault lies in it."""
    path = write(tmp_path, ".csv", RECORDS * 20)
    lines = path.read_text().splitlines(keepends=True)
    for is_odd in (False, True):
        data = "".join([*lines[:1], *(["odd\n"] if is_odd else []), *lines[1:]]).encode()
        if fault == "gzip":
            made = tmp_path / f"{is_odd}.csv.gz"
            made.write_bytes(gzip.compress(data, mtime=0)[:-50])
            error = both(made).error
        else:
            made = tmp_path / f"{is_odd}.csv"
            made.write_bytes(data[:-1] + b"\x81")
            error = both(made, encoding="gb18030").error
        expected = (
            f"{made}:2: 1 columns" if is_odd else f"{made}: damaged gzip" if fault == "gzip" else "not text in gb18030"
        )
        assert expected in error


def test_stray_quotation_marks_are_read_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited_columns, "BLOCK_BYTES", 500)
    path = write(tmp_path, ".csv", RECORDS)
    with open(path, "a", newline="") as file:
        file.write('x.png,4" nails,,ru,3\n' + 'y.png,"b",,zh,1\n' * 50)
    content = both(path, where="s > 0.9", language_field="lang")
    assert (content.error, content.rows[-51]) == ("", ("x.png", ['4" nails'], ["ru"]))
    assert len(content.rows) == 109 + 51


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_condition_without_a_field_decides_too(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"table{suffix}"
    table = {"image": ["a.jpg", "b.jpg"], "text": ["one", "two"], "lang": ["en", "zh"]}
    if suffix == ".parquet":
        pq.write_table(pa.table(table), path)
    elif suffix == ".jsonl":
        path.write_text("".join(f"{json.dumps(record)}\n" for record in pa.table(table).to_pylist()))
    else:
        sign = "," if suffix == ".csv" else "\t"
        path.write_text("".join(f"{sign.join(row)}\n" for row in [[*table], *zip(*table.values(), strict=True)]))
    assert both(path, where="'lang' == 'zh'").left_out == {"--where": 2}
    assert len(both(path, where="'zh' == 'zh'").rows) == 2
    assert both(path, where="1 > 2", limit=1).rows == []


@pytest.mark.slow  # a process of its own, for only there nothing but the error may be on standard error
def test_a_refused_record_is_all_that_is_told(tiny_clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("image,text\na.jpg,hello\n,world\n")
    command = [sys.executable, "-m", "clipglot", "cache", path, "-o", tmp_path / "cache.zarr"]
    done = subprocess.run([*command, "--model", f"local-dir:{tiny_clip}"], capture_output=True, text=True)
    assert done.returncode == 1
    first, *others = done.stderr.splitlines()
    assert first.startswith("load: ")
    assert len(others) == 1
    assert others[0].startswith(f"Error: {path}:3: 'image' must be the path of an image")
