"""`clipglot predict`: which text describes each image best."""

from ..encoders.merged_clip import load_merged
from ..evals.predict import Prediction, rank_texts
from .settings.predict import PredictSettings


def predict(settings: PredictSettings) -> list[Prediction]:
    """Order texts by how well they describe each image, with the probabilities of a merged CLIP.

    Returns:
        One prediction for each image, in the order given.

    Raises:
        EncoderError: no merged CLIP, or one that does not load.
        EvalError: no text, or an image that cannot be read.
    """
    return rank_texts(load_merged(settings.merged), settings.images, settings.text)
