"""Text teacher loss: captions are drawn to the teacher's embeddings of their translations.

b captions of this process, D features.
"""

from torch import Tensor

from ..data.targets import Targets
from ..distributed import sum_of_shares


def text_teacher_loss(text_emb: Tensor, targets: Targets) -> Tensor:
    """1 - cosine to the teacher's embedding, averaged over the batch's images; captions without one add nothing.

    The captions of an image weigh 1 together, as in the other losses. On unit vectors this is half the squared
    distance: the loss of Carlsson et al. 2022, "Cross-lingual and multilingual CLIP", section 3, but for the length.

    Args:
        text_emb: `[b, D] float32`, unit norm.
        targets: with the teacher's embeddings of these captions.
    """
    assert targets.teacher_emb is not None
    teacher_emb = targets.teacher_emb.to(text_emb.dtype)
    distance = teacher_emb.any(1).to(text_emb.dtype) - (text_emb * teacher_emb).sum(1)  # [b]
    return sum_of_shares(targets.mean(distance))
