"""Conditions on records (`--where`), in a small closed part of Python's expressions. Nothing is called.

    similarity > 0.3 and lang in ("zh", "ja")

Names are fields. There are numbers, texts, True, False and None, lists of them, comparisons, `and`, `or` and `not`.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import CacheError

MAX_LENGTH = 10_000  # characters; Python's own parser dies of much longer ones
ORDER: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
KNOWN = "known are names of fields, numbers, texts, lists of them, == != < <= > >= in, and, or, not, is None"


class WhereFilter:
    """A condition on the fields of a record, parsed once. `where_columns.py` decides it for many rows at once.

    Attributes:
        root: of the expression.
    """

    def __init__(self, text: str) -> None:
        """Parse it.

        Raises:
            CacheError: it cannot be parsed, or goes beyond that part; the message names the position.
        """
        self._text = text
        if len(text) > MAX_LENGTH:
            raise CacheError(f"--where: {len(text):,} characters, at most {MAX_LENGTH:,} are read")
        try:
            self.root = ast.parse(text.strip(), mode="eval").body
            self._require_known(self.root)
        except SyntaxError as error:
            raise CacheError(f"--where {text!r}: not a condition at character {error.offset} ({error.msg})") from None
        except (ValueError, RecursionError, MemoryError) as error:
            raise CacheError(f"--where {text!r:.100}: not a condition ({error or 'nested too deep'})") from None
        if not isinstance(self.root, ast.BoolOp | ast.Compare | ast.Name) and not _is_not(self.root):
            raise CacheError(f"--where {text!r}: is never or always so: compare a field, as in 'similarity > 0.3'")

    @property
    def fields(self) -> list[str]:
        """The fields that it names, sorted."""
        return sorted({node.id for node in ast.walk(self.root) if isinstance(node, ast.Name)})

    def holds(self, record: Mapping[str, Any], where: str) -> bool:
        """Whether a record fulfils the condition.

        Args:
            record: its fields.
            where: file and line, for messages.

        Raises:
            CacheError: a field is absent, or its type cannot be compared so.
        """
        return self._truth(self.root, record, where)

    def _truth(self, node: ast.expr, record: Mapping[str, Any], where: str) -> bool:
        if isinstance(node, ast.BoolOp):
            truths = (self._truth(part, record, where) for part in node.values)
            return all(truths) if isinstance(node.op, ast.And) else any(truths)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not self._truth(node.operand, record, where)
        if isinstance(node, ast.Compare):
            return self._compared(node, record, where)
        value = self._value(node, record, where)
        if not isinstance(value, bool):
            raise CacheError(f"{where}: --where {self._text!r}: {_named(node, value)} is neither true nor false")
        return value

    def _compared(self, node: ast.Compare, record: Mapping[str, Any], where: str) -> bool:
        """A chain such as `0 < x <= 1`."""
        left_node, left = node.left, self._value(node.left, record, where)
        for comparison, right_node in zip(node.ops, node.comparators, strict=True):
            right = self._value(right_node, record, where)
            try:
                holds = _compare(comparison, left, right)
            except TypeError:
                raise CacheError(
                    f"{where}: --where {self._text!r}: {_named(left_node, left)} cannot be compared with "
                    f"{_named(right_node, right)}: mend the record, or put 'x is not None and …' before it, or in a "
                    "table of texts \"x != '' and …\""
                ) from None
            if not holds:
                return False
            left_node, left = right_node, right
        return True

    def _value(self, node: ast.expr, record: Mapping[str, Any], where: str) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            if node.id not in record:
                found = ", ".join(map(str, record))
                raise CacheError(f"{where}: no field {node.id!r} (found: {found}): change --where")
            return record[node.id]
        if isinstance(node, ast.Tuple | ast.List):
            return [self._value(item, record, where) for item in node.elts]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            assert isinstance(node.operand, ast.Constant)
            return -node.operand.value  # type: ignore[operator]
        return self._truth(node, record, where)

    def _require_known(self, node: ast.expr) -> None:
        """Refuse an expression outside the closed set, before any record is read."""
        match node:
            case ast.Name() | ast.Constant(value=None | bool() | int() | float() | str()):
                parts: list[ast.expr] = []
            case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts):
                pass
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                parts = [operand]
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
                parts = []
            case ast.Compare(left=left, comparators=comparators):
                parts = [left, *comparators]
            case _:
                raise CacheError(
                    f"--where {self._text!r}: {ast.unparse(node)!r} at character {node.col_offset + 1} "
                    f"is not understood: {KNOWN}"
                )
        for part in parts:
            self._require_known(part)


def _compare(comparison: ast.cmpop, left: Any, right: Any) -> bool:
    if isinstance(comparison, ast.In | ast.NotIn):
        is_in = left in right if isinstance(right, str) else any(_equal(left, item) for item in right)
        return is_in == isinstance(comparison, ast.In)
    if isinstance(comparison, ast.Eq | ast.Is):
        return _equal(left, right)
    if isinstance(comparison, ast.NotEq | ast.IsNot):
        return not _equal(left, right)
    return ORDER[type(comparison)](*_of_one_type(left, right))


def _equal(left: Any, right: Any) -> bool:
    left, right = _of_one_type(left, right)
    return bool(left == right)


def _of_one_type(left: Any, right: Any) -> tuple[Any, Any]:
    """Read a text that is compared with a number as a number, because CSV holds texts alone.

    Raises:
        TypeError: it is not a number.
    """
    for number, text in ((left, right), (right, left)):
        if isinstance(text, str) and isinstance(number, int | float) and not isinstance(number, bool):
            try:
                value = float(text)
            except ValueError as error:
                raise TypeError(f"{text!r} is not a number") from error
            return (value, right) if text is left else (left, value)
    return left, right


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _named(node: ast.expr, value: Any) -> str:
    return f"{node.id} = {value!r:.60}" if isinstance(node, ast.Name) else f"{value!r:.60}"
