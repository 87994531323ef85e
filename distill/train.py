"""`clipglot train`: teach a text tower to find its cached picture. No picture is opened, no loader runs.

Everything that can be wrong is found out before the run folder is touched; then the loop, which a signal stops after
the step it is in.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..cache.errors import CacheError
from ..cache.files import locked
from ..cache.store import Cache
from ..encoders.lm_tokenizer import AnyTokenizer
from . import parallel
from .data import ValidationData, load_data, load_validation, open_images, pooling_of, views_of
from .device import resolve_device, resolve_precision, set_matmul_precision
from .diagnosis import Diagnosis
from .errors import DistillError, LoneError
from .feeding import Feed
from .final import Final, write_final
from .findings import Finding
from .log import Log, require_loggers
from .optimizer import learning_rate
from .pace import Pace
from .pairs import PairFigures, count_pairs, sample_pairs
from .profiling import profiled
from .provenance import content_id, require_same_encoder, run_provenance
from .run import Run
from .stopping import resumable, stop_on_signal
from .student import Student
from .towers import build_tower, open_tokenizer
from .train_settings import TrainSettings
from .validation import validate
from .warm_start import warm_start

CHECKPOINT_S = 300  # seconds after which a checkpoint is due, however few steps they were

STEPS_PER_QUESTION = 10
SAMPLES = 10  # times that a run without validation is measured on some of its own pairs

OnProgress = Callable[[int, int, dict[str, Any]], None]
"""Called after each step with the steps done, their number, and the step's metrics (or a validation's)."""
OnPrepare = Callable[[str, int, int], None]
"""Called before the first step with what is being prepared, how much of it is done, and how much there is."""
OnFinding = Callable[[Finding], None]
"""Called when the diagnosis finds something, once for each kind."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended: complete, or stopped by a signal after a checkpoint.

    Attributes:
        run: its folder.
        began_at: the step that it began at: 0, or that of the checkpoint from which it went on.
        step: the step that it ended at.
        num_steps: of the whole run.
        num_trained: parameters of the tower that are trained.
        num_parameters: all of its parameters.
        vocab_size: tokens of its tokenizer.
        validation: the last one, if any.
        findings: what was said about a run that does not learn.
    """

    run: Run
    began_at: int
    step: int
    num_steps: int
    num_trained: int
    num_parameters: int
    vocab_size: int
    validation: dict[str, Any] | None
    findings: list[Finding]

    @property
    def complete(self) -> bool:
        """Whether the last step was reached."""
        return self.step == self.num_steps


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """What the loop runs on."""

    run: Run
    tokenizer: AnyTokenizer
    feed: Feed
    val_data: ValidationData | None
    sample: ValidationData | None
    pairs: PairFigures
    student: Student
    device: torch.device
    description: dict[str, Any]


def train(
    settings: TrainSettings,
    *,
    resume: bool = False,
    on_prepare: OnPrepare = lambda what, done, total: None,
    on_progress: OnProgress = lambda step, total, metrics: None,
    on_finding: OnFinding = lambda finding: None,
) -> TrainResult:
    """Train a text tower from scratch on a sealed cache.

    Started by `torchrun`, every process calls this and learns from its share of each batch; the first one writes.

    Args:
        settings: of the run; a resumed run takes the same.
        resume: go on from the newest checkpoint; on one machine the result equals that of an uninterrupted run.
        on_prepare: called while embeddings are checked and captions tokenized.
        on_progress: called after each step and each validation.
        on_finding: called in the first process when something keeps the run from learning, or shows that it does not.

    Raises:
        CacheError, EncoderError, DistillError: each message says what to do.
    """
    device = resolve_device(settings.device)
    set_matmul_precision(device, tf32=settings.tf32)
    with parallel.joined(device):
        parallel.share_of(settings.batch_size)  # or fail at once, in every process
        with ExitStack() as held:

            def begin() -> _Setup:
                setup = _prepare(settings, device, resume, on_prepare)
                held.enter_context(locked(settings.output))
                setup.run.begin(settings, setup.description, setup.tokenizer, resume=resume)
                return setup

            if parallel.is_first():
                setup = parallel.all_or_none(begin)
                parallel.all_or_none(lambda: None)
            else:
                parallel.all_or_none(lambda: None)  # until tokenizer and tokens are there to be read
                setup = parallel.all_or_none(lambda: _prepare(settings, device, True, on_prepare))
            try:
                return _learn(settings, setup, on_progress, on_finding)
            except (CacheError, DistillError, OSError) as error:
                if parallel.is_first():
                    raise
                raise LoneError(f"process {parallel.rank()}: {error}") from error


def _prepare(settings: TrainSettings, device: torch.device, resume: bool, on_prepare: OnPrepare) -> _Setup:
    """Open, check and load everything; writes nothing but tokens."""
    require_loggers(settings)
    run, cache = Run(settings.output), Cache(settings.cache).require_sealed()
    val_cache = Cache(settings.val).require_sealed() if settings.val else None
    if val_cache:
        require_same_encoder(cache.info.encoder, val_cache.info.encoder, f"the encoder of {settings.val}")
    precision = resolve_precision(settings.precision, device)
    pooling = pooling_of(cache, settings)
    description = {
        "provenance": run_provenance(cache, views_of(cache, settings)),
        "computed_in": {
            "precision": precision,
            "tf32": settings.tf32 and device.type == "cuda",
            "pool_chunks": pooling.pool_chunks if pooling else None,
        },
    }
    run.require_ready(settings, description, resume=resume)
    tokenizer = open_tokenizer(settings, run.tokenizer, cache.captions)
    images = open_images(cache, settings, device, partial(on_prepare, "check"))
    tokenizing = partial(on_prepare, "tokenize")
    data = load_data(cache, images, tokenizer, settings, run.tokens / content_id(cache), tokenizing)
    tower = build_tower(settings, cache.info.encoder, tokenizer).to(device)
    if settings.warm_start == "ridge" and not run.has_checkpoint():
        warm_start(tower, tokenizer, cache, data, settings, partial(on_prepare, "warm start"))
    student = Student(tower, settings, device, precision)
    return _Setup(
        run=run,
        tokenizer=tokenizer,
        feed=Feed(settings, data, student.tower, device),
        val_data=load_validation(val_cache, tokenizer, settings, run.tokens / content_id(val_cache), tokenizing)
        if val_cache
        else None,
        sample=None if val_cache else sample_pairs(cache, data),
        pairs=count_pairs(cache, data, tokenizer, settings.context_length),
        student=student,
        device=device,
        description=description,
    )


def _learn(settings: TrainSettings, setup: _Setup, on_progress: OnProgress, on_finding: OnFinding) -> TrainResult:
    """The loop, from the newest checkpoint to the last step or a signal."""
    run, feed, student = setup.run, setup.feed, setup.student
    num_steps, step = settings.epochs * feed.steps_per_epoch, 0
    if checkpoint := run.load_checkpoint():
        student.load(checkpoint)
        step = checkpoint["step"]
    if len(set(parallel.gather_objects(step))) > 1:
        raise DistillError(f"{run.path} is not the same folder for all processes: put it where every machine sees it")
    student.connect()  # everyone has read the checkpoint before anything is written anew
    validation = run.last_validation()
    began_at, saved_at = step, time.perf_counter()

    def save_what_was_learned() -> int:
        if step > began_at and parallel.is_first():
            student.require_finite(result, step)
            run.save_checkpoint(step, student.state())
        return step

    with (
        resumable(save_what_was_learned),
        stop_on_signal() as stop,
        closing(feed),
        Log(run, settings, step) as log,
        profiled(run.path, settings.profile) as profile,
        closing(feed.steps(step, num_steps)) as steps,
    ):
        diagnosis = Diagnosis(settings, num_steps, setup.pairs, run.metrics())

        def tell(findings: list[Finding]) -> None:
            for finding in findings:
                log.tell(finding)
                if parallel.is_first():
                    on_finding(finding)

        tell(diagnosis.of_pairs())
        pace = Pace(settings.batch_size)
        if settings.warm_start != "none" and setup.val_data is not None and validation is None:
            validation = {"step": 0, "epoch": 0} | validate(student.evaluated, setup.val_data)
            log.write(validation)
            on_progress(0, num_steps, validation)
        for fed in pace.steps(steps):
            packed = [micro_batch.to(setup.device, non_blocking=True) for micro_batch in fed.packed]
            lr = learning_rate(step, num_steps, settings)
            result = student.step(packed, feed.targets(fed), lr, number=step)
            epoch, index = divmod(step, feed.steps_per_epoch)
            step += 1
            profile()

            metrics: dict[str, Any] = {"step": step, "epoch": epoch}
            at_mark = step % settings.log_every == 0 or step == num_steps
            if at_mark:
                student.require_finite(result, step)
                metrics |= {
                    "loss": result.loss.item(),
                    "lr": lr,
                    "logit_scale": student.logit_scale,
                    "grad_norm": result.grad_norm.item(),
                }
                metrics |= pace.mark()
                log.write(metrics)
                tell(diagnosis.of_step(metrics))
            on_progress(step, num_steps, metrics)

            if setup.val_data is not None and index + 1 == feed.steps_per_epoch:
                student.require_finite(result, step)
                with pace.not_counted():
                    validation = {"step": step, "epoch": epoch} | validate(student.evaluated, setup.val_data)
                log.write(validation)
                tell(diagnosis.of_recall(validation, setup.val_data, step, held_out=True))
                on_progress(step, num_steps, validation)
            # By the run, not by the epoch: an epoch may be eight pairs or a hundred million.
            if setup.sample is not None and step * SAMPLES // num_steps > (step - 1) * SAMPLES // num_steps:
                student.require_finite(result, step)
                with pace.not_counted():
                    measured = validate(student.evaluated, setup.sample)
                log.write({"step": step, "epoch": epoch} | {f"sample_{name}": v for name, v in measured.items()})
                tell(diagnosis.of_recall(measured, setup.sample, step, held_out=False))

            # Processes stop after the same step; on GPUs, where steps are short, not each is worth asking.
            asks = setup.device.type == "cpu" or step % STEPS_PER_QUESTION == 0 or step == num_steps
            stopped = asks and parallel.any_of(stop.is_set())
            due = step % settings.checkpoint_every == 0 or time.perf_counter() - saved_at > CHECKPOINT_S
            if due or step == num_steps or stopped:
                student.require_finite(result, step)
                if parallel.is_first():
                    with pace.not_counted():
                        run.save_checkpoint(step, student.state())
                saved_at = time.perf_counter()
            if stopped:
                break
    if step == num_steps and parallel.is_first():
        write_final(run, Final(student.evaluated, student.logit_scale, student.logit_bias))
    trained, parameters = student.num_parameters
    return TrainResult(
        run=run,
        began_at=began_at,
        step=step,
        num_steps=num_steps,
        num_trained=trained,
        num_parameters=parameters,
        vocab_size=setup.tokenizer.vocab_size,
        validation=validation,
        findings=diagnosis.findings,
    )
