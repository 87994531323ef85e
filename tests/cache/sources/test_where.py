"""Conditions, splits and languages: what is understood, refused and counted."""

import json
import operator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.format import SourceInfo
from clipglot.cache.read.cache import Cache
from clipglot.cache.sources.table import TableSource
from clipglot.cache.sources.where import WhereFilter
from clipglot.cache.write.plan import plan_cache
from clipglot.cli.main import main
from clipglot.distill.errors import DistillError
from clipglot.jobs.settings.cache import CacheSettings
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cache_info import INFO

RECORD: dict[str, Any] = {"similarity": 0.4, "lang": "zh", "ok": True, "none": None, "n": "12", "tags": ["a"]}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("similarity > 0.3 and lang in ('zh', 'ja')", True),
        ("similarity > 0.3 and lang not in ['zh']", False),
        ("0.3 < similarity <= 0.4", True),
        ("not ok or similarity == 0.4", True),
        ("ok", True),
        ("not ok", False),
        ("none is None", True),
        ("none is not None and none > 3", False),
        ("lang == None", False),
        ("-1 < similarity", True),
        ("'a' in tags", True),
        ("lang == 'zh' != ok", True),
        ("(ok == True) == True", True),
        ("n > 9", True),  # as tables of text have numbers
        ("n == 12 and n in (3, 12)", True),
        ("  lang=='zh'\t", True),
    ],
)
def test_a_condition_holds_as_in_python(text: str, holds: bool) -> None:
    assert WhereFilter(text).holds(RECORD, "m:1") is holds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("similarity >", r"--where 'similarity >': not a condition at character \d+"),
        ("", "not a condition"),
        ("lang.upper() == 'ZH'", r"'lang.upper\(\)' at character 1 is not understood: known are names of fields"),
        ("ok and lang.x", r"'lang.x' at character 8 is not understood"),
        ("__import__('os')", "is not understood"),
        ("[x for x in tags]", "is not understood"),
        ("tags[0] == 'a'", "is not understood"),
        ("similarity + 1 > 2", "is not understood"),
        ("f'{lang}' == 'zh'", "is not understood"),
        ("b'x' == lang", "is not understood"),
        ("(x := 3) > 2", "is not understood"),
        ("lambda: 1", "is not understood"),
        ("ok if ok else ok", "is not understood"),
        ("similarity > 1j", "is not understood"),
        ("0.3", "is never or always so: compare a field"),
        ("(" * 9000, "not a condition"),
        ("not " * 2400 + "ok", "not a condition|RecursionError"),
        ("x" * 10_001, "10,001 characters, at most 10,000"),
        ("\0", "not a condition"),
    ],
)
def test_an_invalid_condition_is_refused_with_its_position(text: str, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        WhereFilter(text)
    with pytest.raises(DistillError, match=message):
        CacheSettings(source=Path("m.jsonl"), output=Path("c.zarr"), model="m", where=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("score > 1", r"^m:3: no field 'score' \(found: similarity, lang, ok, none, n, tags\): change --where"),
        ("lang > 3", r"^m:3: --where 'lang > 3': lang = 'zh' cannot be compared with 3: mend the record"),
        ("none < 3", r"none = None cannot be compared with 3"),
        ("lang == 3", r"lang = 'zh' cannot be compared with 3"),
        ("3 in similarity", r"3 cannot be compared with similarity = 0.4"),
        ("similarity and ok", r"similarity = 0.4 is neither true nor false"),
    ],
)
def test_a_record_that_cannot_be_compared_is_named(text: str, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        WhereFilter(text).holds(RECORD, "m:3")


WORDS = ["x", "y", "and", "or", "not", "in", "is", "None", "(", ")", "[", "]", ",", "<", "==", "-", "'a'", "3", "True"]


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=30) | st.lists(st.sampled_from(WORDS)).map(" ".join))
def test_any_text_is_a_condition_or_one_clear_error(text: str) -> None:
    try:
        holds = WhereFilter(text).holds({"x": 1, "y": "a"}, "m:1")
    except CacheError as error:
        assert "--where" in str(error)  # noqa: PT017
    else:
        assert isinstance(holds, bool)


@given(st.floats(allow_nan=False) | st.integers(), st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]), st.integers())
def test_numbers_compare_as_in_python(x: float, name: str, y: int) -> None:
    sign = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}[name]
    assert WhereFilter(f"x {sign} {y}").holds({"x": x}, "") is getattr(operator, name)(x, y)


def table(path: Path, records: list[dict[str, Any]], **options: Any) -> TableSource:
    path.write_text("\n".join(json.dumps(record) for record in records))
    fields: dict[str, Any] = {"image_field": "image", "text_fields": ["text"], "sha256": "", "image_root": ""}
    return TableSource(SourceInfo(**fields | {"path": str(path)} | options))


