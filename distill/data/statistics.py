"""Caption statistics of a run, counted once before its first step: shared captions, cut captions, scripts.

M captions, N images.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...cache.format import Status
from ...cache.read.cache import Cache
from ...encoders.tokenizer import TextTokenizer
from ...encoders.tokenizer_coverage import poor_coverage
from .pairs import TrainData, ValidationData
from .shuffle import drawn_order
from .tokens import CAPTIONS_PER_BLOCK

COMMON_SHARE, COMMON_COUNT = 0.01, 20  # a caption is common if more images have it than either says
MAX_SAMPLE = 1000  # captions tokenized again, and pairs measured in runs without validation
SAMPLED_CHUNKS = 8  # of the cache, so that a sample of a remote cache costs little
WHOLE_SHARE = 0.99  # share of the captions that a longer context should hold


@dataclass(frozen=True, kw_only=True)
class CaptionStats:
    """Figures of a run's captions.

    Attributes:
        num_images: embedded images with captions.
        num_without: embedded images without captions.
        equal: share of the captions that equal a caption of another image.
        common: share of the captions that more than 1 % of the images have, and more than twenty.
        masked: chance that another image has the caption of a pair too, and so is no negative.
        most_common: the caption that most images have.
        most_common_share: share of the images that have it.
        cut: share of the captions that the context length cuts.
        longer: context length that would hold 99 % of the captions.
        badly_split: scripts that the tokenizer splits badly, with figures.
    """

    num_images: int
    num_without: int = 0
    equal: float = 0.0
    common: float = 0.0
    masked: float = 0.0
    most_common: str = ""
    most_common_share: float = 0.0
    cut: float = 0.0
    longer: int = 0
    badly_split: str = ""


def count_captions(cache: Cache, data: TrainData, tokenizer: TextTokenizer, context_length: int) -> CaptionStats:
    """Count the captions that a run trains on.

    Args:
        cache: of the run.
        data: loaded from it.
        tokenizer: of the run.
        context_length: at which captions are cut.

    Raises:
        CacheError: the captions are damaged.
    """
    usable = np.flatnonzero(data.caption_image >= 0)
    rows = data.caption_image[usable]
    num_images = int(np.count_nonzero(np.diff(rows, prepend=-1)))
    groups, counts = _count_images(data.caption_group[usable], rows)
    num_pairs = counts.sum()
    common = counts[counts > max(COMMON_SHARE * num_images, COMMON_COUNT)]
    most = int(groups[counts.argmax()])
    cut, longer = _cut(cache, data, tokenizer, context_length)
    return CaptionStats(
        num_images=num_images,
        num_without=int((cache.status() == Status.EMBEDDED).sum()) - num_images,
        equal=float(counts[counts > 1].sum() / num_pairs),
        common=float(common.sum() / num_pairs),
        masked=float((counts * (counts - 1.0)).sum() / num_pairs / max(1, num_images - 1)),
        most_common=cache.captions(most, most + 1)[0],
        most_common_share=float(counts.max() / num_images),
        cut=cut,
        longer=longer,
        badly_split=poor_coverage(tokenizer.backend, _first_captions(cache, usable)),
    )


def _first_captions(cache: Cache, usable: NDArray[np.int64]) -> list[str]:
    """The first of the captions that are trained on."""
    some = usable[:MAX_SAMPLE]
    texts = cache.captions(int(some[0]), int(some[-1]) + 1)
    return [texts[place] for place in (some - some[0]).tolist()]


def _count_images(groups: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct captions, and the number of images that have each; an image counts once."""
    size = int(rows.max()) + 1
    pairs = np.unique(groups * size + rows)
    return np.unique(pairs // size, return_counts=True)


def _cut(cache: Cache, data: TrainData, tokenizer: TextTokenizer, context_length: int) -> tuple[float, int]:
    """Share of the captions that are cut, and the context length that would hold nearly all; from a sample."""
    full = []  # captions of the greatest length, whole or cut
    for start in range(0, len(data.tokens), CAPTIONS_PER_BLOCK):
        captions = np.arange(start, min(start + CAPTIONS_PER_BLOCK, len(data.tokens)))
        is_full = data.tokens.lengths(captions) >= context_length
        full.append(start + np.flatnonzero(is_full & (data.caption_image[captions] >= 0)))
    long = np.concatenate([np.zeros(0, np.int64), *full])
    if not len(long):
        return 0.0, context_length
    # Neighbours alone: captions from everywhere would each decode a chunk.
    first = int(long[max(0, len(long) - MAX_SAMPLE) // 2])
    near = long[(long >= first) & (long < first + CAPTIONS_PER_BLOCK)][:MAX_SAMPLE]
    texts = cache.captions(first, int(near[-1]) + 1)
    lengths = np.sort([len(ids) for ids in tokenizer.encode([texts[i - first] for i in near], 10**6)])
    share = len(long) / np.count_nonzero(data.caption_image >= 0)
    must_fit = 1 - min(1.0, (1 - WHOLE_SHARE) / share)  # share of the long captions
    longer = int(lengths[min(len(lengths) - 1, int(must_fit * len(lengths)))])
    return float(share * (lengths > context_length).mean()), longer


def sample_pairs(cache: Cache, data: TrainData) -> ValidationData:
    """Sample of the pairs that a run learns from, to be measured as held-out pairs are.

    Args:
        cache: of the run.
        data: loaded from it.

    Raises:
        CacheError: embeddings are damaged.
    """
    usable = np.flatnonzero(data.caption_image >= 0)
    if len(cache.caption_names) > 1 or data.caption_weight is not None:
        usable = _drawn_first(usable, data)
    captions = usable[np.diff(data.caption_image[usable], prepend=-1) != 0]  # the first of each image
    chunk = data.caption_image[captions] // cache.info.chunk_rows
    chunks = np.unique(chunk)
    near = captions[np.isin(chunk, chunks[:: -(-len(chunks) // SAMPLED_CHUNKS)])]
    taken = near[:: -(-len(near) // MAX_SAMPLE)]
    return ValidationData(
        image_emb=cache.emb_rows(data.caption_image[taken]).astype(np.float32),
        tokens=data.tokens,
        captions=taken,
        image_index=np.arange(len(taken)),
        groups=data.caption_group[taken],
        text_ids=data.caption_group[taken],  # equal tokens, as in the loss: texts would have to be read
        features=data.features,
    )


def _drawn_first(captions: NDArray[np.int64], data: TrainData) -> NDArray[np.int64]:
    """Captions by image, those of an image in an order drawn by their weights, the same for every run."""
    weights = np.ones(len(captions)) if data.caption_weight is None else data.caption_weight[captions]
    return captions[drawn_order(captions, data.caption_image[captions], weights, np.uint64(0))]
