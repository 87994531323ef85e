"""Both towers of a CLIP as evaluations use them, whatever computes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

INDEX, TEXT_MODEL = "clipglot.json", "textual/model.onnx"


class Towers(Protocol):
    """A CLIP: texts and pixels to features. D features."""

    @property
    def name(self) -> str:
        """Folder that it was loaded from, or open_clip's name of it."""

    @property
    def dim(self) -> int:
        """D."""

    @property
    def logit_scale(self) -> float:
        """Factor on cosines before a softmax."""

    @property
    def preprocess(self) -> dict[str, Any]:
        """open_clip's `preprocess_cfg`."""

    @property
    def weights_sha256(self) -> str:
        """Digest of the image tower's tensors."""

    @property
    def quick_gelu(self) -> bool:
        """The activation that an open_clip config would set."""

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`[len(texts), D] float32`, of unit norm, in the order given."""

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raw features `[B, D] float32` of pixels `[B, height, width, 3] uint8`."""


def is_onnx(folder: Path) -> bool:
    """Whether `clipglot export --format onnx` wrote a folder."""
    return (folder / INDEX).is_file() and (folder / TEXT_MODEL).is_file()


def load_towers(folder: Path) -> Towers:
    """Load a merged CLIP; one in ONNX is loaded without torch.

    Raises:
        EncoderError: no such folder, or one that does not load.
    """
    if is_onnx(folder):
        from .onnx_clip import OnnxClip

        return OnnxClip(folder)
    from ..encoders.merged_clip import load_merged

    return load_merged(folder)
