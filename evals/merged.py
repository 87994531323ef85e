"""Measuring a merged CLIP: retrieval on a cache, and which text describes a picture best."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..cache.below import open_below
from ..cache.format import Status
from ..cache.pictures import Geometry, RejectedPictureError, decode
from ..cache.store import Cache
from ..encoders.clip import MergedClip
from .errors import EvalError
from .retrieval import RetrievalReport, retrieve


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Texts for one picture: cosines, and the softmax that the CLIP's temperature gives. Best first."""

    image: str
    texts: list[str]
    cosines: list[float]
    probabilities: list[float]


def eval_retrieval(clip: MergedClip, cache: Cache) -> RetrievalReport:
    """Retrieve the pictures of a cache by their captions and back; no picture is opened.

    Raises:
        EvalError: the cache was made by another image tower, or has no caption of an embedded picture.
        CacheError: the cache is not complete.
    """
    info = cache.require_sealed().info.encoder
    tower = clip.image_tower
    merged = replace(
        info, weights_sha256=tower.weights_sha256, preprocess=tower.preprocess, quick_gelu=tower.quick_gelu
    )
    name = info.difference(merged)
    if name:
        raise EvalError(
            f"{cache.path} was made by {info.model} ({name} {getattr(info, name)}), the image tower of {clip.folder} "
            f"is another ({name} {getattr(merged, name)}): cache the pictures with --model local-dir:{clip.folder}"
        )
    embedded = np.flatnonzero(cache.status() == Status.EMBEDDED)
    row_of = np.full(len(cache), -1)
    row_of[embedded] = np.arange(len(embedded))
    text_image = row_of[cache.caption_image()]
    kept = np.flatnonzero(text_image >= 0)
    if not len(kept):
        raise EvalError(f"{cache.path} has no embedded picture with a caption")
    captions = cache.captions()
    text_emb = clip.encode_texts([captions[i] for i in kept])
    return retrieve(text_emb, cache.image_emb()[embedded].astype(np.float32), text_image[kept])


def predict(clip: MergedClip, images: Sequence[Path], texts: Sequence[str]) -> list[Prediction]:
    """Order texts by how well they describe each picture.

    Raises:
        EvalError: no text, or a picture that cannot be read; the message names it.
    """
    if not texts:
        raise EvalError("nothing to choose from: pass --text at least once")
    text_emb = clip.encode_texts(texts)
    geometry = Geometry.from_preprocess(clip.image_tower.preprocess)
    predictions = []
    for image in images:
        try:
            path = image.resolve()  # the user named it: a link may lead anywhere
            with open_below(path.parent, path.name) as file:
                features = clip.image_tower.encode(decode(file, geometry)[None])[0]
        except RejectedPictureError as rejected:
            reason = "no such file" if rejected.status == Status.MISSING else rejected.status.label
            raise EvalError(f"{image}: {reason}: leave it out, or pass a picture") from rejected
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
