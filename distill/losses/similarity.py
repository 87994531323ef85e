"""Distillation of similarities: a caption's similarities to the batch's images should equal those of its own image.

Fang et al. 2021, arXiv:2101.04731 (SEED), section 3.2: the student's softmax over the teacher's embeddings is matched
to the teacher's own. SEED takes the embeddings of a queue; here they are the batch's, the own image among them as in
SEED. Every process knows all images, so only sums travel; loss and gradient come from one pass over blocks of captions.

B images of a step, b captions of this process, D features, r captions of a block.
"""

from typing import Any, Self

import torch
from torch import Tensor

from ..data.targets import Targets, row_blocks
from ..distributed import reduce_sum_
from ..train_settings import LossSettings
from .loss import Loss


class Similarity(Loss):
    """KL divergence from the image's softmax over the batch's images to the caption's, averaged over the captions.

    The caption's temperature is learned, the image's is fixed. Other images that have the caption leave both.
    """

    def __init__(self, *, temperature: float, max_logit_scale: float, teacher_temperature: float) -> None:
        """Begin at a temperature; `teacher_temperature` is that of the images' softmax."""
        super().__init__(temperature=temperature, max_logit_scale=max_logit_scale)
        self._teacher_temperature = teacher_temperature

    @classmethod
    def from_settings(cls, settings: LossSettings, *, compiled: bool = False) -> Self:
        """The loss that a run asks for."""
        return cls(
            temperature=settings.resolved_temperature,
            max_logit_scale=settings.max_logit_scale,
            teacher_temperature=settings.teacher_temperature,
        )

    def forward(self, text_emb: Tensor, targets: Targets) -> Tensor:
        """Mean loss of a batch; see `Loss.forward`."""
        return match_similarities(text_emb, self.logit_scale, targets, self._teacher_temperature)


def match_similarities(text_emb: Tensor, log_scale: Tensor, targets: Targets, teacher_temperature: float) -> Tensor:
    """Loss of `Similarity`; also a term beside another loss, whose temperature it shares.

    Args:
        text_emb: `[b, D]`, unit norm.
        log_scale: `[]`, logarithm of 1 / temperature of the captions' softmax.
        targets: the images.
        teacher_temperature: of the images' softmax.
    """
    loss: Tensor = _BlockedSimilarity.apply(text_emb, log_scale, targets, teacher_temperature)
    return loss


class _BlockedSimilarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text_emb: Tensor, log_scale: Tensor, targets: Targets, temperature: float) -> Tensor:
        image_emb, scaled = targets.image_emb.to(text_emb.dtype), text_emb * log_scale.exp()
        teacher = targets.own_emb(text_emb.dtype) / temperature  # [b, D]
        divergence, grad = torch.empty_like(scaled[:, 0]), torch.empty_like(scaled)
        for block in row_blocks(len(scaled), len(image_emb), scaled.device):
            log_teacher = targets.mask_(teacher[block] @ image_emb.T, block).log_softmax(1)  # [r, B]
            log_student = targets.mask_(scaled[block] @ image_emb.T, block).log_softmax(1)
            probabilities, is_masked = log_teacher.exp(), log_teacher == -torch.inf
            # Masked pairs have probability 0 in both, and the difference of their logarithms is NaN.
            divergence[block] = (log_teacher.sub_(log_student).masked_fill_(is_masked, 0).mul_(probabilities)).sum(1)
            torch.mm(log_student.exp_().sub_(probabilities), image_emb, out=grad[block])
        grad.mul_(targets.weights(grad.dtype)[:, None]).mul_(log_scale.exp() / len(image_emb))
        ctx.save_for_backward(grad, reduce_sum_((grad * text_emb).sum()))
        return reduce_sum_(targets.mean(divergence))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad, grad_log_scale = ctx.saved_tensors
        return grad * grads[0], grad_log_scale * grads[0], None, None
