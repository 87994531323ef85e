"""Queries that add and subtract texts: `a dog +snow -leash`."""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

_SIGN = re.compile(r"(?:^|(?<=\s))([+-])(?=[^\s+-])")


def parse_query(query: str) -> list[tuple[int, str]]:
    """Texts of a query with their signs, 1 or -1.

    A `+` or `-` after a space, or at the beginning, and before a letter begins a text; hyphens in words do not.

    Args:
        query: as a user types it.

    Raises:
        InputError: no text in it, or none that is added.

    >>> parse_query("a T-shirt"), parse_query("a dog -snow +two people"), parse_query("+dog -snow")
    ([(1, 'a T-shirt')], [(1, 'a dog'), (-1, 'snow'), (1, 'two people')], [(1, 'dog'), (-1, 'snow')])
    """
    first, *signed = _SIGN.split(query)
    texts = [(1, first.strip())] if first.strip() else []
    texts += [(1 if sign == "+" else -1, text.strip()) for sign, text in zip(signed[::2], signed[1::2], strict=True)]
    texts = [(sign, text) for sign, text in texts if text]
    if not texts:
        raise InputError("an empty query: write what the images should show")
    if all(sign < 0 for sign, _ in texts):
        raise InputError(f"{query!r} only takes away: write what the images should show, too")
    return texts


def embed_queries(
    queries: Sequence[str], encode_texts: Callable[[Sequence[str]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Embeddings of queries, `[Q, D] float32` of unit norm: the sum of their texts' embeddings with their signs.

    Args:
        queries: Q of them.
        encode_texts: gives embeddings `[n, D]` of unit norm; called once, with each text once.

    Raises:
        InputError: as of `parse_query`; or texts that cancel each other.
    """
    parsed = [parse_query(query) for query in queries]
    texts = list(dict.fromkeys(text for terms in parsed for _, text in terms))
    emb = dict(zip(texts, encode_texts(texts), strict=True))
    sums = np.array([sum(sign * emb[text].astype(np.float64) for sign, text in terms) for terms in parsed])
    norms = np.linalg.norm(sums, axis=1)
    if not (norms > 1e-6).all():
        raise InputError(f"{queries[int(norms.argmin())]!r} takes away what it adds: nothing is left to search for")
    result: NDArray[np.float32] = (sums / norms[:, None]).astype(np.float32)
    return result
