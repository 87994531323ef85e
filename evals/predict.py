"""Measuring a merged CLIP: retrieval on a cache, and which text describes an image best."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..cache.format import RejectedImageError, Status
from ..cache.sources.image_root import open_below
from ..cache.write.image_decode import ResizeCrop, decode
from ..encoders.merged_clip import MergedClip
from .errors import EvalError


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Texts for one image: cosines, and the softmax that the CLIP's temperature gives. Best first."""

    image: str
    texts: list[str]
    cosines: list[float]
    probabilities: list[float]


def rank_texts(clip: MergedClip, images: Sequence[Path], texts: Sequence[str]) -> list[Prediction]:
    """Order texts by how well they describe each image.

    Raises:
        EvalError: no text, or an image that cannot be read; the message names it.
    """
    if not texts:
        raise EvalError("nothing to choose from: pass --text at least once")
    text_emb = clip.encode_texts(texts)
    geometry = ResizeCrop.from_preprocess(clip.image_tower.preprocess)
    predictions = []
    for image in images:
        try:
            path = image.resolve()  # the user named it: a link may lead anywhere
            with open_below(path.parent, path.name) as file:
                features = clip.image_tower.encode(decode(file, geometry)[None])[0]
        except RejectedImageError as rejected:
            reason = "no such file" if rejected.status == Status.MISSING else rejected.status.label
            raise EvalError(f"{image}: {reason}: leave it out, or pass an image") from rejected
        cosines = text_emb @ (features / np.linalg.norm(features))
        logits = clip.logit_scale * cosines.astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        order = np.argsort(-cosines, kind="stable")
        predictions.append(
            Prediction(
                image=str(image),
                texts=[texts[i] for i in order],
                cosines=cosines[order].tolist(),
                probabilities=probabilities[order].tolist(),
            )
        )
    return predictions
