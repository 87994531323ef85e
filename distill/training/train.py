"""`clipglot train`: teach a text tower to find its cached image. No image is opened, no loader runs.

Everything that can be wrong is found out before the run folder is touched; then the loop, which a signal stops after
the step it is in.
"""

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

from ...cache.errors import CacheError
from ...cache.progress import OnProgress, Progress, ignore_progress
from ...cache.storage.atomic import lock_folder
from ...encoders.malloc import set_malloc_thresholds
from .. import distributed as parallel
from ..device import resolve_device, set_matmul_precision
from ..errors import DistillError, LoneError
from ..train_settings import TrainSettings
from .diagnosis import Finding
from .final import Final, write_final
from .loggers import Log
from .monitor import Monitor, OnFinding, OnMetrics
from .optimizer import learning_rate
from .run_folder import RunFolder
from .setup import Setup, build_run
from .signals import resumable, stop_on_signal
from .throughput import Throughput, profiled

CHECKPOINT_S = 300  # seconds after which a checkpoint is due, however few steps they were
STEPS_PER_QUESTION = 10


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

    run: RunFolder
    began_at: int
    step: int
    num_steps: int
    num_trained: int
    num_parameters: int
    vocab_size: int
    validation: dict[str, Any] | None
    best: dict[str, Any] | None
    findings: list[Finding]

    @property
    def complete(self) -> bool:
        """Whether the last step was reached."""
        return self.step == self.num_steps


def train(
    settings: TrainSettings,
    *,
    resume: bool = False,
    on_progress: OnProgress = ignore_progress,
    on_metrics: OnMetrics = lambda line: None,
    on_finding: OnFinding = lambda finding: None,
) -> TrainResult:
    """Train a text tower from scratch on a sealed cache.

    Started by `torchrun`, every process calls this and learns from its share of each batch; the first one writes.

    Args:
        settings: of the run; a resumed run takes the same.
        resume: go on from the newest checkpoint; on one machine the result equals that of an uninterrupted run.
        on_progress: called through the stages "check" of embeddings, "tokenize", "warm start" and "train", which counts
            steps.
        on_metrics: called with each line of metrics.jsonl but findings, once it is written.
        on_finding: called in the first process when something keeps the run from learning, or shows that it does not.

    Raises:
        CacheError, EncoderError, DistillError: each message says what to do.
    """
    device = resolve_device(settings.device)
    set_matmul_precision(device, tf32=settings.tf32)
    set_malloc_thresholds(device)
    with parallel.joined(device):
        parallel.share_of(settings.batch_size)  # or fail at once, in every process
        with ExitStack() as held:

            def begin() -> Setup:
                setup = build_run(settings, device, resume, on_progress)
                held.enter_context(lock_folder(settings.output))
                setup.run.begin(settings, setup.description, setup.tokenizer, resume=resume)
                return setup

            if parallel.is_first():
                setup = parallel.all_or_none(begin)
                parallel.all_or_none(lambda: None)
            else:
                parallel.all_or_none(lambda: None)  # until tokenizer and tokens are there to be read
                setup = parallel.all_or_none(lambda: build_run(settings, device, True, on_progress))
            try:
                return _learn(settings, setup, on_progress, on_metrics, on_finding)
            except (CacheError, DistillError, OSError) as error:
                if parallel.is_first():
                    raise
                raise LoneError(f"process {parallel.rank()}: {error}") from error


def _learn(
    settings: TrainSettings,
    setup: Setup,
    on_progress: OnProgress,
    on_metrics: OnMetrics,
    on_finding: OnFinding,
) -> TrainResult:
    """The loop, from the newest checkpoint to the last step or a signal."""
    run, feed, student = setup.run, setup.feed, setup.student
    num_steps, step = settings.epochs * feed.steps_per_epoch, 0
    if checkpoint := run.load_checkpoint():
        student.load(checkpoint)
        step = checkpoint["step"]
    if len(set(parallel.gather_objects(step))) > 1:
        raise DistillError(f"{run.path} is not the same folder for all processes: put it where every machine sees it")
    student.connect()  # everyone has read the checkpoint before anything is written anew
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
        pace = Throughput(settings.batch_size)
        on_progress(Progress("train", step, num_steps))  # before the first step, which may compile for a minute
        watch = Monitor(settings, setup, num_steps, log, pace, on_metrics, on_finding)
        for fed in pace.steps(steps):
            packed = [micro_batch.to(setup.device, non_blocking=True) for micro_batch in fed.packed]
            lr = learning_rate(step, num_steps, settings)
            result = student.step(packed, feed.targets(fed), lr, number=step)
            epoch, index = divmod(step, feed.steps_per_epoch)
            step += 1
            profile()
            watch.after_step(step, epoch, lr=lr, result=result, ends_epoch=index + 1 == feed.steps_per_epoch)
            on_progress(Progress("train", step, num_steps))

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
        validation=watch.validation,
        best=run.best_validation(),
        findings=watch.diagnosis.findings,
    )
