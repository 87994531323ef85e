"""Where a run's metrics go: always metrics.jsonl, and what `--log-to` names."""

import hashlib
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

from .. import distributed as parallel
from ..errors import DistillError
from ..train_settings import TrainSettings
from .diagnosis import Finding
from .run_folder import LineKind, RunFolder


class Log:
    """Writes lines of metrics, in the first process alone."""

    def __init__(self, run: RunFolder, settings: TrainSettings, step: int) -> None:
        """Go on after `step` steps: what was logged later is dropped, for it will be logged again."""
        self._run, self._settings, self._step = run, settings, step
        self._writer: Any = None
        self._wandb: Any = None

    def __enter__(self) -> Self:
        if not parallel.is_first():
            return self
        self._run.rewind_metrics(self._step)
        if "tensorboard" in self._settings.log_to:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._run.path / "tensorboard"), purge_step=self._step + 1)
        if "wandb" in self._settings.log_to:
            import wandb

            path = self._run.path
            self._wandb = wandb.init(
                project="clipglot",
                name=path.name,
                id=hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16],  # a resumed run goes on there
                resume="allow",
                dir=str(path),
                config=self._run.settings(),
            )
        return self

    def write(self, kind: LineKind, metrics: dict[str, Any]) -> None:
        """Append a line of metrics; `step` among them says where it belongs."""
        if not parallel.is_first():
            return
        self._run.log(kind, metrics)
        named = {
            f"{'validation' if kind == 'validation' else 'train'}/{name}": value
            for name, value in metrics.items()
            if name not in ("step", "epoch")
        }
        if self._writer:
            for name, value in named.items():
                self._writer.add_scalar(name, value, metrics["step"])
        if self._wandb:
            self._wandb.log(named, step=metrics["step"])

    def tell(self, finding: Finding) -> None:
        """Append what the diagnosis has found."""
        if not parallel.is_first():
            return
        self._run.log("finding", finding.to_json())
        said = f"{finding.message}: {finding.advice}"
        if self._writer:
            self._writer.add_text(finding.kind, said, finding.step)
        if self._wandb:
            self._wandb.alert(title=finding.kind, text=said)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer:
            self._writer.close()
        if self._wandb:
            self._wandb.finish(exit_code=int(kind is not None))


def require_loggers(settings: TrainSettings) -> None:
    """Find out before the first step whether what `--log-to` names is installed.

    Raises:
        DistillError: it is not.
    """
    for name in settings.log_to:
        if find_spec(name) is None:
            raise DistillError(f"--log-to {name}: not installed: run `pip install 'clipglot[{name}]'`")
