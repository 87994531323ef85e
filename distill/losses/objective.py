"""Objective of a run: its loss, plus auxiliary terms by weight.

To add a loss:
1. Write losses/NAME.py with a subclass of `Loss`: `forward`, and `from_settings` if it has settings of its own.
2. Add its line to `LOSSES` below.
3. Allow its name in the flag: the Literal of `LossSettings.loss` in train_settings.py, beside settings of its own.
4. Test it against its plain form: a function in tests/support/dense_losses.py, a case in tests/distill/losses/.

B images of a step, b captions of this process, D features.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from ..data.targets import Targets
from ..train_settings import LossSettings
from .auxiliary import alignment, simcse, uniformity
from .infonce import InfoNCE
from .loss import Loss
from .regression import Cosine, SquaredDistance
from .siglip import SigLIP
from .similarity import Similarity, match_similarities
from .text_teacher import text_teacher_loss

LOSSES: dict[str, type[Loss]] = {
    "infonce": InfoNCE,
    "siglip": SigLIP,
    "similarity": Similarity,
    "cosine": Cosine,
    "mse": SquaredDistance,
}
Term = Callable[[Tensor, Targets], Tensor]
"""Term of captions `[b, D]`, unit norm, and their images."""


class Objective(nn.Module):
    """The loss of a run plus its terms, each times its weight.

    Attributes:
        main: the loss; terms that need a temperature share its. The name is a key of checkpoints.
    """

    def __init__(self, settings: LossSettings, *, compiled: bool = False) -> None:
        """Take loss and terms from the settings; `compiled` where `torch.compile` gains."""
        super().__init__()
        self.main = make_loss(settings, compiled=compiled)
        terms: list[tuple[float, Term]] = [
            (settings.similarity, self._similarity),
            (settings.alignment, alignment),
            (settings.uniformity, uniformity),
        ]
        self._terms = [(weight, term) for weight, term in terms if weight]
        self._num_passes, self._simcse_weight = settings.num_passes, settings.simcse
        self._teacher_temperature, self._teacher_weight = settings.teacher_temperature, settings.teacher_weight

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the factor on cosines, `[]`."""
        return self.main.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """Bias of the scaled cosines, `[]`, in losses that have one."""
        return self.main.logit_bias

    def forward(self, features: Tensor, targets: Targets) -> Tensor:
        """Mean objective of a batch; gradients as of `Loss.forward`.

        Args:
            features: `[b, D] float32`, the captions as the tower gives them; with two passes `[2 b, D]`, all first ones
                before all second ones.
            targets: the images of the batch.
        """
        text_emb, *second_emb = F.normalize(features, dim=-1).chunk(self._num_passes)
        if self._teacher_weight == 1:
            return text_teacher_loss(text_emb, targets)
        total: Tensor = self.main(features[: len(text_emb)] if self.main.takes_raw else text_emb, targets)
        for weight, term in self._terms:
            total = total + weight * term(text_emb, targets)
        if second_emb:
            total = total + self._simcse_weight * simcse(text_emb, second_emb[0], targets)
        if self._teacher_weight:
            teacher_loss = text_teacher_loss(text_emb, targets)
            total = (1 - self._teacher_weight) * total + self._teacher_weight * teacher_loss
        return total

    def clamp_(self) -> None:
        """Keep the temperature within its bounds; called after each step."""
        self.main.clamp_()

    def _similarity(self, text_emb: Tensor, targets: Targets) -> Tensor:
        return match_similarities(text_emb, self.logit_scale, targets, self._teacher_temperature)


def make_loss(settings: LossSettings, *, compiled: bool = False) -> Loss:
    """The loss that `--loss` names; `compiled` where `torch.compile` gains."""
    return LOSSES[settings.loss].from_settings(settings, compiled=compiled)
