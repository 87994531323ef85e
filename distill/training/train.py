"""`clipglot train`: teach a text tower to find the cached image of a caption; no image is opened.

Everything that can be wrong is found before the run folder is touched. Then comes the loop, which a signal stops after
the current step.
"""

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Literal

from ...cache.errors import CacheError
from ...cache.progress import OnProgress, Progress, ignore_progress
from ...cache.storage.atomic import lock_folder
from ...encoders.malloc import set_malloc_thresholds
from .. import distributed
from ..device import resolve_device, set_matmul_precision
from ..errors import DistillError, DivergedError, LoneError
from ..train_settings import TrainSettings
from .best import BestWeights
from .diagnosis import Diagnosis, Finding
from .final import Weights, write_final
from .loggers import MetricsLogger
from .monitor import Monitor, OnFinding, OnMetrics
from .outline import OnEpoch, OnOutline, outline_run
from .run_folder import RunFolder
from .schedule import learning_rate
from .setup import Setup, build_run
from .signals import save_on_cache_error, stop_on_signal
from .throughput import Throughput, profiled

CHECKPOINT_S = 300  # seconds after which a checkpoint is due, however few the steps
GPU_STOP_CHECK = 10  # steps on a GPU between checks whether another process was told to stop


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """End of a run: after the last step, early by `--patience`, or stopped by a signal after a checkpoint.

    Attributes:
        run: its folder.
        began_at: the step that it began at: 0, or that of the checkpoint that it was resumed from.
        step: the step that it ended at.
        num_steps: of the whole run.
        num_trained: trained parameters of the tower.
        num_parameters: all parameters of the tower.
        text_features: whether a frozen language model's features were "stored" before the first step, or each step ran
            the model "live"; None without a frozen language model.
        vocab_size: tokens of its tokenizer.
        context_length: most tokens of a caption.
        validation: the last one, if any.
        best: the validation with the best mean of R@1, R@5 and R@10, if any.
        findings: of the diagnosis.
        stopped_early: whether `--patience` ran out before the last step.
        has_learned: false if recall was found to be at chance and stayed there to the end.
    """

    run: RunFolder
    began_at: int
    step: int
    num_steps: int
    num_trained: int
    num_parameters: int
    text_features: Literal["stored", "live"] | None
    vocab_size: int
    context_length: int
    validation: dict[str, Any] | None
    best: dict[str, Any] | None
    findings: list[Finding]
    stopped_early: bool
    has_learned: bool

    @property
    def complete(self) -> bool:
        """Whether the last step was reached, or patience ran out."""
        return self.step == self.num_steps or self.stopped_early


def train(
    settings: TrainSettings,
    *,
    resume: bool = False,
    on_progress: OnProgress = ignore_progress,
    on_metrics: OnMetrics = lambda line: None,
    on_finding: OnFinding = lambda finding: None,
    on_outline: OnOutline = lambda outline: None,
    on_epoch: OnEpoch = lambda summary: None,
) -> TrainResult:
    """Train a text tower on a sealed cache.

    Started by `torchrun`, every process calls this and learns from its share of each batch; the main process writes.

    Args:
        settings: of the run; a resumed run takes the same.
        resume: go on from the newest checkpoint; on one machine the result equals that of an uninterrupted run.
        on_progress: called through the stages "check" of embeddings, "tokenize", "warm start" and "train", which counts
            steps.
        on_metrics: called with each line of metrics.jsonl but findings, once it is written.
        on_finding: called in the main process with each finding of the diagnosis.
        on_outline: called once with what the run is, before its first step.
        on_epoch: called with a summary of each epoch.

    Raises:
        CacheError, EncoderError, DistillError: each message says what to do.
    """
    device = resolve_device(settings.device)
    set_matmul_precision(device, tf32=settings.tf32)
    set_malloc_thresholds(device)
    with distributed.process_group(device), ExitStack() as locks:
        distributed.own_slice(settings.batch_size)  # or fail at once, in every process

        def begin() -> Setup:
            setup = build_run(settings, device, resume=resume, on_progress=on_progress)
            locks.enter_context(lock_folder(settings.output))
            setup.run.begin(settings, setup.description, setup.tokenizer, resume=resume)
            return setup

        if distributed.is_main_process():
            setup = distributed.all_or_none(begin)
            distributed.all_or_none(lambda: None)
        else:
            distributed.all_or_none(lambda: None)  # until tokenizer and tokens can be read
            setup = distributed.all_or_none(lambda: build_run(settings, device, resume=True, on_progress=on_progress))
        try:
            return _run_steps(settings, setup, on_progress, on_metrics, on_finding, on_outline, on_epoch)
        except (CacheError, DistillError, OSError) as error:
            if distributed.is_main_process():
                if isinstance(error, DivergedError):
                    setup.run.append_metrics("finding", Finding.of_divergence(error).to_json())
                raise
            raise LoneError(f"process {distributed.rank()}: {error}") from error


