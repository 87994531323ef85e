"""Regular expressions of strangers, in a tokenizer.json: those that could compute without end are refused."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EncoderError
from .untrusted_files import MAX_VOCABULARY, read_json

MAX_LENGTH, MAX_REPEATS, MAX_UNROLLED = 5_000, 3, 2_000
_ESCAPE = re.compile(r"\\(?:[pPxuo]\{[^}]*\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|.)", re.DOTALL)
_QUANTIFIER = re.compile(r"[*+?]|\{(\d*)(,?)(\d*)\}")
_GROUP = re.compile(r"\((?:\?(?:[:=!>]|<[=!]|<\w+>|[imsx-]+[:)]|#))?")
_BACK = re.compile(r"\\(?:[1-9]|[kg]<|[kg]')")


@dataclass
class _Part:
    """What is known of a group, or of the pattern: whether it can match in several ways, and its size."""

    varies: bool = False
    size: int = 1
    repeats: int = 0  # without bound, in one alternative


def is_tame(pattern: str) -> bool:
    r"""Whether no text makes an expression compute without end: nothing that varies is repeated.

    >>> is_tame(r" ?\p{L}+| ?\p{N}{1,3}|\s+(?!\S)|\s+"), is_tame(r"(a+)+$"), is_tame(r"(a|aa)*$")
    (True, False, False)
    """
    if len(pattern) > MAX_LENGTH or _BACK.search(pattern):
        return False
    stack, at = [_Part()], 0
    while at < len(pattern):
        character, atom = pattern[at], _Part()
        if character == "(":
            found = _GROUP.match(pattern, at)
            if found is None or (pattern[at : at + 2] == "(?" and found[0] == "("):
                return False  # conditions, absence and whatever else Oniguruma has
            at = found.end()
            if not found[0].endswith(")"):  # not only options
                stack.append(_Part())
            continue
        if character == "|":
            stack[-1].varies, stack[-1].repeats = True, 0
            at += 1
            continue
        if character == ")":
            if len(stack) == 1:
                return False
            atom, at = stack.pop(), at + 1
        elif character == "[":
            end = _end_of_class(pattern, at)
            if end is None:
                return False
            at = end
        elif character == "\\":
            escape = _ESCAPE.match(pattern, at)
            if escape is None:
                return False
            at = escape.end()
        else:
            at += 1
        outer = stack[-1]
        while quantifier := _QUANTIFIER.match(pattern, at):
            at = quantifier.end()
            least, most = _bounds(quantifier)
            if (most is None or most > 1) and atom.varies:
                return False
            atom.varies |= least != most
            atom.repeats += most is None
            atom.size *= most or max(least, 1)
            if pattern[at : at + 1] in ("?", "+"):  # lazy, or possessive
                at += 1
        outer.varies |= atom.varies
        outer.repeats += atom.repeats
        outer.size += atom.size
        if outer.repeats > MAX_REPEATS or outer.size > MAX_UNROLLED + len(pattern):
            return False
    return len(stack) == 1


def require_tame_expressions(file: Path) -> None:
    """Refuse a tokenizer.json with an expression that is not tame.

    Raises:
        EncoderError: says which; or no JSON, or no regular file.
    """
    for pattern in _patterns(read_json(file, MAX_VOCABULARY)):
        if not is_tame(pattern):
            raise EncoderError(
                f"{file}: its regular expression {pattern[:60]!r} could compute without end (it repeats what repeats "
                "or branches): pass another tokenizer"
            )


@contextmanager
def panics_named() -> Iterator[None]:
    """Let a panic of the tokenizers library inside the block, which is no Exception, be a user's error.

    Raises:
        EncoderError: says that the tokenizer gave up.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise EncoderError(f"the tokenizer gives up on a caption ({error}): pass another one") from error


def _patterns(values: dict[str, Any]) -> Iterator[str]:
    """The expressions of all parts but the vocabulary."""
    waiting: list[Any] = [part for name, part in values.items() if name not in ("model", "added_tokens")]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if isinstance(part.get("Regex"), str):
                yield part["Regex"]
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def _end_of_class(pattern: str, at: int) -> int | None:
    """Where a class of characters ends, which may hold others; None if it does not."""
    depth, start = 0, at
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 2
            continue
        if pattern[at] == "[":
            depth, start = depth + 1, at
            if pattern[at + 1 : at + 2] == "^":
                at, start = at + 1, at + 1
        elif pattern[at] == "]" and at > start + 1:  # the first one is a character
            depth -= 1
            if not depth:
                return at + 1
        at += 1
    return None


def _bounds(quantifier: re.Match[str]) -> tuple[int, int | None]:
    """Least and most times; None is without bound."""
    if quantifier[0] in "*+?":
        return int(quantifier[0] == "+"), 1 if quantifier[0] == "?" else None
    least = int(quantifier[1] or 0)
    if not quantifier[2]:
        return least, least
    return least, int(quantifier[3]) if quantifier[3] else None
