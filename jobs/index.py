"""`clipglot index`: an index file for search in a large cache, tuned and measured by texts."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.sources.text_files import decode_text, split_lines
from ..cache.storage.regular import read_regular
from ..cache.write.convert import require_nothing
from ..inference.errors import InputError
from ..inference.towers import load_towers, require_same_tower
from ..search.build import unit, write_index_file
from ..search.errors import SearchError
from ..search.index_file import load_faiss
from ..search.ivf import Assign
from .installed import require_dask
from .settings.index import IndexSettings

SMALL_ROWS = 200_000  # below, exact search takes some milliseconds


@dataclass(frozen=True, kw_only=True)
class IndexResult:
    """An index that was written.

    Attributes:
        file: where it lies.
        kind: of index.
        num_rows: images in it.
        num_lists: into which they are divided.
        num_probes: lists that a search reads.
        depth: of each ten images to find, rows that are scored again.
        recall: recall@10 against exact search.
        target: that was asked for.
        num_queries: texts by which recall was measured; they had no part in choosing.
        queries: what they are: "captions", "translations" or "texts".
        num_bytes: of the file.
        wall_s: seconds from start to end.
        build_s: of these, for the lists.
        is_small: exact search of this cache is so fast that it needs no index.
    """

    file: Path
    kind: str
    num_rows: int
    num_lists: int
    num_probes: int
    depth: int
    recall: float
    target: float
    num_queries: int
    queries: str
    num_bytes: int
    wall_s: float
    build_s: float
    is_small: bool


def build_index(
    settings: IndexSettings,
    on_progress: OnProgress = ignore_progress,
    *,
    on_note: Callable[[str], None] = lambda note: None,
) -> IndexResult:
    """Divide the images of a cache into lists, and choose by texts how many of them a search reads.

    Args:
        settings: the cache, the file to write, the texts and the recall to reach.
        on_progress: called in stages `encode`, `train`, `assign`, `write`, `compare` and `measure`.
        on_note: called with what the user should know of the cluster.

    Raises:
        CacheError: the cache is not complete or damaged, the file exists, the disk is full, or a worker of the cluster
            cannot take part.
        DistillError: no scheduler is there.
        EncoderError: the merged CLIP does not load.
        InputError: the merged CLIP has another image tower, or there are no texts.
        SearchError: no texts to measure by, no embedded image, or faiss is not installed.
    """
    started = time.perf_counter()
    require_nothing(settings.output)
    load_faiss()
    cache = Cache(settings.cache).require_sealed()
    import torch  # noqa: F401 (casts float16 several times as fast as numpy, see `search/codes.py`)

    with _assignment(settings, cache, on_note) as assign:
        queries, kind = _queries(cache, settings, on_progress)
        sealed, build_s = write_index_file(
            cache,
            settings.output,
            queries,
            kind_of_queries=kind,
            kind=None if settings.kind == "auto" else settings.kind,
            target=settings.recall,
            seed=settings.seed,
            assign=assign,
            on_progress=on_progress,
        )
    return IndexResult(
        file=settings.output,
        kind=sealed.kind,
        num_rows=sealed.num_rows,
        num_lists=sealed.num_lists,
        num_probes=sealed.num_probes,
        depth=sealed.depth,
        recall=sealed.recall,
        target=sealed.target,
        num_queries=sealed.num_queries,
        queries=sealed.queries,
        num_bytes=settings.output.stat().st_size,
        wall_s=time.perf_counter() - started,
        build_s=build_s,
        is_small=sealed.num_rows < SMALL_ROWS,
    )


def _assignment(
    settings: IndexSettings, cache: Cache, on_note: Callable[[str], None]
) -> AbstractContextManager[Assign | None]:
    """What finds the lists of rows; None for this process."""
    if settings.scheduler is None:
        return nullcontext()
    require_dask()
    from .dask_index import assignment_on_workers  # imports distributed

    return assignment_on_workers(settings, cache, on_note)


def _queries(cache: Cache, settings: IndexSettings, on_progress: OnProgress) -> tuple[NDArray[np.float32], str]:
    """Embeddings of texts in random order, `[Q, D]` of unit norm, and what texts they are.

    Raises:
        InputError: as of `build_index`.
        SearchError: as of `build_index`.
    """
    rng = np.random.default_rng(settings.seed)
    if settings.clip is None:
        if not cache.info.source.has_teacher:
            raise SearchError(
                f"{cache.path}: recall is measured by texts, because images find their neighbours in an index more "
                "easily than texts do: pass a merged CLIP that embeds the captions (--clip MERGED)"
            )
        targets = cache.teacher_emb()
        chosen = rng.permutation(np.flatnonzero(targets.any(axis=1)))[: settings.num_queries]
        if len(chosen) < 2:
            raise SearchError(f"{cache.path} has no embedded translations: pass --clip MERGED")
        return unit(targets[chosen].astype(np.float32)), "translations"
    towers = load_towers(settings.clip)
    require_same_tower(towers, cache)
    if settings.queries is None:
        rows = rng.permutation(cache.info.num_captions)[: settings.num_queries]
        texts = [cache.captions(row, row + 1)[0] for row in rows.tolist()]
        missing = f"{cache.path} has {len(texts)} captions: pass --queries FILE with texts, one a line"
    else:
        lines = dict.fromkeys(filter(None, map(str.strip, _lines(settings.queries))))
        texts = [*lines]
        texts = [texts[i] for i in rng.permutation(len(texts))[: settings.num_queries].tolist()]
        missing = f"{settings.queries} has {len(texts)} different texts: write one a line, at least two"
    if len(texts) < 2:
        raise SearchError(missing)
    emb = towers.encode_texts(texts, on_progress=lambda done, total: on_progress(Progress("encode", done, total)))
    return unit(emb), "captions" if settings.queries is None else "texts"


def _lines(file: Path) -> list[str]:
    """Lines of a text file.

    Raises:
        InputError: it cannot be read as UTF-8.
    """
    try:
        return split_lines(decode_text(read_regular(file)))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} cannot be read as UTF-8 text ({error}): pass a file of queries, one per line"
        ) from error
