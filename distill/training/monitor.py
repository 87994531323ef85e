"""Monitor of a run: after each step it logs, validates and diagnoses, whatever is due."""

from collections.abc import Callable
from typing import Any

import torch

from .. import distributed
from ..data.pairs import ValidationData
from .best import BestWeights
from .diagnosis import Diagnosis, Finding
from .loggers import MetricsLogger
from .outline import EpochSummary, OnEpoch, recall_of
from .run_folder import LineKind
from .student import StepResult, Student
from .throughput import Throughput
from .validate import validate

NUM_SAMPLES = 10  # times that a run without validation is measured on some of its own pairs
OnMetrics = Callable[[dict[str, Any]], None]
"""Called with each line of metrics.jsonl but findings, once it is written."""
OnFinding = Callable[[Finding], None]
"""Called with each finding of the diagnosis."""


class Monitor:
    """Measurements of a run.

    Attributes:
        validation: metrics of the last validation, if there was any.
        diagnosis: findings so far.
        best: weights of the best validation, if they are kept.
    """

    def __init__(
        self,
        student: Student,
        diagnosis: Diagnosis,
        logger: MetricsLogger,
        throughput: Throughput,
        *,
        num_steps: int,
        log_every: int,
        val_data: ValidationData | None = None,
        sample: ValidationData | None = None,
        validation: dict[str, Any] | None = None,
        best: BestWeights | None = None,
        on_metrics: OnMetrics = lambda line: None,
        on_finding: OnFinding = lambda finding: None,
        on_epoch: OnEpoch = lambda summary: None,
    ) -> None:
        """Begin, or go on after a resume.

        Args:
            student: that learns.
            diagnosis: of the run.
            logger: of the run.
            throughput: of its steps; measurements are left out of it.
            num_steps: of the whole run.
            log_every: steps between lines of metrics.
            val_data: held-out pairs, measured at the end of each epoch.
            sample: pairs of the run's own, measured ten times a run.
            validation: the last one before the resume.
            best: takes in each validation.
            on_metrics: called with each line of metrics.
            on_finding: called with each finding, in the main process.
            on_epoch: called with the summary of each epoch.
        """
        self.validation, self.diagnosis, self.best = validation, diagnosis, best
        self._student, self._logger, self._throughput = student, logger, throughput
        self._num_steps, self._log_every = num_steps, log_every
        self._val_data, self._sample = val_data, sample
        self._on_metrics, self._on_finding, self._on_epoch = on_metrics, on_finding, on_epoch
        self._loss_sum, self._num_losses = torch.zeros(()), 0  # of this epoch; read once, so that a GPU need not wait
        self._recall: dict[str, float] | None = None

    def before_first_step(self, *, validates: bool) -> None:
        """Report findings about the captions; also validate, where a warm start lets the tower retrieve already."""
        self._report(self.diagnosis.check_captions())
        if validates:
            self._validate(0, 0)
            if self._recall:
                languages = (self.validation or {}).get("languages", {})
                first = EpochSummary(epoch=0, step=0, loss=None, recall=self._recall, is_best=True, languages=languages)
                self._on_epoch(first)

    def after_step(self, step: int, epoch: int, *, lr: float, result: StepResult, ends_epoch: bool) -> None:
        """Log, validate and diagnose, whatever is due.

        Args:
            step: steps done.
            epoch: of the last step.
            lr: its learning rate.
            result: its loss and gradient norm.
            ends_epoch: whether it was the epoch's last.

        Raises:
            DistillError: the run has diverged.
        """
        self._loss_sum, self._num_losses = self._loss_sum.to(result.loss.device) + result.loss, self._num_losses + 1
        if step % self._log_every == 0 or step == self._num_steps:
            self._student.require_finite(result, step)
            metrics: dict[str, Any] = {
                "step": step,
                "epoch": epoch,
                "loss": result.loss.item(),
                "lr": lr,
                "logit_scale": self._student.logit_scale,
                "grad_norm": result.grad_norm.item(),
            }
            metrics |= self._throughput.measure()
            self._write("step", metrics)
            self._report(self.diagnosis.check_step(metrics))
        if ends_epoch and self._val_data is not None:
            self._student.require_finite(result, step)
            self._validate(step, epoch)
        # By the run, not by the epoch: an epoch may be eight pairs or a hundred million.
        samples = step * NUM_SAMPLES // self._num_steps > (step - 1) * NUM_SAMPLES // self._num_steps
        if samples and self._sample is not None:
            self._student.require_finite(result, step)
            with self._throughput.paused():
                measured = validate(self._student.evaluated, self._sample)
            renamed = {f"sample_{name}": value for name, value in measured.items()}
            self._write("sample", {"step": step, "epoch": epoch} | renamed)
            self._report(self.diagnosis.check_recall(measured, self._sample, step, held_out=False))
        if ends_epoch:
            self._end_epoch(step, epoch)

    def _end_epoch(self, step: int, epoch: int) -> None:
        loss = float(self._loss_sum.item()) / self._num_losses
        recall, self._recall = self._recall, None
        summary = EpochSummary(
            epoch=epoch + 1,
            step=step,
            loss=loss,
            images_per_s=self._throughput.measure_epoch(),
            recall=recall,
            languages=(self.validation or {}).get("languages", {}) if recall else {},
            is_best=self.best is not None and self.best.validation is self.validation is not None,
        )
        self._loss_sum, self._num_losses = torch.zeros(()), 0
        self._on_epoch(summary)

    def _validate(self, step: int, epoch: int) -> None:
        if self._val_data is None:
            return
        with self._throughput.paused():
            measured = validate(self._student.evaluated, self._val_data)
        self.validation = {"step": step, "epoch": epoch} | measured
        self._write("validation", self.validation)
        if self.best:
            self.best.update(self.validation, self._student)
        if step:
            self._report(self.diagnosis.check_recall(self.validation, self._val_data, step, held_out=True))

    def _write(self, kind: LineKind, metrics: dict[str, Any]) -> None:
        self._logger.write(kind, metrics)
        self._recall = recall_of({"kind": kind} | metrics) or self._recall
        self._on_metrics({"kind": kind} | metrics)

    def _report(self, findings: list[Finding]) -> None:
        for finding in findings:
            self._logger.write_finding(finding)
            if distributed.is_main_process():
                self._on_finding(finding)
