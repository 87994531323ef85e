"""What a run is given, counted once before its first step: captions that many share, captions that are cut.

M captions, N images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...cache.format import Status
from ...cache.read.cache import Cache
from ...encoders.tokenizer import TextTokenizer
from ...encoders.tokenizer_coverage import bad_splits
from .pairs import TrainData, ValidationData
from .tokens import CAPTIONS_AT_A_TIME

COMMON_SHARE, COMMON_COUNT = 0.01, 20  # a caption is common that more than so many images carry
SAMPLED = 1000  # captions tokenized again, and pairs measured in runs without validation
SAMPLED_CHUNKS = 8  # of the cache, so that a sample costs little where it lies far away
HELD = 0.99  # share of the captions that a longer context should hold


@dataclass(frozen=True, kw_only=True)
class CaptionStats:
    """Pairs in figures.

    Attributes:
        num_pictures: embedded ones with captions.
        num_without: embedded ones without.
        equal: share of the captions that equal one of another image.
        common: share of the captions that more than 1 % of the images carry, and at least twenty.
        masked: chance that another image carries the caption of a pair too, and so is no negative.
        most_common: the caption that most images carry.
        most_common_share: share of the images that carry it.
        cut: share of the captions that the context length cuts.
        longer: context length that would hold 99 % of them.
        badly_split: scripts that the tokenizer splits badly, with figures.
    """

    num_pictures: int
    num_without: int = 0
    equal: float = 0.0
    common: float = 0.0
    masked: float = 0.0
    most_common: str = ""
    most_common_share: float = 0.0
    cut: float = 0.0
    longer: int = 0
    badly_split: str = ""


def count_pairs(cache: Cache, data: TrainData, tokenizer: TextTokenizer, context_length: int) -> CaptionStats:
    """Count what a run is given.

    Args:
        cache: that it trains on.
        data: the same, loaded.
        tokenizer: of the run.
        context_length: at which captions are cut.

    Raises:
        CacheError: the captions are damaged.
    """
    usable = np.flatnonzero(data.caption_image >= 0)
    rows = data.caption_image[usable]
    num_pictures = int(np.count_nonzero(np.diff(rows, prepend=-1)))
    groups, counts = _carriers(data.caption_group[usable], rows)
    pairs = counts.sum()
    common = counts[counts > max(COMMON_SHARE * num_pictures, COMMON_COUNT)]
    most = int(groups[counts.argmax()])
    cut, longer = _cut(cache, data, tokenizer, context_length)
    return CaptionStats(
        num_pictures=num_pictures,
        num_without=int((cache.status() == Status.EMBEDDED).sum()) - num_pictures,
        equal=float(counts[counts > 1].sum() / pairs),
        common=float(common.sum() / pairs),
        masked=float((counts * (counts - 1.0)).sum() / pairs / max(1, num_pictures - 1)),
        most_common=cache.captions(most, most + 1)[0],
        most_common_share=float(counts.max() / num_pictures),
        cut=cut,
        longer=longer,
        badly_split=bad_splits(tokenizer.backend, cache.captions(0, SAMPLED)),
    )


def _carriers(groups: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each distinct caption, and how many images carry it; an image counts once."""
    size = int(rows.max()) + 1
    carried = np.unique(groups * size + rows) // size
    return np.unique(carried, return_counts=True)


def _cut(cache: Cache, data: TrainData, tokenizer: TextTokenizer, context_length: int) -> tuple[float, int]:
    """Share of the captions that are cut, and the context length that would hold nearly all; from a sample of them."""
    full = []  # captions as long as may be: whole or cut
    for start in range(0, len(data.tokens), CAPTIONS_AT_A_TIME):
        captions = np.arange(start, min(start + CAPTIONS_AT_A_TIME, len(data.tokens)) + 1)
        full.append(start + np.flatnonzero(np.diff(data.tokens.offsets.take(captions)) >= context_length))
    long = np.concatenate([np.zeros(0, np.int64), *full])
    if not len(long):
        return 0.0, context_length
    # A run of neighbours: single captions here and there would each decode a chunk.
    first = int(long[max(0, len(long) - SAMPLED) // 2])
    near = long[(long >= first) & (long < first + CAPTIONS_AT_A_TIME)][:SAMPLED]
    texts = cache.captions(first, int(near[-1]) + 1)
    lengths = np.sort([len(ids) for ids in tokenizer.encode([texts[i - first] for i in near], 10**6)])
    share = len(long) / len(data.tokens)
    within = 1 - min(1.0, (1 - HELD) / share)  # of the long ones, so many must fit
    longer = int(lengths[min(len(lengths) - 1, int(within * len(lengths)))])
    return float(share * (lengths > context_length).mean()), longer


def sample_pairs(cache: Cache, data: TrainData) -> ValidationData:
    """Some of the pairs that a run learns from, to be measured as held-out ones are.

    Args:
        cache: that it trains on.
        data: the same, loaded.

    Raises:
        CacheError: embeddings are damaged.
    """
    first = np.flatnonzero(np.diff(data.caption_image, prepend=-2) != 0)
    captions = first[data.caption_image[first] >= 0]  # the first of each image
    chunk = data.caption_image[captions] // cache.info.chunk_rows
    chunks = np.unique(chunk)
    near = captions[np.isin(chunk, chunks[:: -(-len(chunks) // SAMPLED_CHUNKS)])]
    taken = near[:: -(-len(near) // SAMPLED)]
    return ValidationData(
        image_emb=cache.emb_rows(data.caption_image[taken]).astype(np.float32),
        tokens=data.tokens,
        captions=taken,
        image_index=np.arange(len(taken)),
        groups=data.caption_group[taken],
    )
