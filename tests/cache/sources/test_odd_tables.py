"""Tables in every form that programs write are read as the records that were written; other text has a remedy."""

import codecs
import gzip
import json
import random
from pathlib import Path

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import SourceInfo
from clipglot.cache.sources import json_array
from clipglot.cache.sources.kinds import open_source
from clipglot.cache.sources.table import TableSource
from hypothesis import given, settings
from support.fresh_files import write_fresh
from support.odd_tables import OddTable, odd_tables
from support.source_contract import Made, SourceContract
from support.tars import write_tar


def open_table(path: Path, encoding: str = "utf-8") -> TableSource:
    info = SourceInfo(path=str(path), sha256="", image_root="", image_field="", text_fields=[], encoding=encoding)
    source = open_source(info)
    assert isinstance(source, TableSource)
    return source


@settings(deadline=None, max_examples=300)
@given(table=odd_tables())
def test_a_table_is_read_as_it_was_written(table: OddTable, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write_fresh(tmp_path_factory.getbasetemp() / f"odd{table.suffix}", table.content)
    source = open_table(path, table.encoding)
    assert [(row.key, list(row.captions)) for row in source.rows()] == table.expected
    keys = [key.decode() for batch in source.batches() for key in batch.keys.split()]
    assert keys == [key for key, _ in table.expected]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030"])
@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.jsonl", "m.json"])
def test_another_encoding_is_named(name: str, encoding: str, tmp_path: Path) -> None:
    caption = "一只猫睡在沙发上"
    record = json.dumps({"image": "a.jpg", "text": caption}, ensure_ascii=False)
    text = {".jsonl": record, ".json": f"[{record}]"}.get(Path(name).suffix)
    text = (
        text or f"image{',' if name == 'm.csv' else chr(9)}text\na.jpg{',' if name == 'm.csv' else chr(9)}{caption}\n"
    )
    path = write_fresh(tmp_path / name, text.encode(encoding))
    with pytest.raises(CacheError, match=rf"{name}.*--encoding {encoding}") as error:
        list(open_table(path).rows())
    assert caption in str(error.value) or encoding != "gb18030"
    assert [list(row.captions) for row in open_table(path, encoding).rows()] == [[caption]]


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_bytes_of_no_encoding_are_named_by_line(name: str, tmp_path: Path) -> None:
    lines = [b"image,text", b"a,b"] if name == "m.csv" else [b'{"image": "a", "text": "b"}'] * 2
    path = write_fresh(tmp_path / name, b"\n".join([*lines, *[lines[1]] * 70_000, lines[1][:-1] + b"\xff"]))
    for encoding in ("utf-8", "gb18030"):
        with pytest.raises(CacheError, match=rf"{name}:70003: not .*--encoding"):
            list(open_table(path, encoding).rows())


def test_a_tsv_says_how_it_quotes(tmp_path: Path) -> None:
    for content, said, caption in [
        ('image\ttext\na\t"so ""big"""\n', "quotes fields where needed", 'so "big"'),
        ('image\ttext\na\t4" nails\n', "quotes no fields", '4" nails'),
        ('image\ttext\na\t"a title"\n', "quotes no fields", '"a title"'),
        ('image\ttext\na\t"one\nb\ttwo"\n', "quotes no fields", '"one'),
        ("image\ttext\na\tplain\n", "", "plain"),
    ]:
        source = open_table(write_fresh(tmp_path / "m.tsv", content.encode()))
        assert next(iter(source.rows())).captions == [caption]
        assert [said in note for note in source.notes] == [True] * bool(said)


@pytest.mark.parametrize(
    "lines",
    [
        ['1.jpg\t"a dog runs', '2.jpg\tscreen 24"" wide', '3.jpg\tand ends"'],
        ['1.jpg\t"a dog 24"" wide', '2.jpg\tand ends"'],
        ['1.jpg\t"a dog runs', "", '2.jpg\ta "" b', '3.jpg\tand ends"'],
        ['"runs\ta dog 24"" wide', '2.jpg"\tand ends'],
    ],
)
def test_an_unquoted_tsv_swallows_no_rows(lines: list[str], tmp_path: Path) -> None:
    source = open_table(write_fresh(tmp_path / "m.tsv", "\n".join(["image\ttext", *lines]).encode()))
    rows = [[row.key, *row.captions] for row in source.rows()]
    assert rows == [line.split("\t") for line in lines if line]


def test_a_tsv_with_a_quoted_header_may_have_tabs_in_captions(tmp_path: Path) -> None:
    content = '1.jpg\t"a table:\nx\ty\nz ""end"""\n'
    path = write_fresh(tmp_path / "m.tsv", f"image\ttext\n{content}".encode())
    with pytest.raises(CacheError, match=r"m\.tsv:4: 1 columns .*quote fields that hold the delimiter, and the header"):
        list(open_table(path).rows())
    (row,) = open_table(write_fresh(path, f'"image"\t"text"\n{content}'.encode())).rows()
    assert row.captions == ['a table:\nx\ty\nz "end"']


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", "1.jpg,a cat\n2.jpg,a dog\n"),
        ("m.tsv", "17\ta cat\n18\ta dog\n"),
        ("m.tsv", "a cat\timages/1.JPEG\n"),
        ("m.csv", "https://example.org/1,a cat\n"),
        ("m.csv", "1.jpg,1.jpg\n"),
    ],
)
def test_a_file_without_a_header_line_is_recognised(name: str, content: str, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=rf"{name}:1: a record .*header line"):
        list(open_table(write_fresh(tmp_path / name, content.encode())).rows())


