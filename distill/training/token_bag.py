"""Bag of tokens, the warm start of a scratch tower (`--warm-start ridge`), fitted in closed form.

Each token gets a weight vector, so that the sum over a caption predicts the embedding of its image: ridge regression
on token counts, and a metric for retrieval (`ridge.py`). Penalty and metric are chosen on held-out images, then all
images are used. The tower has to learn only what a bag of tokens cannot express.

V tokens of the vocabulary, N images, M captions, D dimensions.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...cache.progress import OnProgress, Progress, ignore_progress
from ...cache.read.cache import Cache
from ...encoders.packing import concatenated_ranges, spans_to_eos
from ...evals.retrieval import retrieve
from ..data.pairs import TrainData
from ..errors import DistillError
from .ridge import require_distinct, retrieval_metric, solve_ridge

MAX_CAPTIONS = 2**18  # more change a bag of tokens little, and each round of the solution is a pass over them
MAX_HELD_OUT = 1000  # images, as in common retrieval sets
PENALTIES = (100.0, 30.0, 10.0, 3.0, 1.0)  # falling: each solution is near the one before
SHRINKAGES = (0.3, 1.0, 3.0)
TOLERANCE = 1e-2  # a smaller one does not change recall


@dataclass(frozen=True, kw_only=True)
class TokenBag:
    """Linear model of token counts.

    Attributes:
        weights: `[V, D] float32`, 0 for tokens that begin, end and fill captions.
        bias: `[D] float32`.
        alpha: chosen penalty.
        shrinkage: of the chosen metric.
    """

    weights: Tensor
    bias: Tensor
    alpha: float
    shrinkage: float


class TokenCounts:
    """Sparse matrix `[M, V]` of captions' token counts, kept as the tokens of captions and the captions of tokens.

    Attributes:
        num_captions: M.
        totals: `[V]`, counts over all captions.
    """

    def __init__(
        self,
        ids: NDArray[np.int64],
        lengths: NDArray[np.int64],
        vocab_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Count the tokens of M captions.

        Args:
            ids: `[T]`, all captions joined.
            lengths: `[M]`.
            vocab_size: V.
            device: where products are computed.
        """
        captions = np.repeat(np.arange(len(lengths)), lengths)
        order = np.argsort(ids, kind="stable")
        totals = np.bincount(ids, minlength=vocab_size)
        arrays = ids, np.cumsum(lengths) - lengths, captions[order], np.cumsum(totals) - totals
        self._ids, self._starts, self._captions, self._token_starts = (torch.from_numpy(a).to(device) for a in arrays)
        self.num_captions, self.totals = len(lengths), torch.from_numpy(totals).to(device)

    def times(self, weights: Tensor) -> Tensor:
        """Sum of each caption's token weights: `[V, D]` to `[M, D]`."""
        return F.embedding_bag(self._ids, weights, self._starts, mode="sum")

    def transposed_times(self, values: Tensor) -> Tensor:
        """Sum over each token's captions: `[M, D]` to `[V, D]`."""
        return F.embedding_bag(self._captions, values, self._token_starts, mode="sum")

    def solve(
        self, targets: Tensor, alpha: float, *, start: Tensor | None = None, tolerance: float = TOLERANCE
    ) -> tuple[Tensor, Tensor]:
        """Ridge regression on the counts: token weights `[V, D]` and the unpenalised intercept `[D]`.

        Args:
            targets: `[M, D]`.
            alpha: penalty.
            start: weights for another penalty.
            tolerance: as of `solve_ridge`.
        """
        mean, target_mean = self.totals.to(targets.dtype) / self.num_captions, targets.mean(0)

        def gram(weights: Tensor) -> Tensor:
            return self.transposed_times(self.times(weights)) - self.num_captions * torch.outer(mean, mean @ weights)

        moment = self.transposed_times(targets - target_mean)
        weights = solve_ridge(gram, moment, alpha, start=start, tolerance=tolerance)
        return weights, target_mean - mean @ weights