COMMON = {"lang": ["ru", "zh"], "en": "a cat"}
RECORDS: list[dict[str, Any]] = [
    {"image": f"{i}.png", "text": [f"кот {i}", f"猫 {i}"], "s": i / 10, "split": ["train", "val"][i % 2]} | COMMON
    for i in range(6)
]


def test_rows_that_fail_the_condition_are_left_out_and_counted(tmp_path: Path) -> None:
    source = table(tmp_path / "m.jsonl", RECORDS, where="s > 0.1 and s != 0.3", split="train")
    assert [row.key for row in source.rows()] == ["2.png", "4.png"]
    assert source.left_out == {"--split": 3, "--where": 1}
    info = plan_cache(tmp_path / "c.zarr", source.batches(), INFO, left_out=source.left_out)
    assert (info.num_images, info.left_out) == (2, {"--split": 3, "--where": 1})


def test_a_table_without_the_column_of_splits_says_so(tmp_path: Path) -> None:
    source = table(tmp_path / "m.jsonl", [{"image": "a", "text": "x"}], split="train")
    with pytest.raises(CacheError, match=r"m\.jsonl:1: no field 'split' \(found: image, text\): leave out --split"):
        list(source.rows())
    source = table(tmp_path / "m.jsonl", RECORDS, split="test")
    with pytest.raises(CacheError, match=r"no images in it; --split left out 6 records"):
        plan_cache(tmp_path / "c.zarr", source.batches(), INFO, left_out=source.left_out)


@pytest.mark.parametrize(
    ("options", "tags"),
    [
        ({"languages": ["ru"], "text_fields": ["en", "text"]}, ["ru", "ru", "ru"]),
        ({"languages": ["en", "zh-Hans"], "text_fields": ["en", "text"]}, ["en", "zh-Hans", "zh-Hans"]),
        ({"language_field": "lang"}, ["ru", "zh"]),
        ({}, None),
    ],
)
def test_languages_of_captions_are_kept(options: dict[str, Any], tags: list[str] | None, tmp_path: Path) -> None:
    plan_cache(tmp_path / "c.zarr", table(tmp_path / "m.jsonl", RECORDS, **options).batches(), INFO)
    cache = Cache(tmp_path / "c.zarr")
    assert cache.languages(0, 3 if tags is None else len(tags)) == tags
    assert cache.count_languages() == {tag: 6 * tags.count(tag) for tag in tags or []}


@pytest.mark.parametrize("tag", ["Chinese (simplified)", 3, ["ru"], ["ru", "zh", "en"], {}])
def test_a_bad_tag_in_a_record_is_named(tag: object, tmp_path: Path) -> None:
    source = table(tmp_path / "m.jsonl", [RECORDS[0] | {"lang": tag}], language_field="lang")
    with pytest.raises(
        CacheError, match=r"m\.jsonl:1: 'lang' must be a tag such as 'zh' or 'pt-BR', or one for each of 2"
    ):
        list(source.rows())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"language": ("Chinese!",)}, "--language Chinese!: expected a tag of BCP 47"),
        ({"language": ("zh", "ru")}, "--language is given 2 times: give it once, or once for each --text-field"),
        ({"language": ("zh",), "language_field": "lang"}, "exclude each other"),
    ],
)
def test_bad_languages_are_refused_at_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises(DistillError, match=message):
        CacheSettings(source=Path("m.jsonl"), output=Path("c.zarr"), model="m", **given)


def test_the_command_reports_rows_left_out(manifest: Path, tiny_clip: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    numbered = tmp_path / "numbered.jsonl"
    numbered.write_text("\n".join(json.dumps(record | {"n": i}) for i, record in enumerate(records)))
    given = [
        "cache",
        numbered,
        "--image-root",
        manifest.parent,
        "-o",
        tmp_path / "c.zarr",
        "--model",
        f"local-dir:{tiny_clip}",
        "--num-workers",
        1,
    ]
    given = [str(argument) for argument in [*given, "--where", "n > 1", "--language", "ru"]]
    made = CliRunner().invoke(main, given)
    assert made.exit_code == 0, made.output
    assert "2 rows were left out by --where" in made.stderr + made.stdout
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "c.zarr"), "--json"])
    info = json.loads(shown.stdout)
    assert (info["left_out"], info["languages"]) == ({"--where": 2}, {"ru": info["num_captions"]})
    assert "left out by --where" in CliRunner().invoke(main, ["inspect", str(tmp_path / "c.zarr")]).stdout
    other = CliRunner().invoke(main, [*given[:-1], "uk"])
    assert "languages was ['ru'], now ['uk']" in other.stderr
