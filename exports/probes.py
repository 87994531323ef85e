"""Probes of an export: captions and images whose features its library must reproduce."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..cache.write.image_decode import ResizeCrop, decode
from ..encoders.merged_clip import MergedClip
from .errors import ExportError

TOLERANCE = 1e-5
"""Largest difference of a value of normalized features that an export in float32 may have."""
CAPTIONS = [
    "a photo of a cat",
    "Two dogs run across the grass, and one of them holds a red ball.",
    "кошка сидит на окне",
    "Маленькая девочка в жёлтом платье идёт по улице под дождём.",
    "一只猫坐在窗户上",
    "两个男人在海边骑自行车。",
    "고양이가 창가에 앉아 있다",
    "猫が窓辺に座っている",
    "x",
    "42 naïve cafés — “quoted”",
]
SIZES = [(64, 64), (200, 120), (97, 310), (224, 224)]


@dataclass(frozen=True)
class Probes:
    """Features that a CLIP gives to some captions and images. P probes, D features.

    Attributes:
        clip: both towers.
    """

    clip: MergedClip

    @property
    def captions(self) -> list[str]:
        """The captions."""
        return CAPTIONS

    @cached_property
    def images(self) -> list[Image.Image]:
        """Images of several sizes, smooth and with edges, in RGB."""
        rng = np.random.default_rng(0)
        images = []
        for width, height in SIZES:
            coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
            image = coarse.resize((width, height), Image.Resampling.BICUBIC)
            image.paste((int(rng.integers(256)), 40, 200), (width // 4, height // 3, width // 2, height // 2))
            images.append(image)
        return images

    @cached_property
    def text_emb(self) -> NDArray[np.float32]:
        """`[P, D] float32`, unit norm."""
        return self.clip.encode_texts(self.captions)

    @cached_property
    def image_emb(self) -> NDArray[np.float32]:
        """`[P, D] float32`, unit norm, by the preprocessing that filled the cache."""
        return unit(self.clip.encode_pixels(self.pixels(self.clip.preprocess)))

    def pixels(self, preprocess: Mapping[str, Any]) -> NDArray[np.uint8]:
        """The images as a tower sees them, `[P, height, width, 3] uint8`.

        Args:
            preprocess: open_clip's `preprocess_cfg`.
        """
        geometry, pixels = ResizeCrop.from_preprocess(preprocess), []
        for image in self.images:
            file = io.BytesIO()
            image.save(file, "PNG")
            pixels.append(decode(file, geometry))
        return np.stack(pixels)

    def require_close(self, library: str, text: NDArray[np.float32], image: NDArray[np.float32]) -> tuple[float, float]:
        """Largest differences of text and image features.

        Args:
            library: that loaded the export, with its version, for the message.
            text: its features of the captions, `[P, D]`, of any norm.
            image: likewise of the images.

        Raises:
            ExportError: the library computes something else.
        """
        differences = [difference(text, self.text_emb), difference(image, self.image_emb)]
        for what, value in zip(("text", "image"), differences, strict=True):
            if not value <= TOLERANCE:
                raise ExportError(
                    f"{library} loads the export with other {what} features than were merged (difference {value:.1e}): "
                    "please report this, with both versions"
                )
        return differences[0], differences[1]


def unit(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features `[N, D]` at unit norm."""
    result: NDArray[np.float32] = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return result


def difference(features: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest difference of normalized features `[N, D]`; NaN where any is NaN."""
    return float(np.abs(unit(features) - unit(expected)).max())