def _run_steps(
    settings: TrainSettings,
    setup: Setup,
    on_progress: OnProgress,
    on_metrics: OnMetrics,
    on_finding: OnFinding,
    on_outline: OnOutline,
    on_epoch: OnEpoch,
) -> TrainResult:
    """The loop, from the newest checkpoint to the last step or a signal."""
    run, loader, student = setup.run, setup.loader, setup.student
    num_steps, step = settings.epochs * loader.steps_per_epoch, 0
    best = None if setup.val_data is None else BestWeights(settings.patience, setup.val_content)
    if checkpoint := run.load_checkpoint():
        try:
            student.load(checkpoint)
            if best and "best" in checkpoint:
                best.load(checkpoint["best"])
            else:  # of a version that kept none, or begun without --val: what was validated before is lost
                best = None
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise run.damaged_checkpoint(error) from error
        step = checkpoint["step"]
    if len(set(distributed.gather_objects(step))) > 1:
        raise DistillError(f"{run.path} is not the same folder for all processes: put it where every machine sees it")
    student.connect()  # every process has read the checkpoint before anything new is written
    began_at, saved_at = step, time.perf_counter()
    stops_early = best is not None and best.is_exhausted

    def save() -> None:
        run.save_checkpoint(step, student.state() | ({"best": best.state()} if best else {}))

    def save_last_step() -> int:
        if step > began_at and distributed.is_main_process():
            student.require_finite(result, step)
            save()
        return step

    with (
        save_on_cache_error(save_last_step),
        stop_on_signal(speaks=distributed.is_main_process()) as stop,
        closing(loader),
        MetricsLogger(run, settings.log_to, step if checkpoint else -1) as logger,
        profiled(run.path, settings.profile) as profile_step,
        closing(loader.batches(step, step if stops_early else num_steps)) as batches,
    ):
        throughput = Throughput(settings.batch_size)
        monitor = _make_monitor(settings, setup, num_steps, logger, throughput, best, on_metrics, on_finding, on_epoch)
        on_outline(outline_run(settings, setup, step))
        on_progress(Progress("train", step, num_steps))  # before the first step, which may compile for a minute
        monitor.before_first_step(validates=settings.warm_start != "none" and not checkpoint)
        for batch in throughput.count(batches):
            lr = learning_rate(step - student.num_skipped, num_steps, settings)
            result = student.step(batch.to(setup.device), lr, number=step)
            epoch, step = step // loader.steps_per_epoch, step + 1
            ends_epoch = step % loader.steps_per_epoch == 0
            profile_step()
            monitor.after_step(step, epoch, lr=lr, result=result, ends_epoch=ends_epoch)
            on_progress(Progress("train", step, num_steps))

            stops_early = best is not None and ends_epoch and distributed.any_process(best.is_exhausted)
            # Processes stop after the same step. On GPUs steps are short, and not each is worth the wait for all.
            checks_stop = setup.device.type == "cpu" or step % GPU_STOP_CHECK == 0 or step == num_steps
            stopped = checks_stop and distributed.any_process(stop.is_set())
            is_due = step % settings.checkpoint_every == 0 or time.perf_counter() - saved_at > CHECKPOINT_S
            if is_due or step == num_steps or stopped or stops_early:
                student.require_finite(result, step)
                if distributed.is_main_process():
                    with throughput.paused():
                        save()
                saved_at = time.perf_counter()
            if stopped or stops_early:
                break
    if (step == num_steps or stops_early) and distributed.is_main_process():
        with run.writing():
            if best and best.weights:
                write_final(run.best, student.evaluated, best.weights)
            write_final(run.final, student.evaluated, Weights.of(student, step))
    num_trained, num_parameters = student.num_parameters
    return TrainResult(
        run=run,
        began_at=began_at,
        step=step,
        num_steps=num_steps,
        num_trained=num_trained,
        num_parameters=num_parameters,
        text_features=None if not settings.freezes_lm else "live" if settings.live_because else "stored",
        vocab_size=setup.tokenizer.vocab_size,
        context_length=student.tower.config.context_length,
        validation=monitor.validation,
        best=(best and best.validation) or run.best_validation(),
        findings=monitor.diagnosis.findings,
        stopped_early=stops_early and step < num_steps,
        has_learned=monitor.diagnosis.has_learned,
    )


def _make_monitor(
    settings: TrainSettings,
    setup: Setup,
    num_steps: int,
    logger: MetricsLogger,
    throughput: Throughput,
    best: BestWeights | None,
    on_metrics: OnMetrics,
    on_finding: OnFinding,
    on_epoch: OnEpoch,
) -> Monitor:
    diagnosis = Diagnosis(
        settings,
        num_steps,
        setup.captions,
        context_length=setup.student.tower.config.context_length,
        lm_lr=settings.lm_lr if setup.student.tower.trains_language_model else None,
        past=setup.run.metrics(),
    )
    return Monitor(
        setup.student,
        diagnosis,
        logger,
        throughput,
        num_steps=num_steps,
        log_every=settings.log_every,
        val_data=setup.val_data,
        sample=setup.sample,
        validation=setup.run.last_validation(),
        best=best,
        on_metrics=on_metrics,
        on_finding=on_finding,
        on_epoch=on_epoch,
    )
