"""The student: a text tower, its loss and its optimizer, and one step of learning."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoders.text import TextConfig, TextTower
from .batches import Batch
from .data import TrainData
from .errors import DistillError
from .infonce import InfoNCE
from .optimizer import make_optimizer
from .settings import TrainSettings
from .targets import Targets


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step measured, still on the device: reading a value waits for the device."""

    loss: Tensor
    grad_norm: Tensor


class Student:
    """All that a checkpoint holds, and how it learns from a batch."""

    def __init__(
        self,
        config: TextConfig,
        settings: TrainSettings,
        device: torch.device,
        precision: Literal["fp32", "bf16"],
    ) -> None:
        torch.manual_seed(settings.seed)
        self.tower = TextTower(config).to(device)
        self.loss = InfoNCE(temperature=settings.temperature, max_logit_scale=settings.max_logit_scale).to(device)
        self.optimizer = make_optimizer([self.tower, self.loss], settings)
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._grad_clip = settings.grad_clip or float("inf")
        self._autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()

    @property
    def logit_scale(self) -> float:
        """The factor on cosines: 1 / temperature."""
        return float(self.loss.logit_scale.exp().item())

    def step(self, data: TrainData, batch: Batch, lr: float) -> StepResult:
        """Learn from one batch: forward, backward, clip, update."""
        device = data.image_emb.device
        image_emb = data.image_emb[torch.from_numpy(batch.rows).to(device)].float()  # [B, D], constants
        group = torch.from_numpy(data.caption_group[batch.captions]).to(device)
        with self._autocast:
            text_emb = F.normalize(self.tower.encode(data.tokens.take(batch.captions)).float(), dim=-1)  # [B, D]
        loss = self.loss(text_emb, Targets(image_emb=image_emb, own=slice(0, len(image_emb)), caption_group=group))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._grad_clip)
        for parameter_group in self.optimizer.param_groups:
            parameter_group["lr"] = lr
        self.optimizer.step()
        self.loss.clamp_()
        return StepResult(loss=loss.detach(), grad_norm=grad_norm)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on; batches follow from the step's number."""
        return {
            "tower": self.tower.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.tower.load_state_dict(state["tower"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])


def require_finite(result: StepResult, step: int) -> None:
    """Stop a run that has diverged, before it is logged or saved.

    Raises:
        DistillError: the loss or the gradient of this step is NaN or infinite.
    """
    for name, value in (("loss", result.loss.item()), ("gradient's norm", result.grad_norm.item())):
        if not np.isfinite(value):
            raise DistillError(f"the {name} is {value} at step {step}: lower --lr or raise --warmup")
