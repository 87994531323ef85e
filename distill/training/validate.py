"""Validation: every caption of a held-out cache looks for its image."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ...encoders.text_tower import TextTower
from ...evals.embedding_stats import alignment, anisotropy, effective_rank, uniformity
from ...evals.retrieval import retrieve
from .. import distributed as parallel
from ..data.pairs import ValidationData
from ..data.tokens import TokenTable

CAPTIONS_AT_A_TIME = 1024


@torch.inference_mode()
def embed_captions(tower: TextTower, tokens: TokenTable, captions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Text embeddings `[len(captions), D] float32`, unit norm, in the order given."""
    blocks = [
        F.normalize(tower.encode(tokens.take(captions[start : start + CAPTIONS_AT_A_TIME])).float(), dim=-1)
        .cpu()
        .numpy()
        for start in range(0, len(captions), CAPTIONS_AT_A_TIME)
    ]
    result: NDArray[np.float32] = np.concatenate([np.zeros((0, tower.config.embed_dim), np.float32), *blocks])
    return result


def validate(tower: TextTower, data: ValidationData) -> dict[str, Any]:
    """Recall of every caption against every embedded image, and how the captions' embeddings lie.

    Each process embeds its part of the captions, and every process knows the result.
    """
    tower.eval()
    parts = np.array_split(data.captions, parallel.num_processes())
    own = embed_captions(tower, data.tokens, parts[parallel.rank()])
    tower.train()
    text_emb = np.concatenate(parallel.gather_objects(own))
    ranks = retrieve(text_emb, data.image_emb, data.image_index).text_to_image
    return {
        "r_at_1": ranks.r_at_1,
        "r_at_5": ranks.r_at_5,
        "r_at_10": ranks.r_at_10,
        "median_rank": ranks.median_rank,
        "alignment": alignment(text_emb, data.image_emb[data.image_index]),
        "uniformity": uniformity(text_emb),
        "anisotropy": anisotropy(text_emb, data.groups),
        "effective_rank": effective_rank(text_emb),
    }
