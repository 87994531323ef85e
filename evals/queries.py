"""MUGE's retrieval: queries with the keys of their images, recall, and the file of its leaderboard.

Queries are JSON lines `{"query_id": …, "query_text": …, "item_ids": […]}`; those of its test part have no `item_ids`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.progress import OnProgress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.sources.text_files import split_lines
from ..cache.storage.atomic import atomic_write, explain_os_error
from ..inference.clip import search_exactly
from ..inference.text_files import read_text
from .captions import embedded_images
from .errors import EvalError
from .prompts import parse_json
from .retrieval import Places, retrieve

SUBMITTED = 10
QUERIES_AT_A_TIME = 512
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")  # else a key with leading zeros would become another


@dataclass(frozen=True, kw_only=True)
class Query:
    """A text, and the images that are right for it.

    Attributes:
        query_id: as it stands in the file.
        text: of the query.
        keys: of its images; empty where the file keeps them secret.
    """

    query_id: Any
    text: str
    keys: tuple[str, ...]


def read_queries(file: Path) -> list[Query]:
    """Queries of a file of JSON lines.

    Raises:
        EvalError: a line is not as promised; the message names it.
        InputError: it cannot be read.
    """
    queries = []
    for number, line in enumerate(split_lines(read_text(file, "a file of JSON lines")), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
            keys = _keys(record.get("item_ids"))
            query = Query(query_id=record["query_id"], text=record["query_text"], keys=keys)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvalError(
                f"{file}:{number}: expected an object with query_id, query_text and item_ids ({error!r})"
            ) from error
        if not isinstance(query.text, str):
            raise EvalError(f"{file}:{number}: query_text is no text")
        queries.append(query)
    if not queries:
        raise EvalError(f"{file} has no query")
    return queries


def _keys(item_ids: Any) -> tuple[str, ...]:
    """Keys of images.

    Raises:
        TypeError: no list of numbers and texts.
    """
    if not isinstance(item_ids, list | None) or not all(type(key) in (int, str) for key in item_ids or ()):
        raise TypeError("item_ids is no list of keys")
    return tuple(map(str, item_ids or ()))


def retrieve_queries(
    queries: Sequence[Query],
    text_emb: NDArray[np.float32],
    cache: Cache,
    on_progress: OnProgress = ignore_progress,
) -> tuple[Places | None, int]:
    """Places of the best right image of each query, and the number of queries none of whose images is embedded.

    Args:
        queries: with or without images.
        text_emb: `[Q, D]`, unit norm.
        cache: whose embedded images are all ranked.
        on_progress: as of `retrieve`.

    Returns:
        None without any images of queries. Queries that cannot be found are left out of the places.

    Raises:
        EvalError: a key that the cache does not have.
    """
    if not any(query.keys for query in queries):
        return None, 0
    row_of = {key: row for row, key in enumerate(cache.keys())}
    rows, image_emb = embedded_images(cache)
    place = np.full(len(cache), -1)
    place[rows] = np.arange(len(rows))
    pairs: list[tuple[int, int]] = []
    for number, query in enumerate(queries):
        if unknown := [key for key in query.keys if key not in row_of]:
            raise EvalError(
                f"query {query.query_id}: {cache.path} has no image with key {unknown[0]!r}: "
                "cache the images of this part"
            )
        pairs += [(number, int(place[row_of[key]])) for key in query.keys if place[row_of[key]] >= 0]
    numbers, images = np.array(pairs, np.int64).reshape(-1, 2).T
    num_lost = sum(bool(query.keys) for query in queries) - len(set(numbers))
    if not pairs:
        raise EvalError(f"{cache.path}: none of the images of the queries is embedded")
    places = retrieve(text_emb[numbers], image_emb, images, numbers, on_progress).text_to_image
    return places.take(np.unique(numbers, return_index=True)[1]), num_lost


def write_submission(file: Path, queries: Sequence[Query], text_emb: NDArray[np.float32], cache: Cache) -> None:
    """Write the ten best images of each query, as MUGE's leaderboard takes them; keys that are numbers as numbers.

    Raises:
        EvalError: an embedding is NaN or infinite.
        UnwritableError: the file cannot be written.
    """
    if not np.isfinite(text_emb).all():
        raise EvalError("the text embeddings hold NaN or infinity: the tower that made them has diverged")
    lines = []
    for start in range(0, len(queries), QUERIES_AT_A_TIME):
        found = search_exactly(cache, text_emb[start : start + QUERIES_AT_A_TIME], SUBMITTED)
        for query, hits in zip(queries[start : start + QUERIES_AT_A_TIME], found, strict=True):
            keys = [int(hit.key) if _NUMBER.fullmatch(hit.key) else hit.key for hit in hits]
            record = {"query_id": query.query_id, "query_text": query.text, "item_ids": keys}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    with explain_os_error(file):
        atomic_write(file, "".join(lines).encode())
