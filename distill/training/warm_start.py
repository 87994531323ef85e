"""Warm start: a regression from captions to image embeddings, fitted in closed form before the first step.

A tower says which regression it begins with (`TextTower.warm_start`): a scratch tower as a bag of tokens
(`token_bag.py`), a language model with a fitted linear head (here).
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...cache.progress import OnProgress, Progress, ignore_progress
from ...cache.read.cache import Cache
from ...encoders.text_tower import TextTower
from ...encoders.tokenizer import TextTokenizer
from ...evals.retrieval import retrieve
from ..data.pairs import TrainData
from ..device import autocast, resolve_precision
from ..train_settings import TrainSettings
from .ridge import PairSums, require_distinct
from .token_bag import fit_bag

MOST_IMAGES = 50_000  # that a head is fitted on
HELD_OUT = 0.1  # of them, by which its penalty is chosen
CAPTIONS_AT_A_TIME = 512
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
SHRINKAGES = (None, 3.0, 1.0, 0.3, 0.1)


def warm_start(
    tower: TextTower,
    tokenizer: TextTokenizer,
    cache: Cache,
    data: TrainData,
    settings: TrainSettings,
    on_progress: OnProgress = ignore_progress,
) -> None:
    """Fit a part of a tower in closed form, so that it retrieves before the first step.

    Args:
        tower: on its device; a part of it is overwritten.
        tokenizer: of the run.
        cache: sealed.
        data: of the same cache.
        settings: of the run.
        on_progress: called while captions are embedded, or regressions solved.

    Raises:
        CacheError: a chunk is absent or damaged.
        DistillError: too few pairs.
    """
    tower.warm_start(tokenizer, CacheRegressions(tower, cache, data, settings, on_progress))


class CacheRegressions:
    """The regressions of a cache that a tower can ask for, as `encoders.text_tower.Regressions` describes them."""

    def __init__(
        self,
        tower: TextTower,
        cache: Cache,
        data: TrainData,
        settings: TrainSettings,
        on_progress: OnProgress,
    ) -> None:
        """Of the captions of a cache; arguments as of `warm_start`."""
        self._tower, self._cache, self._data = tower, cache, data
        self._seed, self._on_progress = settings.seed, on_progress
        self._autocast = autocast(resolve_precision(settings.precision, tower.device), tower.device)

    def token_bag(self, *, vocab_size: int, pad_id: int, bos_id: int, eos_id: int) -> tuple[Tensor, Tensor]:
        """Token weights `[V, D]` and a bias `[D]`; see `fit_bag`."""
        bag = fit_bag(
            self._cache,
            self._data,
            vocab_size=vocab_size,
            pad_id=pad_id,
            bos_id=bos_id,
            eos_id=eos_id,
            device=self._tower.device,
            on_progress=self._on_progress,
        )
        return bag.weights, bag.bias

    def linear_head(self, pooled: Callable[[Any], Tensor]) -> Tensor:
        """Weights `[D, W]` of a linear head by ridge regression.

        Penalty and shrinkage are those with the best recall on images held out of the fit; the head is then fitted on
        all images.

        Raises:
            DistillError: all images or all captions are the same.
        """
        captions, rows = self._sample()
        image_rows, place = np.unique(rows, return_inverse=True)
        image_emb = torch.from_numpy(self._cache.emb_rows(image_rows).astype(np.float32))
        require_distinct(image_emb, "images", self._cache)
        features = self._embed(captions, pooled)
        require_distinct(features, "captions", self._cache)
        split = max(1, int((1 - HELD_OUT) * len(image_rows)))
        fitted, held_out = torch.from_numpy(place < split), torch.from_numpy(place >= split)
        image_index = torch.from_numpy(place)
        sums = PairSums(features.shape[1], image_emb.shape[1])
        sums.add(features[fitted], image_emb[image_index[fitted]])

        def recall(penalty_and_shrinkage: tuple[float, float | None]) -> float:
            text_emb = F.normalize(features[held_out] @ sums.weights(*penalty_and_shrinkage).float(), dim=-1)
            found = retrieve(text_emb.numpy(), image_emb[split:].numpy(), place[place >= split] - split)
            return float(found.text_to_image.recall(10).mean())

        best = max(product(PENALTIES, SHRINKAGES), key=recall) if held_out.any() else (PENALTIES[2], None)
        sums.add(features[held_out], image_emb[image_index[held_out]])
        return sums.weights(*best).T.float()

    def _sample(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Captions of embedded images and their rows, from whole chunks in random order, so that few are read."""
        caption_image, chunk_rows = self._data.caption_image, self._cache.info.chunk_rows
        chunk = np.where(caption_image < 0, -1, caption_image // chunk_rows)
        order = np.random.default_rng(self._seed).permutation(np.unique(chunk[chunk >= 0]))
        captions = np.flatnonzero(np.isin(chunk, order[: max(1, MOST_IMAGES // chunk_rows)]))
        return captions, caption_image[captions]

    @torch.inference_mode()
    def _embed(self, captions: NDArray[np.int64], pooled: Callable[[Any], Tensor]) -> Tensor:
        """Input of the head for captions, `[len(captions), W] float32` on the CPU."""
        if self._data.features is not None:
            return torch.from_numpy(self._data.features.take(captions).astype(np.float32))
        tower = self._tower
        was_training, blocks = tower.training, []
        tower.eval()
        for start in range(0, len(captions), CAPTIONS_AT_A_TIME):
            packed = tower.pack(*self._data.tokens.gather(captions[start : start + CAPTIONS_AT_A_TIME]))
            with self._autocast:
                blocks.append(pooled(packed.to(tower.device)).float().cpu())
            self._on_progress(Progress("warm start", min(start + CAPTIONS_AT_A_TIME, len(captions)), len(captions)))
        tower.train(was_training)
        return torch.cat(blocks)