def test_a_wide_table_is_read_in_linear_time(tmp_path: Path) -> None:
    """With 100,000 columns; quadratic checks would take minutes."""
    names = ["image", "text", *(f"c{i}" for i in range(100_000))]
    path = write_fresh(tmp_path / "wide.csv", (",".join(names) + "\n" + ",".join(["a"] * len(names)) + "\n").encode())
    assert len(list(open_table(path).rows())) == 1
    write_fresh(path, (",".join(["x", *names[2:]] * 2) + "\n").encode())
    with pytest.raises(CacheError, match="several columns are called") as error:
        list(open_table(path).rows())
    assert len(str(error.value)) < 1000


def test_an_array_is_read_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, path = random.Random(0), tmp_path / "m.json"
    records = [{"image": f"{i}.jpg", "text": "x" * rng.randrange(500)} for i in range(300)]
    for size in (1, 7, 100):
        monkeypatch.setattr(json_array, "PART_CHARACTERS", size)
        for indent in (None, 2):
            write_fresh(path, json.dumps(records, indent=indent).encode())
            assert [(row.key, row.captions[0]) for row in open_table(path).rows()] == [
                (record["image"], record["text"]) for record in records
            ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image": "a", "text": "x"}', r"record 2: .*end of the file"),
        ('[{"image": "a", "text": "x"}, 3]', r"record 2: .*expected a JSON object, found int"),
        ('[{"image": "a", "text": "x"}, {"image": ', r"record 2: .*not readable as JSON"),
        ('[{"image": "a", "text": "x"} {}]', r"record 2: .*expected , or \]"),
        ('[{"image": "a"}]', r"record 1: no field 'text'"),
        ('[{"a":' + "[" * 100_000, r"record 1: not readable as JSON"),
    ],
)
def test_a_damaged_array_is_named_by_record(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=message):
        list(open_table(write_fresh(tmp_path / "m.json", content.encode())).rows())


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    content = gzip.compress(json.dumps({"image": "a", "text": "x"}).encode() * 1000)
    for damaged in (content[:-20], content[:30] + b"\0\0\0" + content[33:]):
        with pytest.raises(CacheError, match=r"m\.jsonl\.gz: damaged gzip"):
            list(open_table(write_fresh(tmp_path / "m.jsonl.gz", damaged)).rows())


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_byte_order_mark_is_no_part_of_any_text(mark: bytes, tmp_path: Path) -> None:
    """In the texts and JSON files of every source; the caption itself may begin with one."""
    record = json.dumps({"caption": "\ufeffa cat"}).encode()
    image, coco = {"id": 1, "file_name": "1.jpg"}, {"image_id": 1, "caption": "\ufeffa cat"}
    write_tar(tmp_path / "json.tar", [("1.jpg", b"x"), ("1.json", mark + record)])
    write_tar(
        tmp_path / "txt.tar",
        [
            ("1.jpg", b"x"),
            ("1.txt", mark + "\ufeffa cat".encode() if mark else b"\xef\xbb\xbf" + "\ufeffa cat".encode()),
        ],
    )
    (tmp_path / "coco.json").write_bytes(mark + json.dumps({"images": [image], "annotations": [coco]}).encode())
    (tmp_path / "muge").mkdir()
    (tmp_path / "muge" / "train_imgs.tsv").write_bytes(mark + b"1\teA==\n")
    text = {"text": "\ufeffa cat", "image_ids": [1]}
    (tmp_path / "muge" / "train_texts.jsonl").write_bytes(mark + json.dumps(text).encode())
    for name in ("json.tar", "txt.tar", "coco.json", "muge"):
        (row,) = SourceContract.open(Made(tmp_path / name)).rows()
        assert row.captions == ["\ufeffa cat"], name
        assert "\ufeff" not in row.key


