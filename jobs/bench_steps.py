"""A training step and its parts, made to be timed: the command and the benchmarks measure with the same functions.

B captions of a step, T tokens, D features, W width, L layers.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distill.data.loader import PREFETCHED, BatchLoader
from ..distill.data.pairs import TrainData
from ..distill.data.targets import Targets
from ..distill.device import AUTOCAST, Precision, autocast, resolve_device, resolve_precision, set_matmul_precision
from ..distill.train_settings import TrainSettings
from ..distill.training.student import build_student
from ..encoders.malloc import set_malloc_thresholds
from ..encoders.packing import Packed, PackedCaptions, PackedRows
from ..encoders.text_scratch import Attention, ScratchConfig, ScratchTower

WARM_UP = 2  # rounds: they compile, and make the optimizer's state
FEEDS = 8  # steps that are fed when the feed alone is timed
FOREVER = 2**40  # steps
Input = TypeVar("Input")


class Steps:
    """A student with its feed; each method but `close` takes a round and gives seconds a step.

    Attributes:
        wait_s: seconds a step of the last whole round in which the step waited for the feed.
        num_tokens: T of a step of the last whole round.
        flops: of a step of the tower alone over these tokens; see `tower_flops`.
    """

    def __init__(
        self,
        training: TrainSettings,
        data: TrainData,
        config: ScratchConfig,
        *,
        round_steps: int = 1,
        attention: Attention = "auto",
    ) -> None:
        """Build tower, loss, optimizer and feed as `train` does.

        Args:
            training: of the run whose steps are timed.
            data: what it trains on.
            config: of the tower.
            round_steps: steps of a round; within it nothing waits for the device, as between two lines of a log.
            attention: the form to compute in.
        """
        self.device = resolve_device(training.device)
        set_matmul_precision(self.device, tf32=training.tf32)
        set_malloc_thresholds(self.device)
        self.precision: Precision = resolve_precision(training.precision, self.device)
        torch.manual_seed(training.seed)
        tower = ScratchTower(config)
        tower.attention = attention
        self.student = build_student(tower, training, self.device, self.precision)
        self.loader = BatchLoader(training, data, self.student.tower, self.device, num_passes=training.num_passes)
        self.batch_size, self.round_steps = training.batch_size, round_steps
        self.wait_s = self.num_tokens = self.flops = 0.0
        self._lr, self._config, self._data = training.lr, config, data
        self._batches = self.loader.batches(0, FOREVER)
        self._packed: list[Sequence[Packed]] = []
        self._targets: Targets | None = None
        self._text_emb = F.normalize(torch.randn(training.batch_size, config.embed_dim, device=self.device), dim=-1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._batches.close()

    def whole(self) -> float:
        """Training steps as `train` runs them, feeding thread included."""
        # What was fed before the round began would be too much of it.
        for _ in range(min(PREFETCHED, self.round_steps - 1)):
            self._train()
        self._packed, self.wait_s = [], 0.0
        whole_s = self._timed(self._train, self.round_steps)
        self.wait_s /= self.round_steps
        parts = [part for packed in self._packed for part in packed]
        self.flops = sum(tower_flops(self._config, part) for part in parts) / self.round_steps
        self.num_tokens = sum(part.num_tokens for part in parts) / self.round_steps  # type: ignore[attr-defined]
        return whole_s

    def tower(self) -> float:
        """The bare tower over what the last whole round was fed: forward, backward, AdamW."""
        packed = iter(self._packed)
        return self._timed(lambda: self.tower_step(next(packed), self.student.tower), len(self._packed))

    def fed_alone(self) -> float:
        """Feeding without a step to feed."""

        def feed() -> None:
            for _ in self.loader.batches(0, FEEDS):
                pass

        return self._timed(feed, 1) / FEEDS

    def loss(self) -> float:
        """The loss of the last step, forward and backward."""
        return self._timed(lambda: self._loss(self._in_blocks), self.round_steps)

    def whole_loss(self) -> float:
        """The same of a whole B×B matrix of logits."""
        return self._timed(lambda: self._loss(self._at_once), self.round_steps)

    def tower_step(self, inputs: Sequence[Input], forward: Callable[[Input], Tensor]) -> None:
        """A step of any form of the tower: forward and backward of each of a few inputs, then AdamW.

        Args:
            inputs: together B captions.
            forward: gives features of one of them.
        """
        computing = autocast(self.precision, self.device)
        self.student.optimizer.zero_grad(set_to_none=True)
        start = 0
        for part in inputs:
            with computing:
                features = forward(part)
            torch.autograd.backward(features.float(), self._text_emb[start : start + len(features)])
            start += len(features)
        self.student.optimizer.step()

    def timed(self, work: Callable[[], None]) -> float:
        """Seconds of one call of something else, repeated for a round."""
        return self._timed(work, self.round_steps)

    def _timed(self, work: Callable[[], None], repeats: int) -> float:
        synchronize(self.device)
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize(self.device)
        return (time.perf_counter() - started) / repeats

    def _train(self) -> None:
        started = time.perf_counter()
        host_batch = next(self._batches)
        self.wait_s += time.perf_counter() - started
        batch = host_batch.to(self.device)
        self._targets = batch.targets
        self.student.step(batch, self._lr)
        self._packed.append(batch.packed)

    def _loss(self, loss: Callable[[Tensor, Targets], Tensor]) -> None:
        assert self._targets is not None, "a whole round comes first"
        loss(self._text_emb.detach().requires_grad_(), self._targets).backward()  # type: ignore[no-untyped-call]

    def _in_blocks(self, text_emb: Tensor, targets: Targets) -> Tensor:
        loss: Tensor = self.student.loss(text_emb, targets)
        return loss

    def _at_once(self, text_emb: Tensor, targets: Targets) -> Tensor:
        logits = self.student.loss.logit_scale.exp() * text_emb @ targets.image_emb.T  # [B, B]
        own = torch.arange(len(logits), device=self.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(
    measures: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    warm_up: int = WARM_UP,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[float]]:
    """Call each in turn, round after round, so that what changes with time changes for all; give what they gave.

    >>> in_turns({"one": lambda: 1.0, "two": lambda: 2.0}, 2)
    {'one': [1.0, 1.0], 'two': [2.0, 2.0]}
    """
    given: dict[str, list[float]] = {name: [] for name in measures}
    for done in range(warm_up + rounds):
        on_round(done, warm_up + rounds)
        for name, measure in measures.items():
            value = measure()
            if done >= warm_up:
                given[name].append(value)
    return given


def tower_flops(config: ScratchConfig, packed: Packed) -> float:
    """Operations that a step of the tower needs: forward and, twice that, backward; embeddings cost none.

    6 × parameters × tokens of every block (12 W² parameters), where the last one answers for EOS alone but for its
    queries, keys and values (3 W²), and causal attention within each caption, without the half above the diagonal.
    """
    assert isinstance(packed, PackedCaptions | PackedRows)
    lengths = (packed.positions.flatten()[packed.last] + 1).double()
    width, before, num_tokens = config.width, config.layers - 1, float(lengths.sum())
    matrices = 12 * width**2 * before * num_tokens + 3 * width**2 * num_tokens
    matrices += (9 * width**2 + width * config.embed_dim) * len(lengths)
    attention = width * (before * float(lengths.square().sum()) + 2 * num_tokens)
    return 6 * (matrices + attention)


def matmul_flops_s(device: torch.device, precision: Precision) -> float:
    """Operations a second of a large product of two square matrices: what tells best what the device can do."""
    size, repeats = (8192, 10) if device.type == "cuda" else (1024, 2)
    dtype = AUTOCAST.get(precision, torch.float32)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    torch.mm(left, right)
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right)
    synchronize(device)
    return 2 * size**3 * repeats / (time.perf_counter() - started)
