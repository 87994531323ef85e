"""`clipglot predict`: which text describes each image best."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.sources.image_names import has_image_extension
from ..evals.errors import EvalError
from ..evals.predict import Prediction, rank_texts
from ..inference.text_files import read_lines
from ..inference.towers import load_towers
from .settings.predict import PredictSettings


def predict(settings: PredictSettings, on_progress: OnProgress = ignore_progress) -> list[Prediction]:
    """Order texts by how well they describe each image, with the probabilities of a merged CLIP.

    Args:
        settings: the texts are those of `text`, then those of `texts`.
        on_progress: called with the images of stage `predict`.

    Returns:
        One prediction for each image, in the order given. An image that cannot be read has an error instead of texts.

    Raises:
        EncoderError: no merged CLIP, or one that does not load.
        EvalError: no text, a folder without images, or no readable image at all.
        InputError: a file of texts that cannot be read.
    """
    if settings.top is not None and settings.top < 1:
        raise EvalError(f"--top {settings.top}: pass a number of at least 1")
    texts = [*settings.text, *(read_lines(settings.texts) if settings.texts else ())]
    if not texts:
        raise EvalError("nothing to choose from: pass --text at least once, or --texts FILE")
    images = [image for given in settings.images for image in _images(given)]
    predictions = []
    for prediction in rank_texts(load_towers(settings.merged), images, texts):
        predictions.append(_best(prediction, settings.top))
        on_progress(Progress("predict", len(predictions), len(images)))
    if all(prediction.error for prediction in predictions):
        first = predictions[0]
        others = f", and {len(predictions) - 1} others likewise" if len(predictions) > 1 else ""
        raise EvalError(f"{first.image}: {first.error}{others}: pass an image")
    return predictions


def _images(given: Path) -> Iterator[Path]:
    """A file itself; of a folder the images in it and below, by name, without hidden ones.

    Raises:
        EvalError: a folder without images.
    """
    if not given.is_dir():
        yield given
        return
    images = []
    for folder, folders, names in os.walk(given):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images += [Path(folder, name) for name in names if has_image_extension(name) and not name.startswith(".")]
    if not images:
        raise EvalError(f"{given}: no image in it: pass image files, or a folder of them")
    yield from sorted(images)


def _best(prediction: Prediction, top: int | None) -> Prediction:
    """The best texts of a prediction alone."""
    return replace(
        prediction,
        texts=prediction.texts[:top],
        cosines=prediction.cosines[:top],
        probabilities=prediction.probabilities[:top],
    )
