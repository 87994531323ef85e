"""`clipglot search`: the images of a cache that fit texts and images best."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cache.format import RejectedImageError
from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.sources.text_files import split_lines
from ..cache.write.image_decode import ResizeCrop
from ..inference.errors import InputError
from ..inference.images import to_pixels
from ..inference.query import embed_queries, parse_query
from ..inference.text_files import read_text
from ..inference.towers import Towers, load_towers, require_same_tower
from ..search.filters import caption_mask
from ..search.hits import CaptionedHit, captioned_hits
from ..search.open import open_index
from .settings.search import SearchSettings

IMAGES_AT_A_TIME = 32


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What one query found.

    Attributes:
        query: as it was given; of an image its path.
        hits: best first; fewer than asked for where fewer images are embedded, or pass the filters.
    """

    query: str
    hits: list[CaptionedHit]


def search_images(settings: SearchSettings, on_progress: OnProgress = ignore_progress) -> list[SearchResult]:
    """Find the images of a cache that fit queries best, among all of them or by an index.

    Args:
        settings: the queries are `query`, then the lines of `queries`, then `image`. A query may add and subtract
            texts (`a dog +snow -leash`).
        on_progress: called with the queries of stage `search`.

    Returns:
        One result for each query, in that order.

    Raises:
        CacheError: no cache there, or one that is not complete.
        EncoderError: no merged CLIP, or one that does not load.
        InputError: an empty query, one that only takes away, an image or a file that cannot be read, or a cache of
            another image tower.
        SearchError: the cache has no caption in the language, or the index is damaged or of another cache.
    """
    queries = [*settings.query, *(_queries_of(settings.queries) if settings.queries else ())]
    for query in queries:
        parse_query(query)  # before anything is loaded
    cache = Cache(settings.cache).require_sealed()
    allowed = None
    if settings.caption is not None or settings.language is not None:
        allowed = caption_mask(cache, settings.caption, settings.language)
    clip = load_towers(settings.merged)
    require_same_tower(clip, cache)
    names = [*queries, *map(str, settings.image)]
    emb = np.concatenate(
        [
            embed_queries(queries, clip.encode_texts) if queries else np.zeros((0, clip.dim), np.float32),
            _embed_images(clip, settings.image),
        ]
    )
    hits = captioned_hits(cache, *open_index(cache, settings.index).search(emb, settings.top, allowed))
    on_progress(Progress("search", len(names), len(names)))
    return [SearchResult(query=name, hits=found) for name, found in zip(names, hits, strict=True)]


def _queries_of(file: Path) -> list[str]:
    """Queries of a file.

    Raises:
        InputError: it cannot be read, or has none; or one that is no query, whose line is named.
    """
    lines = [(number, line) for number, line in enumerate(split_lines(read_text(file)), 1) if line.strip()]
    if not lines:
        raise InputError(f"{file} has no query: write one per line")
    for number, line in lines:
        try:
            parse_query(line)
        except InputError as error:
            raise InputError(f"{file}:{number}: {error}") from error
    return [line for _, line in lines]


def _embed_images(clip: Towers, images: Sequence[Path]) -> NDArray[np.float32]:
    """Embeddings of image files, `[n, D] float32`, unit norm.

    Raises:
        InputError: one that cannot be embedded.
    """
    geometry = ResizeCrop.from_preprocess(clip.preprocess)
    features = [np.zeros((0, clip.dim), np.float32)]
    for start in range(0, len(images), IMAGES_AT_A_TIME):
        pixels = [_pixels(image, geometry) for image in images[start : start + IMAGES_AT_A_TIME]]
        features.append(clip.encode_pixels(np.stack(pixels)))
    emb = np.concatenate(features)
    norms = np.linalg.norm(emb, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        image = images[int(np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))[0])]
        raise InputError(f"--image {image}: the image tower's output is zero or not finite: leave it out")
    result: NDArray[np.float32] = emb / norms
    return result


def _pixels(image: Path, geometry: ResizeCrop) -> NDArray[np.uint8]:
    """Pixels of an image file, `[height, width, 3] uint8`.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return to_pixels(image, geometry)
    except InputError as error:
        remedy = ": pass an image" if isinstance(error.__cause__, RejectedImageError) else ""
        raise InputError(f"--image {error}{remedy}") from error
