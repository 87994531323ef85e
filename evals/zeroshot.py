"""Zero-shot classification: the class of an image is that of the nearest prompt. Pure numpy."""

import numpy as np
from numpy.typing import NDArray


def zero_shot_accuracy(
    image_emb: NDArray[np.float32], labels: NDArray[np.int64], class_emb: NDArray[np.float32]
) -> float:
    """Accuracy: fraction of images whose nearest prompt is that of their class.

    Args:
        image_emb: `[N, D]`, unit norm.
        labels: `[N]`, indices into `class_emb`.
        class_emb: `[C, D]`, unit norm, one prompt per class.

    >>> eye = np.eye(3, dtype=np.float32)
    >>> zero_shot_accuracy(eye, np.array([0, 1, 1]), eye)
    0.6666666666666666
    """
    return float(((image_emb @ class_emb.T).argmax(axis=1) == labels).mean())
