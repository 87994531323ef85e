"""Student: a text tower, its objective and its optimizer, and one step of learning.

b captions of this process, D features.
"""

import inspect
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ...encoders.packing import Packed
from ...encoders.text_tower import TextTower
from .. import distributed
from ..data.batch import Batch
from ..data.shuffle import Stream, random_keys
from ..device import Precision, autocast, resolve_compile
from ..errors import DistillError, DivergedError
from ..losses.objective import Objective
from ..train_settings import TrainSettings
from .optimizer import make_optimizer

SMALLEST_SCALE = 2.0**-10  # of float16 gradients: halved at each overflow, from 2^16


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Loss and gradient norm of a step, still on the device: reading a value waits for the device."""

    loss: Tensor
    grad_norm: Tensor


class Student:
    """Everything that a checkpoint holds, and how it learns from a batch.

    Attributes:
        tower: in training.
        loss: the objective.
        optimizer: of both.
        num_skipped: steps that changed nothing, because their float16 gradients overflowed.
    """

    def __init__(
        self,
        tower: TextTower,
        loss: Objective,
        optimizer: torch.optim.Optimizer,
        *,
        precision: Precision = "fp32",
        seed: int = 0,
        grad_clip: float = 0.0,
        ema: float = 0.0,
    ) -> None:
        """Begin to learn.

        Args:
            tower: on its device.
            loss: on the same device.
            optimizer: of the parameters of both; each group has a `share` of the step's learning rate.
            precision: of autocast.
            seed: of dropout.
            grad_clip: upper bound of the gradient's norm; 0 for none.
            ema: decay of an average of the weights; 0 for none.
        """
        self.tower, self.loss, self.optimizer = tower, loss, optimizer
        self._seed = seed
        self.num_skipped = 0
        self._average = None
        if ema:
            average = get_ema_multi_avg_fn(ema)  # type: ignore[no-untyped-call]
            self._average = AveragedModel(tower, multi_avg_fn=average)
        self._scaler = torch.amp.GradScaler(tower.device.type, enabled=precision == "fp16")
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._grad_clip = grad_clip or float("inf")
        self._autocast = autocast(precision, tower.device)
        self._ddp: DistributedDataParallel | None = None

    def connect(self) -> None:
        """Learn together with the other processes from now on; every process must call this."""
        if distributed.num_processes() > 1:
            # Its splitting of compiled graphs at bucket boundaries cannot take flex_attention apart.
            torch._dynamo.config.optimize_ddp = False
            # Buffers never change, and processes with more micro-batches than others would not send them at one time.
            self._ddp = DistributedDataParallel(self.tower, gradient_as_bucket_view=True, **_no_buffers_sent())
            self._ddp.register_comm_hook(None, distributed.summed)

    @property
    def evaluated(self) -> TextTower:
        """The tower that is validated and exported: the averaged one if there is an average."""
        return self.tower if self._average is None else cast(TextTower, self._average.module)

    @property
    def num_parameters(self) -> tuple[int, int]:
        """Numbers of the tower's trained parameters and of all its parameters."""
        return self.tower.num_parameters

    @property
    def logit_scale(self) -> float:
        """Factor on cosines: 1 / temperature."""
        return float(self.loss.logit_scale.exp().item())

    @property
    def logit_bias(self) -> float | None:
        """Bias of the scaled cosines, in losses that have one."""
        return None if self.loss.logit_bias is None else float(self.loss.logit_bias.item())

    def step(self, batch: Batch, lr: float, *, number: int = 0) -> StepResult:
        """Learn from one batch: forward, loss, backward, clip, update.

        With several micro-batches, captions are embedded twice: first all without gradient, for the loss; then one
        micro-batch after the other with it, given the loss's gradient at its embeddings (Gao et al. 2021,
        arXiv:2101.06983, section 3). The gradient is that of the whole batch, the memory that of a micro-batch.

        Args:
            batch: of this process, on the device.
            lr: learning rate.
            number: of the step in the run, which fixes what dropout drops.
        """
        packed = batch.packed
        at_once, learning = len(packed) == 1, self._ddp or self.tower
        with torch.set_grad_enabled(at_once):
            first = learning if at_once else self.tower
            embedded = [self._embed(first, part, (number, i)) for i, part in enumerate(packed)]
        features = torch.cat(embedded).detach().requires_grad_()  # [b, D]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(features, batch.targets)
        self._scaler.scale(loss).backward()
        assert features.grad is not None
        # The loss's gradient is this process's part of the sum, so processes add up the tower's.
        grads = torch.split(features.grad, [len(e) for e in embedded])
        for i, (micro_batch, grad) in enumerate(zip(packed, grads, strict=True)):
            with self._unreduced() if i + 1 < len(packed) else nullcontext():
                again = embedded[0] if at_once else self._embed(learning, micro_batch, (number, i))
                torch.autograd.backward(again, grad)
        return StepResult(loss=loss.detach(), grad_norm=self._update(lr))

    def _embed(self, tower: torch.nn.Module, packed: Packed, place: tuple[int, int]) -> Tensor:
        """Features `[m, D] float32` of a micro-batch, as the tower gives them.

        Args:
            tower: that embeds.
            packed: m captions.
            place: step and micro-batch, which fix what dropout drops.
        """
        (seed,) = random_keys(1, self._seed, *place, distributed.rank(), Stream.DROPOUT)
        torch.manual_seed(int(seed))
        with self._autocast:
            features: Tensor = tower(packed)
        return features.float()

    def _unreduced(self) -> AbstractContextManager[None]:
        """Keep the gradients of all but the last micro-batch in this process."""
        return self._ddp.no_sync() if self._ddp else nullcontext()

    def _update(self, lr: float) -> Tensor:
        """Clip and descend; returns the gradient's norm before clipping."""
        self._scaler.unscale_(self.optimizer)
        grads = [p.grad for p in self._parameters if p.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm(grads)
        # On the CPU it is known at no cost when there is nothing to clip, and a pass over all gradients saved.
        if grad_norm.is_cuda or not grad_norm <= self._grad_clip:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._grad_clip, grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["share"]
        scale = self._scaler.get_scale()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._scaler.get_scale() < scale:  # the gradients overflowed, and the optimizer left the step out
            self.num_skipped += 1
            return grad_norm
        self.loss.clamp_()
        if self._average is not None:
            self._average.update_parameters(self.tower)
        return grad_norm

    def require_finite(self, result: StepResult, step: int) -> None:
        """Stop a run that has diverged, before it is logged or saved.

        Raises:
            DivergedError: the loss or the gradient of this step is NaN or infinite.
            DistillError: float16 gradients overflow at every step.
        """
        measured = {"loss": result.loss.item()}
        if not self._scaler.is_enabled():  # it leaves out the steps whose float16 gradients overflow
            measured["gradient's norm"] = result.grad_norm.item()
        elif self._scaler.get_scale() < SMALLEST_SCALE:
            raise DistillError(
                f"float16 gradients overflow at every step up to {step}: lower --lr, or --precision bf16"
            )
        for name, value in measured.items():
            if not math.isfinite(value):
                raise DivergedError(step, f"the {name} is {value}", "lower --lr or raise --warmup")

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on; batches follow from the step's number."""
        state: dict[str, Any] = {
            "tower": self.tower.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "num_skipped": self.num_skipped,
            "frozen_sha256": self.tower.frozen_sha256,
        }
        return state | ({"average": self._average.state_dict()} if self._average is not None else {})

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state that `state` returned.

        Raises:
            DistillError: the frozen model that the tower learned from is another one now.
        """
        if state.get("frozen_sha256", "") != self.tower.frozen_sha256:
            raise DistillError(
                f"the language model {self.tower.config.describe()} has other weights than when the run was begun: put "
                "them back, or choose another -o"
            )
        self.tower.load_state_dict(state["tower"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.num_skipped = state.get("num_skipped", 0)  # absent in checkpoints of versions that did not count them
        if self._average is not None:
            self._average.load_state_dict(state["average"])


def build_student(tower: TextTower, settings: TrainSettings, device: torch.device, precision: Precision) -> Student:
    """Student of a run: moves the tower to the device, and gives it an objective and an optimizer."""
    compiled = resolve_compile(settings.compile, device)
    tower = tower.to(device).train()
    tower.grad_checkpointing = settings.grad_checkpointing
    loss = Objective(settings, compiled=compiled).to(device)
    optimizer = make_optimizer(
        tower,
        loss,
        lr=settings.lr,
        lm_lr=settings.lm_lr,
        layer_decay=settings.layer_decay,
        weight_decay=settings.weight_decay,
        beta2=settings.beta2,
    )
    student = Student(
        tower,
        loss,
        optimizer,
        precision=precision,
        seed=settings.seed,
        grad_clip=settings.grad_clip,
        ema=settings.ema,
    )
    if compiled:
        tower.compile_rows()
    return student


def _no_buffers_sent() -> dict[str, Any]:
    """Arguments that tell this torch to leave buffers alone: renamed in 2.13, where the old name warns."""
    known = inspect.signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
