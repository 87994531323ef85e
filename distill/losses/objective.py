"""What a run minimises: its loss, and further terms by weight.

B images of a step, b captions of this process, D features.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ..data.targets import Targets
from ..train_settings import TrainSettings
from .auxiliary import alignment, contrast_passes, uniformity
from .infonce import InfoNCE
from .loss import Loss
from .regression import Cosine, SquaredDistance
from .siglip import SigLIP
from .similarity import Similarity, match_similarities
from .text_teacher import text_teacher_loss

Term = Callable[[Tensor, Targets], Tensor]
"""Of captions `[b, D]`, unit norm, and their images."""


class Objective(nn.Module):
    """The loss of a run plus its terms, each times its weight.

    Attributes:
        main: the loss; terms that need a temperature share its.
    """

    def __init__(self, settings: TrainSettings, *, compiled: bool = False) -> None:
        """Take loss and terms from the settings; `compiled` where `torch.compile` gains."""
        super().__init__()
        self.main = make_loss(settings, compiled=compiled)
        terms: list[tuple[float, Term]] = [
            (settings.similarity, self._similarity),
            (settings.alignment, alignment),
            (settings.uniformity, uniformity),
        ]
        self._terms = [(weight, term) for weight, term in terms if weight]
        self._num_passes, self._simcse = settings.num_passes, settings.simcse
        self._teacher_temperature, self._teacher_weight = settings.teacher_temperature, settings.teacher_weight

    @property
    def logit_scale(self) -> nn.Parameter:
        """The logarithm of the factor on cosines, `[]`."""
        return self.main.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """What is added to scaled cosines, `[]`, in losses that do."""
        return self.main.logit_bias

    def forward(self, features: Tensor, targets: Targets) -> Tensor:
        """What to minimise, of the mean over the batch; gradients as of `Loss.forward`.

        Args:
            features: `[b, D] float32`, the captions as the tower gives them; with two passes `[2 b, D]`, all first ones
                before all second ones.
            targets: the images of the batch.
        """
        text_emb, *again = F.normalize(features, dim=-1).chunk(self._num_passes)
        if self._teacher_weight == 1:
            return text_teacher_loss(text_emb, targets)
        total: Tensor = self.main(features[: len(text_emb)] if self.main.takes_raw else text_emb, targets)
        for weight, term in self._terms:
            total = total + weight * term(text_emb, targets)
        if again:
            total = total + self._simcse * contrast_passes(text_emb, again[0], targets)
        if self._teacher_weight:
            taught = text_teacher_loss(text_emb, targets)
            total = (1 - self._teacher_weight) * total + self._teacher_weight * taught
        return total

    def clamp_(self) -> None:
        """Keep the temperature in its bounds; called after each step."""
        self.main.clamp_()

    def _similarity(self, text_emb: Tensor, targets: Targets) -> Tensor:
        return match_similarities(text_emb, self.logit_scale, targets, self._teacher_temperature)


def make_loss(settings: TrainSettings, *, compiled: bool = False) -> Loss:
    """The loss that `--loss` names."""
    temperature, max_logit_scale = settings.resolved_temperature, settings.max_logit_scale
    match settings.loss:
        case "infonce":
            return InfoNCE(
                temperature=temperature,
                max_logit_scale=max_logit_scale,
                label_smoothing=settings.label_smoothing,
                compiled=compiled,
            )
        case "siglip":
            return SigLIP(temperature=temperature, max_logit_scale=max_logit_scale)
        case "similarity":
            teacher_temperature = settings.teacher_temperature
            return Similarity(
                temperature=temperature, max_logit_scale=max_logit_scale, teacher_temperature=teacher_temperature
            )
        case "cosine":
            return Cosine(temperature=temperature, max_logit_scale=max_logit_scale)
        case "mse":
            return SquaredDistance(temperature=temperature, max_logit_scale=max_logit_scale)
