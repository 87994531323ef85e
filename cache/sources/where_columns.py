"""Conditions on columns of Arrow: what `WhereFilter.holds` decides record by record, for many rows at once.

`WhereFilter` is the definition. Only expressions and types for which both agree are decided here: numbers, texts, true
and false, and nulls among them. Numbers are computed as float64, so whole numbers beyond 2^53 are none of these.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .where import WhereFilter

Mask = NDArray[np.bool_]
MAX_WHOLE = 2**53  # up to which float64 holds every whole number
_NUMBER = r"\A-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?\z"  # what Arrow and Python read alike
_ORDER = {
    ast.Lt: (pc.less, np.less),
    ast.LtE: (pc.less_equal, np.less_equal),
    ast.Gt: (pc.greater, np.greater),
    ast.GtE: (pc.greater_equal, np.greater_equal),
}


class _NotOnColumnsError(Exception):
    """An expression or a type that is decided record by record."""


def fulfilled(condition: WhereFilter, columns: Mapping[str, pa.Array], asked: Mask) -> Mask | None:
    """The rows that fulfil a condition, `[n] bool`.

    Args:
        condition: to be fulfilled.
        columns: of its fields, n rows each, texts in valid UTF-8.
        asked: `[n]`, the rows for which it is asked.

    Returns:
        False in rows that are not asked for; None if `condition.holds` has to decide, or to say what is wrong with one
        of the rows.
    """
    try:
        holds, fails = _Rows(columns, len(asked)).truth(condition.root)
    except (_NotOnColumnsError, pa.ArrowException, UnicodeEncodeError, RecursionError):
        return None
    return None if (fails & asked).any() else holds & asked


@dataclass(frozen=True, slots=True)
class _Values:
    """Values of a column, or of a constant, which is one row that stands for all.

    Attributes:
        kind: of all but the nulls. True and false are numbers, too, except beside a text.
        values: `[n] float64` or texts of Arrow.
        nulls: `[n]`.
        is_constant: whether it is a constant.
    """

    kind: Literal["text", "number", "bool", "null"]
    values: Any
    nulls: Mask
    is_constant: bool = False


class _Rows:
    """Evaluates an expression in n rows; each result has the rows in which evaluation fails, too.

    As in Python, `and`, `or`, chains and `in` go no further in a row that is decided, so nothing fails there.
    """

    def __init__(self, columns: Mapping[str, pa.Array], num: int) -> None:
        self._columns, self._num = columns, num
        self._known: dict[str, _Values] = {}

    def truth(self, node: ast.expr) -> tuple[Mask, Mask]:
        """The rows in which an expression is true, and those in which it fails."""
        if isinstance(node, ast.BoolOp):
            is_and = isinstance(node.op, ast.And)
            undecided, failed = np.ones(self._num, bool), np.zeros(self._num, bool)
            for part in node.values:
                holds, fails = self.truth(part)
                failed |= undecided & fails
                undecided &= holds if is_and else ~holds
            return (undecided if is_and else ~undecided), failed
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            holds, fails = self.truth(node.operand)
            return ~holds, fails
        if isinstance(node, ast.Compare):
            return self._compared(node)
        values, fails = self._values(node)
        if values.kind != "bool":
            return np.zeros(self._num, bool), np.ones(self._num, bool)
        return self._all_rows(values.values != 0), self._all_rows(fails | values.nulls)

    def _compared(self, node: ast.Compare) -> tuple[Mask, Mask]:
        left, failed = self._values(node.left)
        holds, failed = np.ones(self._num, bool), self._all_rows(failed).copy()
        for comparison, right_node in zip(node.ops, node.comparators, strict=True):
            if isinstance(right_node, ast.Tuple | ast.List):
                if not isinstance(comparison, ast.In | ast.NotIn) or right_node is not node.comparators[-1]:
                    raise _NotOnColumnsError
                fits, fails = self._in_list(left, right_node)
            else:
                right, unevaluated = self._values(right_node)
                fits, fails = _compare(comparison, left, right)
                fails, left = fails | unevaluated, right
            if isinstance(comparison, ast.NotIn | ast.NotEq | ast.IsNot):
                fits = ~fits
            failed |= holds & fails
            holds &= fits
        return holds, failed

    def _in_list(self, left: _Values, node: ast.Tuple | ast.List) -> tuple[Mask, Mask]:
        """Whether values are among those of a list. Python evaluates all of it before it compares."""
        items, failed, found = [], np.zeros(self._num, bool), np.zeros(self._num, bool)
        for item in node.elts:
            values, fails = self._values(item)
            items.append(values)
            failed |= fails
        are_texts = all(item.kind == "text" and item.is_constant for item in items)
        if left.kind == "text" and not left.is_constant and are_texts:
            texts = pa.array([item.values.as_py() for item in items], left.values.type)
            return _mask(pc.is_in(left.values, value_set=texts)), failed
        for values in items:
            equal, fails = _equal(left, values)
            failed |= fails & ~found
            found |= equal
        return found, failed

    def _values(self, node: ast.expr) -> tuple[_Values, Mask]:
        never = np.zeros(1, bool)
        if isinstance(node, ast.Name):
            if node.id not in self._known:
                if node.id not in self._columns:
                    raise _NotOnColumnsError
                self._known[node.id] = _of_column(self._columns[node.id])
            return self._known[node.id], never
        if isinstance(node, ast.Constant):
            return _of_constant(node.value), never
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            assert isinstance(node.operand, ast.Constant)
            return _of_constant(-node.operand.value), never  # type: ignore[operator]
        if isinstance(node, ast.Tuple | ast.List):
            raise _NotOnColumnsError
        holds, fails = self.truth(node)
        return _Values("bool", holds.astype(np.float64), np.zeros(self._num, bool)), fails

    def _all_rows(self, mask: Mask) -> Mask:
        return np.broadcast_to(mask, self._num)


def _of_constant(value: object) -> _Values:
    is_null = np.array([value is None])
    if value is None:
        return _Values("null", np.zeros(1), is_null, is_constant=True)
    if isinstance(value, str):
        return _Values("text", pa.scalar(value, pa.large_string()), is_null, is_constant=True)
    assert isinstance(value, int | float)
    if isinstance(value, int) and abs(value) > MAX_WHOLE:
        raise _NotOnColumnsError
    kind: Literal["bool", "number"] = "bool" if isinstance(value, bool) else "number"
    return _Values(kind, np.array([value], np.float64), is_null, is_constant=True)


def _of_column(column: pa.Array) -> _Values:
    types, kind, nulls = pa.types, column.type, _mask(column.is_null())
    if types.is_null(kind):
        return _Values("null", np.zeros(len(column)), nulls)
    if types.is_string(kind) or types.is_large_string(kind):
        return _Values("text", column.cast(pa.large_string()), nulls)
    if not (types.is_boolean(kind) or types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind)):
        raise _NotOnColumnsError
    is_bool = types.is_boolean(kind)
    whole = column.cast(pa.uint8()) if is_bool else column
    numbers = whole.cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False)  # refuses what it would round
    return _Values("bool" if is_bool else "number", numbers, nulls)


def _compare(comparison: ast.cmpop, left: _Values, right: _Values) -> tuple[Mask, Mask]:
    """Whether each pair is equal, contained or in order, and where that fails. To negate it is left to the caller."""
    if isinstance(comparison, ast.Eq | ast.NotEq | ast.Is | ast.IsNot):
        return _equal(left, right)
    if isinstance(comparison, ast.In | ast.NotIn):
        if not (left.kind == right.kind == "text" and left.is_constant and not right.is_constant):
            raise _NotOnColumnsError
        return _mask(pc.match_substring(right.values, left.values.as_py())), right.nulls
    left_values, right_values, fails = _of_one_type(left, right)
    of_texts, of_numbers = _ORDER[type(comparison)]
    fails = fails | left.nulls | right.nulls
    if left_values is None:
        return np.zeros_like(fails), np.ones_like(fails)
    is_text = isinstance(left_values, pa.Array | pa.Scalar)
    return _mask(of_texts(left_values, right_values)) if is_text else of_numbers(left_values, right_values), fails


def _equal(left: _Values, right: _Values) -> tuple[Mask, Mask]:
    left_values, right_values, fails = _of_one_type(left, right)
    both_null, has_null = left.nulls & right.nulls, left.nulls | right.nulls
    if left_values is None:
        return both_null, fails
    is_text = isinstance(left_values, pa.Array | pa.Scalar)
    equal = _mask(pc.equal(left_values, right_values)) if is_text else left_values == right_values
    return both_null | (equal & ~has_null), fails & ~has_null


def _of_one_type(left: _Values, right: _Values) -> tuple[Any, Any, Mask]:
    """Values as they are compared, and where a text that should be a number is none; no values of types apart."""
    if left.is_constant and right.is_constant:
        raise _NotOnColumnsError
    never = np.zeros(max(len(left.nulls), len(right.nulls)), bool)
    kinds = (left.kind, right.kind)
    if kinds == ("text", "text"):
        return left.values, right.values, never
    if "null" in kinds or set(kinds) == {"text", "bool"}:
        return None, None, never
    if "text" not in kinds:
        return left.values, right.values, never
    if left.kind == "text":
        numbers, fails = _numbers(left.values)
        return numbers, right.values, fails | never
    numbers, fails = _numbers(right.values)
    return left.values, numbers, fails | never


def _numbers(texts: Any) -> tuple[NDArray[np.float64], Mask]:
    """What Python's `float` makes of texts, and which are no numbers. Nulls are 0."""
    if isinstance(texts, pa.Scalar):
        texts = pa.array([texts.as_py()], texts.type)
    try:
        numbers = texts.cast(pa.float64())
        odd = _mask(pc.is_nan(numbers))  # Arrow takes "nan(1)" for a number
    except pa.ArrowInvalid:
        odd = ~_mask(pc.match_substring_regex(texts, _NUMBER).fill_null(True))
        numbers = pc.if_else(pa.array(odd), pa.scalar(None, texts.type), texts).cast(pa.float64())
    result, fails = np.array(numbers.fill_null(0).to_numpy(zero_copy_only=False)), np.zeros(len(texts), bool)
    read: dict[str, float | None] = {}
    for i in np.flatnonzero(odd).tolist():
        text = texts[i].as_py()
        if text not in read:
            read[text] = _number(text)
        number = read[text]
        result[i], fails[i] = number or 0, number is None
    return result, fails


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _mask(values: Any) -> Mask:
    """A mask of Arrow as one of numpy; null is false."""
    mask: Mask = values.fill_null(False).to_numpy(zero_copy_only=False)
    return mask
