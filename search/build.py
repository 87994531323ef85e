"""Making of an index file: lists, and settings chosen by texts; written whole or not at all."""

import time
from pathlib import Path

import numpy as np

from ..cache.format import Status
from ..cache.progress import OnProgress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.read.identity import embedding_identity
from ..cache.storage.atomic import explain_os_error
from ..cache.write.convert import require_nothing, whole_file
from .codings import coding_of
from .index_file import IndexInfo, load_faiss, seal_index
from .ivf import Assign, Lists, write_lists
from .nearest import Floats
from .tune import tune


def write_index_file(
    cache: Cache,
    file: Path,
    queries: Floats,
    *,
    kind_of_queries: str,
    kind: str | None = None,
    target: float = 0.95,
    seed: int = 0,
    assign: Assign | None = None,
    on_progress: OnProgress = ignore_progress,
) -> tuple[IndexInfo, float]:
    """Write the index of a cache.

    Args:
        cache: sealed.
        file: absent.
        queries: `[Q, D] float32` of unit norm, embeddings of at least 2 texts in random order: half of them choose, the
            others measure.
        kind_of_queries: what they are, for the file.
        kind: of index, see `CODINGS`; by default that for so many rows.
        target: recall@10 to reach.
        seed: of the sample that the lists are made from.
        assign: finds the lists of rows, see `write_lists`.
        on_progress: called in stages `train`, `assign`, `write`, `compare` and `measure`.

    Returns:
        What the file says about itself, and seconds that the lists took.

    Raises:
        SearchError: no such kind, no embedded image, or faiss is not installed.
        CacheError: damage, something at the output, or no room for it.
    """
    require_nothing(file)
    load_faiss()
    with explain_os_error(file, "make its folder writable or choose another name"), whole_file(file) as partial:
        identity = embedding_identity(cache)
        begun = time.perf_counter()
        layout = write_lists(cache, partial, on_progress, seed, coding_of(kind) if kind else None, assign)
        build_s = time.perf_counter() - begun
        tuned = tune(cache, layout, Lists(partial, layout.coding), queries, target, on_progress)
        num_rows = int((cache.status() == Status.EMBEDDED).sum())

        def info(checksums: list[int]) -> IndexInfo:
            return IndexInfo(
                kind=layout.coding.kind,
                cache=identity,
                num_images=len(cache),
                num_rows=num_rows,
                dim=cache.info.encoder.dim,
                num_lists=len(layout.centroids),
                num_probes=tuned.num_probes,
                depth=tuned.depth,
                target=target,
                recall=tuned.recall,
                num_queries=tuned.num_queries,
                queries=kind_of_queries,
                checksums=checksums,
            )

        return seal_index(partial, layout.coding, info), build_s


def unit(emb: Floats) -> Floats:
    """Embeddings `[n, D]` at unit norm."""
    result: Floats = emb / np.linalg.norm(emb, axis=1, keepdims=True)
    return result
