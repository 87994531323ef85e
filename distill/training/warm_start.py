"""Warm starts: what a text tower knows before the first step."""

from contextlib import AbstractContextManager
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...cache.progress import OnProgress, Progress, ignore_progress
from ...cache.read.cache import Cache
from ...encoders.text_bag_init import init_from_bag
from ...encoders.text_lm import LMTower
from ...encoders.text_scratch import ScratchTower
from ...encoders.text_tower import TextTower
from ...encoders.tokenizer_lm import AnyTokenizer, LMTokenizer
from ...evals.retrieval import retrieve
from ..data.pairs import TrainData
from ..device import autocast, resolve_precision
from ..train_settings import TrainSettings
from .ridge import PairSums
from .token_bag import fit_bag

MOST_IMAGES = 50_000  # that a head is fitted on
HELD_OUT = 0.1  # of them, by which its penalty is chosen
CAPTIONS_AT_A_TIME = 512
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
SHRINKAGES = (None, 3.0, 1.0, 0.3, 0.1)


def warm_start(
    tower: TextTower,
    tokenizer: AnyTokenizer,
    cache: Cache,
    data: TrainData,
    settings: TrainSettings,
    on_progress: OnProgress = ignore_progress,
) -> None:
    """Begin in closed form: a scratch tower as a bag of tokens, a language model with a fitted head.

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
    if not isinstance(tower, ScratchTower):
        fit_head(tower, cache, data, settings, on_progress)
        return
    assert not isinstance(tokenizer, LMTokenizer), "scratch towers have tokenizers of their own"
    bag = fit_bag(cache, data, tower.config, tokenizer.bos_id, tower.device, on_progress)
    init_from_bag(tower, bag.weights, bag.bias, tokenizer.bos_id)


def fit_head(
    tower: TextTower,
    cache: Cache,
    data: TrainData,
    settings: TrainSettings,
    on_progress: OnProgress = ignore_progress,
) -> None:
    """Fit a language model's linear head by ridge regression, so that the tower retrieves before it has learned.

    Penalty and shrinkage are those with the best recall on images held out of the fit; the head is then fitted on all
    of them, and brought to the size of a random one, for which learning rates are meant.

    Args:
        tower: a language model with a new linear head, which is overwritten.
        cache: sealed.
        data: of the same cache.
        settings: of the run.
        on_progress: called while captions are embedded.
    """
    assert isinstance(tower, LMTower), "settings refuse a warm start of other towers"
    proj = tower.text["proj"]
    assert isinstance(proj, nn.Linear), "and of other heads"
    captions, rows = _sample(cache, data, settings.seed)
    computing = autocast(resolve_precision(settings.precision, tower.device), tower.device)
    features = _pooled(tower, data, captions, computing, on_progress)
    wanted, place = np.unique(rows, return_inverse=True)
    image_emb = torch.from_numpy(cache.emb_rows(wanted).astype(np.float32))
    split = max(1, int((1 - HELD_OUT) * len(wanted)))
    fitted, held_out = torch.from_numpy(place < split), torch.from_numpy(place >= split)
    image_index = torch.from_numpy(place)
    sums = PairSums(features.shape[1], image_emb.shape[1])
    sums.add(features[fitted], image_emb[image_index[fitted]])

    def recall(chosen: tuple[float, float | None]) -> float:
        text_emb = F.normalize(features[held_out] @ sums.weights(*chosen).float(), dim=-1)
        ranks = retrieve(text_emb.numpy(), image_emb[split:].numpy(), place[place >= split] - split)
        return ranks.text_to_image.r_at_10

    best = max(product(PENALTIES, SHRINKAGES), key=recall) if held_out.any() else (PENALTIES[2], None)
    sums.add(features[held_out], image_emb[image_index[held_out]])
    weights = sums.weights(*best).T.float()
    with torch.no_grad():
        proj.weight.copy_(weights * (proj.weight.square().mean() / weights.square().mean()).sqrt())


def _sample(cache: Cache, data: TrainData, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Captions of embedded images and their rows, from whole chunks in random order, so that few chunks are read."""
    chunk = np.where(data.caption_image < 0, -1, data.caption_image // cache.info.chunk_rows)
    order = np.random.default_rng(seed).permutation(np.unique(chunk[chunk >= 0]))
    captions = np.flatnonzero(np.isin(chunk, order[: max(1, MOST_IMAGES // cache.info.chunk_rows)]))
    return captions, data.caption_image[captions]


@torch.inference_mode()
def _pooled(
    tower: LMTower,
    data: TrainData,
    captions: NDArray[np.int64],
    computing: AbstractContextManager[object],
    on_progress: OnProgress,
) -> Tensor:
    """What the head is given, `[len(captions), W] float32` on the CPU."""
    was_training, blocks = tower.training, []
    tower.eval()
    for start in range(0, len(captions), CAPTIONS_AT_A_TIME):
        packed = tower.pack(*data.tokens.gather(captions[start : start + CAPTIONS_AT_A_TIME]))
        with computing:
            blocks.append(tower.pooled(packed.to(tower.device)).float().cpu())
        on_progress(Progress("warm start", min(start + CAPTIONS_AT_A_TIME, len(captions)), len(captions)))
    tower.train(was_training)
    return torch.cat(blocks)
