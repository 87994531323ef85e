"""Weights between two text towers: those that training began with and those that it ended with.

Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT, arXiv:2109.01903, section 3).
"""

import copy
import math
from dataclasses import replace

from .errors import EncoderError
from .merged_clip import MergedClip
from .text_tower import TextTower


def interpolate_towers(start: TextTower, end: TextTower, share: float) -> TextTower:
    """A text tower with weights `(1 - share) * start + share * end`, in evaluation mode; neither is changed.

    Args:
        start: at share 0.
        end: of the same kind and sizes, at share 1.
        share: between 0 and 1.

    Raises:
        EncoderError: the towers are of different kinds or sizes, so their weights have no places in common.
    """
    first, last = start.state_dict(), end.state_dict()
    if type(start) is not type(end):
        raise EncoderError(
            f"the text towers are of different kinds ({type(start).__name__}, {type(end).__name__}), so there is "
            "nothing between their weights: interpolate a tower that was trained with --text clip"
        )
    for name in sorted(first.keys() | last.keys()):
        shapes = [tuple(each[name].shape) if name in each else None for each in (first, last)]
        if shapes[0] != shapes[1]:
            raise EncoderError(
                f"the text towers differ in {name} ({shapes[0]}, {shapes[1]}), so there is nothing between their "
                "weights: interpolate a tower that was trained with --text clip and its own tokenizer"
            )
    tower = copy.deepcopy(end)
    tower.load_state_dict(
        {
            name: ((1 - share) * first[name].to(value.device) + share * value) if value.is_floating_point() else value
            for name, value in last.items()
        }
    )
    return tower.eval().requires_grad_(False)


def interpolate(start: MergedClip, end: MergedClip, share: float) -> MergedClip:
    """A CLIP between two with the same image tower.

    Raises:
        EncoderError: their text towers have no places in common, or other tokenizers.
    """
    if start.text_tower is None or end.text_tower is None:
        raise EncoderError("only open_clip computes one of the text towers, so there is nothing between them here")
    probe = "a cat, кошка, 猫, 고양이"
    ids = [clip.tokenizer.encode([probe], clip.context_length) for clip in (start, end)]
    if [list(each) for each in ids[0]] != [list(each) for each in ids[1]]:
        raise EncoderError(
            f"{start.name} and {end.name} have different tokenizers, so there is nothing between their weights: "
            "interpolate a tower that was trained with --text clip and its own tokenizer"
        )
    scale = math.exp((1 - share) * math.log(start.logit_scale) + share * math.log(end.logit_scale))
    return replace(end, text_tower=interpolate_towers(start.text_tower, end.text_tower, share), logit_scale=scale)
