"""The student: a text tower, its loss and its optimizer, and one step of learning.

b captions of this process, D features.
"""

import inspect
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ...encoders.packing import Packed
from ...encoders.text_tower import TextTower
from .. import distributed as parallel
from ..data.shuffle import Stream, keys
from ..data.targets import Targets
from ..device import Precision, autocast, resolve_compile
from ..errors import DistillError
from ..losses.objective import Objective
from ..train_settings import TrainSettings
from .optimizer import make_optimizer

SMALLEST_SCALE = 2.0**-10  # of float16 gradients: halved at each overflow, from 2^16


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step measured, still on the device: reading a value waits for the device."""

    loss: Tensor
    grad_norm: Tensor


def _no_buffers_sent() -> dict[str, Any]:
    """How this torch is told to leave buffers alone: from 2.13 on under another name, with a warning of the old one."""
    known = inspect.signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


class Student:
    """All that a checkpoint holds, and how it learns from a batch."""

    def __init__(
        self,
        tower: TextTower,
        settings: TrainSettings,
        device: torch.device,
        precision: Precision,
    ) -> None:
        self._seed = settings.seed
        compiled = resolve_compile(settings.compile, device)
        self.tower = tower.to(device).train()
        self.tower.grad_checkpointing = settings.grad_checkpointing
        self.loss = Objective(settings, compiled=compiled).to(device)
        self.optimizer = make_optimizer(self.tower, self.loss, settings)
        self._average = None
        if settings.ema:
            average = get_ema_multi_avg_fn(settings.ema)  # type: ignore[no-untyped-call]
            self._average = AveragedModel(self.tower, multi_avg_fn=average)
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._grad_clip = settings.grad_clip or float("inf")
        self._autocast = autocast(precision, device)
        if compiled:
            self.tower.compile_rows()
        self._parallel: DistributedDataParallel | None = None

    def connect(self) -> None:
        """Learn together with the other processes from now on; every process must call this."""
        if parallel.num_processes() > 1:
            # Its splitting of compiled graphs at bucket boundaries cannot take flex_attention apart.
            torch._dynamo.config.optimize_ddp = False
            # Buffers never change, and processes with more micro-batches than others would not send them at one time.
            self._parallel = DistributedDataParallel(self.tower, gradient_as_bucket_view=True, **_no_buffers_sent())

    @property
    def evaluated(self) -> TextTower:
        """The tower that is validated and exported: the averaged one if there is an average."""
        return self.tower if self._average is None else cast(TextTower, self._average.module)

    @property
    def num_parameters(self) -> tuple[int, int]:
        """How many numbers of the tower are trained, and how many there are."""
        parameters = list(self.tower.parameters())
        return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)

    @property
    def logit_scale(self) -> float:
        """The factor on cosines: 1 / temperature."""
        return float(self.loss.logit_scale.exp().item())

    @property
    def logit_bias(self) -> float | None:
        """What is added to scaled cosines, in losses that do."""
        return None if self.loss.logit_bias is None else float(self.loss.logit_bias.item())

    def step(self, packed: Sequence[Packed], targets: Targets, lr: float, *, number: int = 0) -> StepResult:
        """Learn from one batch: forward, loss, backward, clip, update.

        With several micro-batches, captions are embedded twice: first all without gradient, for the loss; then one
        micro-batch after the other with it, given the loss's gradient at its embeddings (Gao et al. 2021,
        arXiv:2101.06983, section 3). The gradient is that of the whole batch, the memory that of a micro-batch.

        Args:
            packed: the captions of this process, in micro-batches on the device.
            targets: their images.
            lr: learning rate.
            number: of the step in the run, which fixes what dropout drops.
        """
        at_once, learning = len(packed) == 1, self._parallel or self.tower
        with torch.set_grad_enabled(at_once):
            first = learning if at_once else self.tower
            embedded = [self._embed(first, part, (number, i)) for i, part in enumerate(packed)]
        features = torch.cat(embedded).detach().requires_grad_()  # [b, D]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(features, targets)
        self._scaler.scale(loss).backward()
        assert features.grad is not None
        # Processes average their gradients, the loss's is already a part of the sum.
        grads = torch.split(features.grad * parallel.num_processes(), [len(e) for e in embedded])
        for i, (micro_batch, grad) in enumerate(zip(packed, grads, strict=True)):
            with self._unreduced() if i + 1 < len(packed) else nullcontext():
                again = embedded[0] if at_once else self._embed(learning, micro_batch, (number, i))
                torch.autograd.backward(again, grad)
        return StepResult(loss=loss.detach(), grad_norm=self._update(lr))

    def _embed(self, tower: torch.nn.Module, packed: Packed, place: tuple[int, int]) -> Tensor:
        """Features `[m, D] float32` of a micro-batch, as the tower gives them; the same each time at one place."""
        (seed,) = keys(1, self._seed, *place, parallel.rank(), Stream.DROPOUT)
        torch.manual_seed(int(seed))
        with self._autocast:
            features: Tensor = tower(packed)
        return features.float()

    def _unreduced(self) -> AbstractContextManager[None]:
        """Gradients of all but the last micro-batch stay in this process."""
        return self._parallel.no_sync() if self._parallel else nullcontext()

    def _update(self, lr: float) -> Tensor:
        """Clip and descend; gives the gradient's norm before clipping."""
        self._scaler.unscale_(self.optimizer)
        grads = [p.grad for p in self._parameters if p.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm(grads)
        # On the CPU it is known at no cost when there is nothing to clip, and a pass over all gradients saved.
        if grad_norm.is_cuda or not grad_norm <= self._grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._grad_clip, grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.loss.clamp_()
        if self._average is not None:
            self._average.update_parameters(self.tower)
        return grad_norm

    def require_finite(self, result: StepResult, step: int) -> None:
        """Stop a run that has diverged, before it is logged or saved.

        Raises:
            DistillError: the loss or the gradient of this step is NaN or infinite.
        """
        measured = {"loss": result.loss.item()}
        if not self._scaler.is_enabled():  # which leaves out the steps whose float16 gradients overflow
            measured["gradient's norm"] = result.grad_norm.item()
        elif self._scaler.get_scale() < SMALLEST_SCALE:
            raise DistillError(
                f"float16 gradients overflow at every step up to {step}: lower --lr, or --precision bf16"
            )
        for name, value in measured.items():
            if not math.isfinite(value):
                raise DistillError(f"the {name} is {value} at step {step}: lower --lr or raise --warmup")

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on; batches follow from the step's number."""
        state: dict[str, Any] = {
            "tower": self.tower.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }
        return state | ({"average": self._average.state_dict()} if self._average is not None else {})

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.tower.load_state_dict(state["tower"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