def test_texts_in_tars_of_another_encoding(tmp_path: Path) -> None:
    caption = "一只猫睡在沙发上"
    members = [("1.jpg", b"x"), ("1.txt", caption.encode("gbk"))]
    members += [("2.jpg", b"x"), ("2.json", json.dumps({"caption": caption}, ensure_ascii=False).encode("gbk"))]
    path = write_tar(tmp_path / "gbk.tar", members)
    with pytest.raises(CacheError, match=r"2\.json .*--encoding gb18030"):
        list(SourceContract.open(Made(path)).rows())
    rows = list(SourceContract.open(Made(path, {"encoding": "gbk"})).rows())
    assert [row.captions for row in rows] == [[caption], [caption]]


def test_blanks_in_base64_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "train_imgs.tsv").write_bytes(b"1\teHl6 \n2\t eH l6\t\r\n3\teHl6=\n")
    texts = [json.dumps({"text": f"{i}", "image_ids": [i]}) for i in (1, 2, 3)]
    (tmp_path / "train_texts.jsonl").write_text("\n".join(texts))
    from support.source_contract import Planned

    read = Planned.of(SourceContract.open(Made(tmp_path))).read(slice(None))
    assert read[:2] == [b"xyz", b"xyz"]


@pytest.mark.parametrize(
    ("record", "captions", "languages", "translations"),
    [
        ({"text": ["one", None]}, ["one"], [], []),
        ({"text": [None, None]}, [], [], []),
        ({"text": ["один", None, "три"], "en": ["one", "two", "three"]}, ["один", "три"], [], ["one", "three"]),
        ({"text": ["один", None, "три"], "en": ["one", None]}, ["один", "три"], [], ["one"]),
        ({"text": [None, "two"], "lang": ["ru", "en"]}, ["two"], ["en"], []),
    ],
)
def test_null_in_a_list_is_left_out_with_what_belongs_to_it(
    record: dict[str, object], captions: list[str], languages: list[str], translations: list[str], tmp_path: Path
) -> None:
    path = write_fresh(tmp_path / "m.jsonl", json.dumps({"image": "a"} | record).encode())
    options = {"teacher_field": ("en",)} if "en" in record else {"language_field": "lang"} if "lang" in record else {}
    (row,) = SourceContract.open(Made(path, options)).rows()
    assert (row.captions, row.languages, row.translations) == (captions, languages, translations)
