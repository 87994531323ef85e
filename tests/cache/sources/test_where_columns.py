"""Conditions on columns keep the rows that they keep record by record, and leave errors to that."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.sources.where import WhereFilter
from clipglot.cache.sources.where_columns import fulfilled
from hypothesis import given, settings
from hypothesis import strategies as st

NUM = 5
ODD_NUMBERS = [
    "12",
    "-3",
    "+3",
    " 1 ",
    "1_0",
    "1.",
    ".5",
    "1e3",
    "nan",
    "nan(1)",
    "-inf",
    "Infinity",
    "1e400",
    "0x1",
    "",
]
ODD_NUMBERS += ["１２", "1\n", "\0", "9007199254740993", "1d5", "--1", "1e", "0.1", "00012", "1e-400", "٣"]
texts = st.sampled_from(["", "a", "b", "zh", "ab", "猫", "猫猫", "кот", "A", "\0", "é", "e\u0301", "🐈"])
numeric_texts = st.sampled_from(ODD_NUMBERS) | st.floats().map(str) | st.integers().map(str) | st.text(max_size=3)
whole = st.integers(-3, 12) | st.sampled_from([2**53, 2**53 + 1, -(2**63), 2**63 - 1])
COLUMNS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int64(), whole),
    (pa.int8(), st.integers(-3, 12)),
    (pa.uint64(), st.integers(0, 12)),
    (pa.float64(), st.integers(-3, 12).map(float) | st.floats()),
    (pa.float32(), st.floats(width=32)),
    (pa.string(), texts),
    (pa.large_string(), texts),
    (pa.string(), st.integers(-3, 12).map(str)),
    (pa.string(), numeric_texts),
    (pa.bool_(), st.booleans()),
    (pa.null(), st.none()),
    (pa.list_(pa.string()), st.lists(texts, max_size=2)),
    (pa.timestamp("us"), st.datetimes()),
    (pa.float16(), st.integers(-3, 12).map(np.float16)),
    (pa.binary(), st.binary(max_size=2)),
]


@st.composite
def columns(draw: Callable[[st.SearchStrategy[Any]], Any], num: int) -> pa.Array:
    kind, values = draw(st.sampled_from(COLUMNS))
    has_nulls = draw(st.booleans())
    return pa.array(draw(st.lists(values | st.none() if has_nulls else values, min_size=num, max_size=num)), kind)


NAMES = ["x", "y", "z", "missing"]
constants = st.sampled_from(
    ["None", "True", "False", "0", "1", "-1", "-True", "3.5", "1e999", str(2**53 + 1), "'\\ud800'"]
)
constants |= texts.map(repr) | st.sampled_from(ODD_NUMBERS).map(repr)
names = st.sampled_from(NAMES[:3] * 5 + NAMES)
plain_operands = names | names | constants
lists = st.lists(plain_operands, max_size=3).map(lambda items: f"[{', '.join(items)}]")
signs = st.sampled_from(["<", "<=", ">", ">=", "==", "!=", "in", "not in", "is", "is not"])


def compound(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operands = plain_operands | plain_operands | parts.map(lambda part: f"({part})")
    chains = st.tuples(operands, st.lists(st.tuples(signs, operands | lists), min_size=1, max_size=2))
    joined = st.tuples(parts, st.sampled_from(["and", "or"]), parts).map(lambda three: f"({' '.join(three)})")
    return (
        chains.map(lambda chain: " ".join([chain[0], *(f"{sign} {operand}" for sign, operand in chain[1])]))
        | joined
        | parts.map(lambda part: f"not ({part})")
        | st.tuples(names, st.sampled_from(["in", "not in"]), lists).map(" ".join)
        | st.tuples(names, st.sampled_from(["is None", "is not None"]), st.just("and"), parts).map(" ".join)
    )


conditions = st.recursive(compound(names), compound, max_leaves=4)


def record_by_record(condition: WhereFilter, columns: dict[str, pa.Array], asked: list[bool]) -> list[bool] | str:
    """The rows that fulfil a condition, or the first error."""
    records = pa.table(columns).to_pylist()
    try:
        return [is_asked and condition.holds(record, "m:1") for record, is_asked in zip(records, asked, strict=True)]
    except CacheError as error:
        return str(error)


@settings(deadline=None, max_examples=3000)
@given(st.data())
def test_columns_are_decided_as_records(data: st.DataObject) -> None:
    num = data.draw(st.sampled_from([1, 1, NUM, 0]))
    table = {name: data.draw(columns(num)) for name in NAMES[:3]}
    asked = data.draw(st.lists(st.booleans(), min_size=num, max_size=num) | st.just([True] * num))
    try:
        condition = WhereFilter(data.draw(conditions))
    except CacheError:  # never or always so
        return
    expected = record_by_record(condition, table, asked)
    result = fulfilled(condition, table, np.array(asked, bool))
    assert result is None or result.tolist() == expected


RECORDS = pa.table(
    {
        "similarity": [0.1, 0.31, None, 0.4],
        "lang": ["zh", "ja", "en", None],
        "n": ["1", "20", "3", ""],
        "ok": [True, False, True, None],
        "width": [640, 480, 3, 2**40],
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("similarity is not None and similarity > 0.3", [1, 3]),
        ("lang in ('zh', 'ja')", [0, 1]),
        ("lang not in ('zh', 'ja')", [2, 3]),
        ("lang is None or lang in ('zh', 'ja', 'en', 3)", [0, 1, 2, 3]),  # no text gets as far as the number
        ("lang == 'zh' or width == 3", [0, 2]),
        ("lang != 'zh' and not (width < 100)", [1, 3]),
        ("n != '' and n > 2.5", [1, 2]),
        ("n == '' or 1 < n <= 3", [2, 3]),
        ("ok == True and ok", [0, 2]),
        ("ok is not None and not ok", [1]),
        ("lang is not None and 'n' in lang", [2]),
        ("lang is not None and lang < 'h'", [2]),
        ("width >= 480 and width in (480, 640)", [0, 1]),
        ("(width > 500) == (lang == 'zh')", [0, 1, 2]),
        ("lang in ()", []),
        ("1 <= width < 481 and -5 < width", [1, 2]),
    ],
)
def test_common_conditions_are_decided_on_columns(text: str, rows: list[int]) -> None:
    columns = {name: RECORDS[name].combine_chunks() for name in RECORDS.schema.names}
    condition, asked = WhereFilter(text), np.ones(len(RECORDS), bool)
    result = fulfilled(condition, columns, asked)
    assert result is not None
    assert np.flatnonzero(result).tolist() == rows
    assert result.tolist() == record_by_record(condition, columns, asked.tolist())
    assert fulfilled(condition, columns, ~asked).tolist() == [False] * 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text", ["similarity > 0.3", "lang > 3", "n > 2", "ok", "similarity", "width > 3 and lang in lang"]
)
def test_a_row_that_fails_is_left_to_its_record(text: str) -> None:
    columns = {name: RECORDS[name].combine_chunks() for name in RECORDS.schema.names}
    condition, asked = WhereFilter(text), np.ones(len(RECORDS), bool)
    assert fulfilled(condition, columns, asked) is None
    assert isinstance(record_by_record(condition, columns, asked.tolist()), str)
    assert fulfilled(condition, {"other": columns["n"]}, asked) is None


@pytest.mark.parametrize("text", ODD_NUMBERS)
@pytest.mark.parametrize("sign", ["<", "==", "!=", ">="])
def test_texts_are_numbers_as_python_reads_them(text: str, sign: str) -> None:
    """One by one: Arrow reads a column as numbers at once where it takes each text for one."""
    columns, asked = {"n": pa.array([text])}, np.ones(1, bool)
    condition = WhereFilter(f"n {sign} 12")
    expected, result = record_by_record(condition, columns, [True]), fulfilled(condition, columns, asked)
    assert (result is None) == isinstance(expected, str)
    assert result is None or result.tolist() == expected
