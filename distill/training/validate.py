"""Validation: recall of held-out captions, and the spread of their embeddings.

m captions of n images, D features.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...encoders.text_tower import TextTower
from ...evals.embedding_stats import alignment, anisotropy, effective_rank, uniformity
from ...evals.retrieval import Places, retrieve
from .. import distributed
from ..data.pairs import ValidationData

CAPTIONS_PER_FORWARD = 1024


@torch.inference_mode()
def embed_captions(tower: TextTower, data: ValidationData, captions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Text embeddings `[m, D] float32`, unit norm, of captions `[m]`."""

    def features(some: NDArray[np.int64]) -> Tensor:
        if data.features is None:
            return tower.encode(data.tokens.take(some))
        raw: Tensor = tower(data.features.read(some).to(tower.device))
        return raw

    blocks = [
        F.normalize(features(captions[start : start + CAPTIONS_PER_FORWARD]).float(), dim=-1).cpu().numpy()
        for start in range(0, len(captions), CAPTIONS_PER_FORWARD)
    ]
    result: NDArray[np.float32] = np.concatenate([np.zeros((0, tower.config.embed_dim), np.float32), *blocks])
    return result


def validate(tower: TextTower, data: ValidationData) -> dict[str, Any]:
    """Text-to-image recall over all embedded images (`evals/retrieval.py`), and figures of the captions' embeddings.

    Recalls count all captions; `languages` has those of each language, where there are several. Each process embeds its
    share of the captions, and every process returns the result of all.
    """
    tower.eval()
    shares = np.array_split(data.captions, distributed.num_processes())
    own = embed_captions(tower, data, shares[distributed.rank()])
    tower.train()
    text_emb = np.concatenate(distributed.gather_objects(own))
    places = retrieve(text_emb, data.image_emb, data.image_index, data.text_ids).text_to_image
    by_language = {name: _recall(places.take(own)) for name, own in data.by_language.items()}
    return {
        **_recall(places),
        "alignment": alignment(text_emb, data.image_emb[data.image_index]),
        "uniformity": uniformity(text_emb),
        "anisotropy": anisotropy(text_emb, data.groups),
        "effective_rank": effective_rank(text_emb),
        **({"languages": by_language} if by_language else {}),
    }


def _recall(places: Places) -> dict[str, float]:
    ranks = places.summary()
    return {name: getattr(ranks, name) for name in ("r_at_1", "r_at_5", "r_at_10", "median_rank")}
