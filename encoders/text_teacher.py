"""The text tower of a CLIP as a teacher: frozen, in the language that it reads, in the space of its image tower."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .errors import EncoderError
from .image_tower import ImageTower, Precision, exact_float32, tower_of_clip
from .loading.clips import TIMM_PREFIX, hash_tensors, load_clip
from .loading.untrusted import clip_tokenizer


@dataclass(frozen=True, kw_only=True)
class TextTeacher:
    """A frozen text tower and its tokenizer.

    Attributes:
        weights_sha256: over all tensors but the image tower's and the temperature's.
    """

    weights_sha256: str
    _clip: Any
    _tokenizer: Any

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`[len(texts), D] float32`, unit norm."""
        ids = self._tokenizer(list(texts)).to(next(self._clip.parameters()).device)
        with exact_float32():
            features = self._clip.encode_text(ids)
        result: NDArray[np.float32] = F.normalize(features.float(), dim=-1).cpu().numpy()
        return result


def load_with_teacher(
    model: str, pretrained: str | None, *, device: str | torch.device = "cpu", precision: Precision = "fp32"
) -> tuple[ImageTower, TextTeacher]:
    """Load both towers of a CLIP, its files read once.

    Args:
        model: as of `load_image_tower`.
        pretrained: as of `load_image_tower`.
        device: where to put the text tower; the image tower stays on the CPU until it is `placed`.
        precision: what the image tower computes in; the teacher computes in float32.

    Raises:
        EncoderError: a ViT without a text tower, or a model that does not load.
    """
    if model.startswith(TIMM_PREFIX):
        raise EncoderError(f"--model {model} has no text tower that could teach: drop --teacher-field, or take a CLIP")
    clip, config = load_clip(model, pretrained)
    try:
        tokenizer = clip_tokenizer(model if ":" in model else model.replace("/", "-"), config)
    except Exception as error:  # a missing or damaged tokenizer file, of any kind
        raise EncoderError(f"--model {model}: the tokenizer of its text tower does not load ({error})") from error
    tensors = {k: v for k, v in clip.state_dict().items() if not k.startswith(("visual.", "logit_"))}
    weights_sha256 = hash_tensors(tensors)
    tower = tower_of_clip(clip, config, model=model, pretrained=pretrained)
    clip.visual = None
    clip.eval().requires_grad_(False).to(device)
    teacher = TextTeacher(weights_sha256=weights_sha256, _clip=clip, _tokenizer=tokenizer)
    return replace(tower, precision=precision), teacher