def fit_bag(
    cache: Cache,
    data: TrainData,
    *,
    vocab_size: int,
    pad_id: int,
    bos_id: int,
    eos_id: int,
    device: torch.device,
    on_progress: OnProgress = ignore_progress,
) -> TokenBag:
    """Fit a bag of tokens to a cache; to evenly spaced chunks of a large one.

    Args:
        cache: of the run.
        data: loaded from it.
        vocab_size: V.
        pad_id: token that fills captions.
        bos_id: token that begins every caption.
        eos_id: token that ends every caption.
        device: that computes.
        on_progress: called after each regression.

    Raises:
        CacheError: a chunk is absent or damaged.
        DistillError: fewer than two images have captions, or all images are the same.
    """
    caption_image = data.caption_image
    rows = _sample_rows(cache, caption_image)
    if len(rows) < 2:
        raise DistillError(f"{cache.path} has captions of {len(rows)} images: --warm-start ridge needs two or more")
    captions = np.flatnonzero(np.isin(caption_image, rows))
    image_index = np.searchsorted(rows, caption_image[captions])  # [m], in `rows`
    image_emb = F.normalize(torch.from_numpy(cache.emb_rows(rows)).to(device).float(), dim=-1)
    require_distinct(image_emb, "images", cache)

    def count_tokens(chosen: NDArray[np.int64]) -> TokenCounts:
        ids, lengths = data.tokens.gather(captions[chosen])
        starts, lengths = spans_to_eos(ids, lengths, eos_id)
        ids, caption = ids[concatenated_ranges(starts, lengths)], np.repeat(np.arange(len(lengths)), lengths)
        counted = ~np.isin(ids, (pad_id, bos_id, eos_id))
        num_counted = np.bincount(caption[counted], minlength=len(lengths))
        return TokenCounts(ids[counted], num_counted, vocab_size, device)

    first_held_out = len(rows) - min(MAX_HELD_OUT, -(-len(rows) // 10))
    fitted, held_out = np.flatnonzero(image_index < first_held_out), np.flatnonzero(image_index >= first_held_out)
    fitted_counts, held_out_counts = count_tokens(fitted), count_tokens(held_out)
    fitted_emb, gallery = image_emb[:first_held_out], image_emb[first_held_out:].cpu().numpy()
    targets = _directions(fitted_emb)[torch.from_numpy(image_index[fitted]).to(device)]
    metrics = {shrinkage: retrieval_metric(fitted_emb, shrinkage) for shrinkage in SHRINKAGES}
    scores: dict[tuple[float, float], float] = {}
    weights = None
    for i, alpha in enumerate(PENALTIES):
        weights, bias = fitted_counts.solve(targets, alpha, start=weights)
        predicted = held_out_counts.times(weights) + bias
        for shrinkage, metric in metrics.items():
            text_emb = F.normalize(predicted @ metric, dim=-1).cpu().numpy()
            ranks = retrieve(text_emb, gallery, image_index[held_out] - first_held_out).text_to_image.summary()
            scores[alpha, shrinkage] = ranks.r_at_1 + ranks.r_at_5 + ranks.r_at_10
        on_progress(Progress("warm start", i + 1, len(PENALTIES) + 1))
    alpha, shrinkage = max(product(PENALTIES, SHRINKAGES), key=lambda choice: scores[choice])

    all_counts = count_tokens(np.arange(len(captions)))
    weights, bias = all_counts.solve(_directions(image_emb)[torch.from_numpy(image_index).to(device)], alpha)
    metric = retrieval_metric(image_emb, shrinkage)
    on_progress(Progress("warm start", len(PENALTIES) + 1, len(PENALTIES) + 1))
    return TokenBag(weights=weights @ metric, bias=bias @ metric, alpha=alpha, shrinkage=shrinkage)


def _directions(image_emb: Tensor) -> Tensor:
    """Targets of the regression, `[N, D]`: directions of images from their mean."""
    return F.normalize(image_emb - image_emb.mean(0), dim=-1)


def _sample_rows(cache: Cache, caption_image: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of images with captions, ascending: all, or those of evenly spaced chunks."""
    rows = np.unique(caption_image[caption_image >= 0])
    num_chunks = cache.num_chunks
    num_taken = max(1, num_chunks * MAX_CAPTIONS // max(MAX_CAPTIONS, len(caption_image)))
    chunks = np.unique(np.linspace(0, num_chunks - 1, num_taken).astype(np.int64))
    result: NDArray[np.int64] = rows[np.isin(rows // cache.info.chunk_rows, chunks)]
    return result
