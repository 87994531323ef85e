"""Both towers of a CLIP as evaluations use them, whatever computes them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..cache.read.cache import Cache
from .errors import InputError
from .onnx_layout import is_onnx


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

    @property
    def logit_bias(self) -> float | None:
        """Added to scaled cosines before a sigmoid, after a sigmoid loss."""

    @property
    def context_length(self) -> int:
        """Most tokens of a text."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""

    def normalize(self, pixels: NDArray[np.uint8]) -> Any:
        """What the image tower takes of pixels `[B, height, width, 3] uint8`, `[B, 3, height, width] float32`."""

    def encode_texts(
        self,
        texts: Sequence[str],
        *,
        raw: bool = False,
        batch_size: int = ...,
        on_progress: Callable[[int, int], None] = ...,
    ) -> NDArray[np.float32]:
        """`[len(texts), D] float32`, of unit norm unless `raw`, in the order given."""

    def encode_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Raw features `[B, D] float32` of pixels `[B, height, width, 3] uint8`."""


def ranked(cosines: NDArray[np.float32], logit_scale: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Order of T texts by their cosines with an image, best first, and their probabilities in the order given.

    Args:
        cosines: `[T]`.
        logit_scale: factor on cosines before the softmax.
    """
    logits = logit_scale * cosines.astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    return np.argsort(-cosines, kind="stable"), probabilities / probabilities.sum()


def require_same_tower(clip: Towers, cache: Cache) -> None:
    """Refuse a cache that another image tower made.

    Args:
        clip: both towers.
        cache: sealed.

    Raises:
        CacheError: the cache is not complete.
        InputError: names what differs.
    """
    info = cache.require_sealed().info.encoder
    merged = replace(info, weights_sha256=clip.weights_sha256, preprocess=clip.preprocess, quick_gelu=clip.quick_gelu)
    if name := info.difference(merged):
        folder = Path(clip.name)
        is_clip = folder.is_dir() and not is_onnx(folder)
        tower = f"--model local-dir:{clip.name}" if is_clip else "that image tower"
        raise InputError(
            f"{cache.path} was made by {info.model} ({name} {getattr(info, name)}), the image tower of {clip.name} "
            f"is another ({name} {getattr(merged, name)}): cache the images with {tower}"
        )


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
