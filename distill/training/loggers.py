"""Loggers of a run: always metrics.jsonl, and TensorBoard or Weights & Biases where `--log-to` names them."""

import hashlib
from collections.abc import Collection
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

from .. import distributed
from ..errors import DistillError
from .diagnosis import Finding
from .run_folder import LineKind, RunFolder


class MetricsLogger:
    """Writes metrics and findings, in the main process alone."""

    def __init__(self, run: RunFolder, log_to: Collection[str], step: int) -> None:
        """Log a run.

        Args:
            run: its folder.
            log_to: "tensorboard", "wandb".
            step: steps done; lines of later steps are dropped, because these will be logged again.
        """
        self._run, self._log_to, self._step = run, log_to, step
        self._tensorboard: Any = None
        self._wandb: Any = None

    def __enter__(self) -> Self:
        if not distributed.is_main_process():
            return self
        self._run.rewind_metrics(self._step)
        if "tensorboard" in self._log_to:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self._run.path / "tensorboard"), purge_step=self._step + 1)
        if "wandb" in self._log_to:
            import wandb

            path = self._run.path
            self._wandb = wandb.init(
                project="clipglot",
                name=path.name,
                id=hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16],  # so that a resumed run goes on
                resume="allow",
                dir=str(path),
                config=self._run.settings(),
            )
        return self

    def write(self, kind: LineKind, metrics: dict[str, Any]) -> None:
        """Write a line of metrics, `step` among them."""
        if not distributed.is_main_process():
            return
        self._run.append_metrics(kind, metrics)
        group = "validation" if kind == "validation" else "train"
        scalars = {f"{group}/{name}": value for name, value in _scalars(metrics).items()}
        if self._tensorboard:
            for name, value in scalars.items():
                self._tensorboard.add_scalar(name, value, metrics["step"])
        if self._wandb:
            self._wandb.log(scalars, step=metrics["step"])

    def write_finding(self, finding: Finding) -> None:
        """Write a finding of the diagnosis."""
        if not distributed.is_main_process():
            return
        self._run.append_metrics("finding", finding.to_json())
        text = f"{finding.message}: {finding.advice}"
        if self._tensorboard:
            self._tensorboard.add_text(finding.kind, text, finding.step)
        if self._wandb:
            self._wandb.alert(title=finding.kind, text=text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish(exit_code=int(kind is not None))


def _scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line, those of a language under its name: `r_at_1/ru`."""
    by_language = metrics.get("languages", {})
    plain = {name: value for name, value in metrics.items() if name not in ("step", "epoch", "languages")}
    return plain | {f"{name}/{tag}": value for tag, of in by_language.items() for name, value in of.items()}


def require_loggers(log_to: Collection[str]) -> None:
    """Check before the first step that the loggers of `--log-to` are installed.

    Raises:
        DistillError: one is not.
    """
    for name in log_to:
        if find_spec(name) is None:
            raise DistillError(f"--log-to {name}: not installed: run `pip install {name}`")
