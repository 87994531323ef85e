"""Queries that add and subtract texts: `a dog +snow -leash`."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

_PLUS, _MINUS = "+\uff0b", "-\u2212\uff0d"  # fullwidth ones are typed in Chinese, U+2212 is the minus of mathematics
# A word or a quoted text, with the sign before it. Quotes stand at the ends of words: 5" is no quote.
_PART = re.compile(rf'(?<!\S)([{re.escape(_PLUS + _MINUS)}]?)("[^"]*"(?!\S)|\S+)')
_QUOTED = re.compile(r'"([^"]*)"')
_LETTERS = ("L", "M", "So", "Sk")  # Unicode's categories of letters, marks, emoji and their modifiers


def parse_query(query: str) -> list[tuple[int, str]]:
    """Texts of a query with their signs, 1 or -1.

    A `+` or `-` at the beginning of a word, before a letter, an emoji or a quote, begins a text, which ends where the
    next one begins. Other signs are part of their text: those inside words (T-shirt, C++), between words (a - b) and
    before digits (-5). So are all signs inside double quotes.

    Args:
        query: as a user types it.

    Raises:
        InputError: no text in it, or none that is added.

    >>> parse_query("a T-shirt"), parse_query("a dog -snow +two people"), parse_query("+dog -snow")
    ([(1, 'a T-shirt')], [(1, 'a dog'), (-1, 'snow'), (1, 'two people')], [(1, 'dog'), (-1, 'snow')])
    >>> parse_query("-5 degrees"), parse_query('beach -"5 people"'), parse_query('"black -and -white"')
    ([(1, '-5 degrees')], [(1, 'beach'), (-1, '5 people')], [(1, 'black -and -white')])
    """
    begins = [match.start() for match in _PART.finditer(query) if match[1] and _begins_text(match[2])]
    ends = [*begins, len(query)]
    terms = [(1, _unquoted(query[: ends[0]]))]
    terms += [(1 if query[a] in _PLUS else -1, _unquoted(query[a + 1 : b])) for a, b in pairwise(ends)]
    terms = [(sign, text) for sign, text in terms if text]
    if not terms:
        raise InputError("an empty query: write what the images should show")
    if all(sign < 0 for sign, _ in terms):
        raise InputError(f"{query!r} only takes away: write what the images should show, too")
    return terms


def _begins_text(after_sign: str) -> bool:
    """Whether what follows a sign is a text, and no number, arrow or further sign."""
    return bool(_QUOTED.fullmatch(after_sign)) or unicodedata.category(after_sign[0]).startswith(_LETTERS)


def _unquoted(text: str) -> str:
    """A text without spaces around it, and without quotes if they enclose it."""
    quoted = _QUOTED.fullmatch(text.strip())
    return quoted[1].strip() if quoted else text.strip()


def embed_queries(
    queries: Sequence[str], encode_texts: Callable[[Sequence[str]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Embeddings of queries, `[Q, D] float32` of unit norm: the sum of their texts' embeddings with their signs.

    Args:
        queries: Q of them, at least one.
        encode_texts: gives embeddings `[n, D]` of unit norm; called once, with each text once.

    Raises:
        InputError: as of `parse_query`; or texts that cancel each other, or whose embeddings are not finite.
    """
    parsed = [parse_query(query) for query in queries]
    texts = list(dict.fromkeys(text for terms in parsed for _, text in terms))
    emb = dict(zip(texts, encode_texts(texts), strict=True))
    sums = np.array([sum(sign * emb[text].astype(np.float64) for sign, text in terms) for terms in parsed])
    norms = np.linalg.norm(sums, axis=1)
    if not np.isfinite(norms).all():
        query = queries[int(np.flatnonzero(~np.isfinite(norms))[0])]
        raise InputError(f"the embedding of {query!r} holds NaN or infinity: the text tower has diverged, pass another")
    if not (norms > 1e-6).all():
        raise InputError(f"{queries[int(norms.argmin())]!r} takes away what it adds: nothing is left to search for")
    result: NDArray[np.float32] = (sums / norms[:, None]).astype(np.float32)
    return result
