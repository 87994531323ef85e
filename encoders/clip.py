"""A merged CLIP, loaded by plain open_clip alone, as whoever receives an export will load it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .errors import EncoderError
from .image import ImageTower, load_clip, tower_of_clip
from .merge import CONFIG

TEXTS_AT_A_TIME = 256


@dataclass(frozen=True, kw_only=True)
class MergedClip:
    """Both towers of an open_clip folder. D features.

    Attributes:
        image_tower: the picture side, with its identity.
        logit_scale: the factor on cosines before a softmax.
    """

    folder: Path
    image_tower: ImageTower
    logit_scale: float
    _clip: Any
    _tokenizer: Any

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`[len(texts), D] float32`, unit norm."""
        blocks = [
            F.normalize(self._clip.encode_text(self._tokenizer(list(texts[i : i + TEXTS_AT_A_TIME]))), dim=-1)
            for i in range(0, len(texts), TEXTS_AT_A_TIME)
        ]
        result: NDArray[np.float32] = torch.cat(blocks).numpy()
        return result


def load_merged(folder: Path) -> MergedClip:
    """Load a folder that `clipglot export` wrote, or any other open_clip `local-dir:`.

    Raises:
        EncoderError: no such folder, or open_clip cannot load it.
    """
    if not (folder / CONFIG).is_file():
        raise EncoderError(f"{folder}: no {CONFIG} in it: make a merged CLIP with `clipglot export RUN -o {folder}`")
    name = f"local-dir:{folder}"
    clip, config = load_clip(name, None)
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # a missing or damaged tokenizer file, of any kind
        raise EncoderError(f"{folder}: its tokenizer does not load ({error})") from error
    clip.eval().requires_grad_(False)
    return MergedClip(
        folder=folder,
        image_tower=tower_of_clip(clip, config, model=name),
        logit_scale=float(clip.logit_scale.exp()),
        _clip=clip,
        _tokenizer=tokenizer,
    )
