"""`clipglot train`: teach a text tower to find its cached picture. No picture is opened, no loader runs.

Everything that can be wrong is found out before the run folder is touched; then the loop, which a signal stops after
the step it is in.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..cache.files import locked
from ..cache.store import Cache
from ..encoders.text import TextConfig
from ..encoders.tokenizer import CaptionTokenizer, train_bpe
from .batches import BatchPlan
from .data import TrainData, load_data
from .device import resolve_device, resolve_precision
from .final import write_final
from .optimizer import learning_rate
from .provenance import require_same_encoder, run_provenance
from .run import Run
from .settings import TrainSettings
from .student import Student, require_finite
from .validation import validate

CHECKPOINT_S = 300  # seconds after which a checkpoint is due, however few steps they were

OnProgress = Callable[[int, int, dict[str, Any]], None]
"""Called after each step with the steps done, their number, and the step's metrics (or a validation's)."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended: complete, or stopped by a signal after a checkpoint."""

    run: Run
    step: int
    num_steps: int
    validation: dict[str, Any] | None

    @property
    def complete(self) -> bool:
        """Whether the last step was reached."""
        return self.step == self.num_steps


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """What the loop runs on."""

    run: Run
    tokenizer: CaptionTokenizer
    data: TrainData
    val_data: TrainData | None
    plan: BatchPlan
    student: Student
    description: dict[str, Any]


def train(
    settings: TrainSettings,
    *,
    resume: bool = False,
    on_progress: OnProgress = lambda step, total, metrics: None,
) -> TrainResult:
    """Train a text tower from scratch on a sealed cache.

    Args:
        settings: of the run; a resumed run takes the same.
        resume: go on from the newest checkpoint; on one machine the result equals that of an uninterrupted run.
        on_progress: called after each step and each validation.

    Raises:
        CacheError, EncoderError, DistillError: each message says what to do.
    """
    setup = _prepare(settings, resume)
    with locked(settings.output):
        setup.run.begin(settings, setup.description, setup.tokenizer, resume=resume)
        return _learn(settings, setup, on_progress)


def _prepare(settings: TrainSettings, resume: bool) -> _Setup:
    """Open, check and load everything; writes nothing."""
    run, cache = Run(settings.output), Cache(settings.cache).require_sealed()
    val_cache = Cache(settings.val).require_sealed() if settings.val else None
    if val_cache:
        require_same_encoder(cache.info.encoder, val_cache.info.encoder, f"the encoder of {settings.val}")
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    description = {"provenance": run_provenance(cache), "computed_in": precision}
    run.require_ready(settings, description, resume=resume)
    if run.tokenizer.exists():
        tokenizer = CaptionTokenizer.load(run.tokenizer)
    elif settings.tokenizer:
        tokenizer = CaptionTokenizer.load(settings.tokenizer)
    else:
        tokenizer = train_bpe(cache.captions(), settings.vocab_size)
    data = load_data(cache, tokenizer, settings.context_length, device, run.tokens / "train")
    config = TextConfig(
        embed_dim=cache.info.encoder.dim,
        vocab_size=tokenizer.vocab_size,
        context_length=settings.context_length,
        width=settings.width,
        heads=settings.heads,
        layers=settings.layers,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        quick_gelu=cache.info.encoder.quick_gelu,
    )
    return _Setup(
        run=run,
        tokenizer=tokenizer,
        data=data,
        val_data=load_data(val_cache, tokenizer, settings.context_length, device, run.tokens / "val")
        if val_cache
        else None,
        plan=BatchPlan(data.caption_image, batch_size=settings.batch_size, seed=settings.seed),
        student=Student(config, settings, device, precision),
        description=description,
    )


def _learn(settings: TrainSettings, setup: _Setup, on_progress: OnProgress) -> TrainResult:
    """The loop, from the newest checkpoint to the last step or a signal."""
    run, plan, student = setup.run, setup.plan, setup.student
    num_steps, step = settings.epochs * len(plan), 0
    if checkpoint := run.load_checkpoint():
        student.load(checkpoint)
        step = checkpoint["step"]
    run.rewind_metrics(step)
    validation = run.last_validation()
    saved_at = time.perf_counter()

    with _stop_on_signal() as stop:
        while step < num_steps and not stop.is_set():
            started = time.perf_counter()
            epoch, index = divmod(step, len(plan))
            batch = plan.batch(epoch, index)
            data_s = time.perf_counter() - started
            lr = learning_rate(step, num_steps, settings)
            result = student.step(setup.data, batch, lr)
            step += 1

            metrics: dict[str, Any] = {"step": step, "epoch": epoch}
            if step % settings.log_every == 0 or step == num_steps:
                require_finite(result, step)
                metrics |= {
                    "loss": result.loss.item(),
                    "lr": lr,
                    "logit_scale": student.logit_scale,
                    "grad_norm": result.grad_norm.item(),
                }
                step_s = time.perf_counter() - started
                metrics |= {"pairs_per_s": settings.batch_size / step_s, "data_s": data_s, "step_s": step_s}
                run.log(metrics)
            on_progress(step, num_steps, metrics)

            if setup.val_data is not None and index + 1 == len(plan):
                validation = {"step": step, "epoch": epoch} | validate(student.tower, setup.val_data)
                run.log(validation)
                on_progress(step, num_steps, validation)

            due = step % settings.checkpoint_every == 0 or time.perf_counter() - saved_at > CHECKPOINT_S
            if due or step == num_steps or stop.is_set():
                require_finite(result, step)
                run.save_checkpoint(step, student.state())
                saved_at = time.perf_counter()
    if step == num_steps:
        write_final(run, student.tower, student.logit_scale)
    return TrainResult(run=run, step=step, num_steps=num_steps, validation=validation)


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGINT (Ctrl-C) and SIGTERM (a scheduler's preemption) set; a second signal acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: object) -> None:
        stop.set()
        for caught, handler in previous.items():
            signal.signal(caught, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for caught, handler in previous.items():
            signal.signal(caught, handler)
