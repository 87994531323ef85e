"""What a run says of itself while it learns: metrics, validations and findings, each to where it belongs."""

from collections.abc import Callable
from typing import Any

from .. import distributed as parallel
from ..train_settings import TrainSettings
from .diagnosis import Diagnosis, Finding
from .loggers import Log
from .run_folder import LineKind
from .setup import Setup
from .student import StepResult
from .throughput import Throughput
from .validate import validate

SAMPLES = 10  # times that a run without validation is measured on some of its own pairs
OnMetrics = Callable[[dict[str, Any]], None]
"""Called with each line of metrics.jsonl but findings, once it is written."""
OnFinding = Callable[[Finding], None]
"""Called when the diagnosis finds something, once for each kind."""


class Monitor:
    """Looks at a run after each step.

    Attributes:
        validation: the last one, if there was any.
        diagnosis: what has been found.
    """

    def __init__(
        self,
        settings: TrainSettings,
        setup: Setup,
        num_steps: int,
        log: Log,
        pace: Throughput,
        on_metrics: OnMetrics,
        on_finding: OnFinding,
    ) -> None:
        """Begin, or go on after what `log` has kept.

        Args:
            settings: of the run.
            setup: what it runs on.
            num_steps: of the whole run.
            log: where everything is written.
            pace: of its steps, from which looking is left out.
            on_metrics: called with what is measured.
            on_finding: called in the first process.
        """
        self.validation = setup.run.last_validation()
        self.diagnosis = Diagnosis(settings, num_steps, setup.pairs, setup.run.metrics())
        self._settings, self._setup, self._num_steps, self._log, self._pace = settings, setup, num_steps, log, pace
        self._on_metrics, self._on_finding = on_metrics, on_finding
        self._tell(self.diagnosis.of_pairs())
        if settings.warm_start != "none" and setup.val_data is not None and self.validation is None:
            self._validate(0, 0)

    def after_step(self, step: int, epoch: int, *, lr: float, result: StepResult, ends_epoch: bool) -> None:
        """Log, validate and diagnose, whatever is due.

        Args:
            step: steps done.
            epoch: of the last one.
            lr: its learning rate.
            result: what it measured.
            ends_epoch: whether it was the epoch's last.

        Raises:
            DistillError: the run has diverged.
        """
        student = self._setup.student
        if step % self._settings.log_every == 0 or step == self._num_steps:
            student.require_finite(result, step)
            metrics: dict[str, Any] = {
                "step": step,
                "epoch": epoch,
                "loss": result.loss.item(),
                "lr": lr,
                "logit_scale": student.logit_scale,
                "grad_norm": result.grad_norm.item(),
            }
            metrics |= self._pace.mark()
            self._write("step", metrics)
            self._tell(self.diagnosis.of_step(metrics))
        if ends_epoch and self._setup.val_data is not None:
            student.require_finite(result, step)
            self._validate(step, epoch)
        # By the run, not by the epoch: an epoch may be eight pairs or a hundred million.
        sampled = step * SAMPLES // self._num_steps > (step - 1) * SAMPLES // self._num_steps
        if sampled and self._setup.sample is not None:
            student.require_finite(result, step)
            with self._pace.not_counted():
                measured = validate(student.evaluated, self._setup.sample)
            sampled_metrics = {f"sample_{name}": value for name, value in measured.items()}
            self._write("sample", {"step": step, "epoch": epoch} | sampled_metrics)
            self._tell(self.diagnosis.of_recall(measured, self._setup.sample, step, held_out=False))

    def _validate(self, step: int, epoch: int) -> None:
        assert self._setup.val_data is not None
        with self._pace.not_counted():
            measured = validate(self._setup.student.evaluated, self._setup.val_data)
        self.validation = {"step": step, "epoch": epoch} | measured
        self._write("validation", self.validation)
        if step:
            self._tell(self.diagnosis.of_recall(self.validation, self._setup.val_data, step, held_out=True))

    def _write(self, kind: LineKind, metrics: dict[str, Any]) -> None:
        self._log.write(kind, metrics)
        self._on_metrics({"kind": kind} | metrics)

    def _tell(self, findings: list[Finding]) -> None:
        for finding in findings:
            self._log.tell(finding)
            if parallel.is_first():
                self._on_finding(finding)
