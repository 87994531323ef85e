"""A tiny scratch text tower, the same as open_clip builds it, and captions that are hard to pack."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from clipglot.encoders.text_scratch import ScratchConfig, ScratchTower

PAD, BOS, EOS = 0, 1, 2
CONTEXT = 12
CAPTIONS = [
    [BOS, 7, 8, 9, EOS],
    [BOS, EOS],  # an empty caption
    [BOS, *range(3, 13), EOS],  # cut by the context length
    [BOS, 5, EOS, 6, 7, EOS],  # spells the token out: the first EOS pools
    [BOS, 11, EOS],
    [BOS, 7, 8, 9, EOS],  # a duplicate
]


def make_tower(**fields: Any) -> ScratchTower:
    """Three layers, sixteen wide, random weights; `fields` of `ScratchConfig` on top."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "embed_dim": 6,
        "vocab_size": 20,
        "context_length": CONTEXT,
        "width": 16,
        "heads": 2,
        "layers": 3,
        "pad_id": PAD,
        "eos_id": EOS,
        "quick_gelu": False,
    }
    return ScratchTower(ScratchConfig(**config | fields))


def upstream(tower: ScratchTower) -> torch.nn.Module:
    """The same text tower as open_clip builds it from the config that the export writes."""
    clip = open_clip.model.CustomTextCLIP(
        embed_dim=tower.config.embed_dim,
        vision_cfg={"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1},
        text_cfg=tower.config.to_open_clip(),
        quick_gelu=tower.config.quick_gelu,
    )
    clip.load_state_dict(clip.state_dict() | tower.state_dict())
    return clip.to(tower.text.positional_embedding.dtype)


def padded(captions: Sequence[Sequence[int]], context_length: int = CONTEXT) -> torch.Tensor:
    """As open_clip's forward takes them."""
    return torch.tensor([[*caption, *[PAD] * (context_length - len(caption))] for caption in captions])


def random_captions(rng: np.random.Generator, num: int, longest: int, vocab_size: int) -> list[list[int]]:
    """Captions as people write them: most of about ten words, a few cut at `longest` tokens."""
    lengths = np.minimum(rng.lognormal(2.3, 0.4, num).astype(int), longest - 2)
    return [[BOS, *rng.integers(3, vocab_size, length).tolist(), EOS] for length in lengths]


def joined(captions: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Ids `[T]` and lengths `[B]`, as packing takes them."""
    return np.concatenate(captions), np.array([len(caption) for caption in captions])
