"""Weights between the text tower that training began with, that of a CLIP, and the one that it ended with.

Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT, arXiv:2109.01903, section 3).
"""

import copy
import math
from dataclasses import replace

import torch

from .errors import EncoderError
from .merged_clip import MergedClip
from .text_scratch import ScratchTower
from .text_tower import TextTower
from .tokenizer import CaptionTokenizer, TextTokenizer


def interpolate_clips(start: MergedClip, end: MergedClip, share: float) -> MergedClip:
    """A CLIP between two with the same image tower.

    Raises:
        EncoderError: as of `interpolate`.
    """
    if end.text_tower is None:
        raise EncoderError(f"only open_clip computes the text tower of {end.name}, so it is not interpolated here")
    tower, scale = interpolate(start, end.text_tower, end.tokenizer, end.logit_scale, share)
    return replace(end, text_tower=tower, logit_scale=scale)


def interpolate(
    start: MergedClip, tower: TextTower, tokenizer: TextTokenizer, logit_scale: float, share: float
) -> tuple[TextTower, float]:
    """Text tower and logit scale between a CLIP and a tower that was trained from it with `--text clip`.

    The CLIP's tower is taken with the vocabulary of the trained one, as training took it.

    Args:
        start: at share 0.
        tower: trained, at share 1.
        tokenizer: of the trained tower.
        logit_scale: of the trained tower; interpolated as a logarithm, as it is learnt.
        share: between 0 and 1.

    Raises:
        EncoderError: the trained tower has another form than the CLIP's.
    """
    if not isinstance(tower, ScratchTower) or not isinstance(tokenizer, CaptionTokenizer):
        raise EncoderError(
            f"the trained tower is a {tower.kind}, which has no weights in common with the text tower of "
            f"{start.name}: interpolate one that was trained with --text clip"
        )
    first, old = ScratchTower.from_clip(start.image_tower.model, start.image_tower.pretrained)
    config = tower.config
    first = first.with_vocabulary(old, tokenizer, context_length=config.context_length, embed_dim=config.embed_dim)
    between = _mean(first, tower, share, start.name)
    return between, math.exp((1 - share) * math.log(start.logit_scale) + share * math.log(logit_scale))


def _mean(start: ScratchTower, end: ScratchTower, share: float, name: str) -> ScratchTower:
    """A tower with weights `(1 - share) * start + share * end`, in evaluation mode; neither is changed."""
    first, last = start.state_dict(), end.state_dict()
    for tensor in first.keys() | last.keys():
        if tensor not in first or tensor not in last or first[tensor].shape != last[tensor].shape:
            raise EncoderError(
                f"the trained tower and the text tower of {name} differ in {tensor}, so there is nothing between "
                "them: interpolate one that was trained with --text clip from this CLIP"
            )
    tower = copy.deepcopy(end)
    tower.load_state_dict(
        {
            tensor: torch.lerp(first[tensor].to(value), value, share) if value.is_floating_point() else value
            for tensor, value in last.items()
        }
    )
    return tower.eval().requires_grad_(False)
