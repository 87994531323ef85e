"""Zero-shot prediction: which of some texts describes an image best."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cache.format import RejectedImageError
from ..cache.write.image_decode import ResizeCrop
from ..inference.images import decode_file, reason
from ..inference.towers import Towers, ranked


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Texts for one image, best first.

    Attributes:
        image: its path.
        texts: empty where the image cannot be embedded.
        cosines: of each text's embedding and the image's.
        probabilities: softmax over all texts of the cosines times the CLIP's logit scale.
        error: why the image cannot be embedded; None where it can.
    """

    image: str
    texts: list[str]
    cosines: list[float]
    probabilities: list[float]
    error: str | None = None


def rank_texts(clip: Towers, images: Iterable[Path], texts: Sequence[str]) -> Iterator[Prediction]:
    """Yield the texts of each image in the order of how well they describe it.

    Args:
        clip: both towers.
        images: files; a link may lead anywhere, since the user named it.
        texts: at least one.
    """
    text_emb = clip.encode_texts(texts)
    geometry = ResizeCrop.from_preprocess(clip.preprocess)
    for image in images:
        try:
            pixels = decode_file(image, geometry)
        except RejectedImageError as rejected:
            yield Prediction(image=str(image), texts=[], cosines=[], probabilities=[], error=reason(rejected))
        else:
            yield _ranked(image, texts, text_emb, clip.encode_pixels(pixels[None])[0], clip.logit_scale)


def _ranked(
    image: Path,
    texts: Sequence[str],
    text_emb: NDArray[np.float32],
    image_features: NDArray[np.float32],
    logit_scale: float,
) -> Prediction:
    """Prediction of an image by its features `[D]` and the unit embeddings of texts `[T, D]`."""
    cosines = text_emb @ (image_features / np.linalg.norm(image_features))
    order, probabilities = ranked(cosines, logit_scale)
    return Prediction(
        image=str(image),
        texts=[texts[i] for i in order],
        cosines=cosines[order].tolist(),
        probabilities=probabilities[order].tolist(),
    )
