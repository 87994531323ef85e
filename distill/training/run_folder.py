"""Run folder: settings, provenance, metrics, checkpoints and the final tower, each file complete or absent.

    run/run.json  metrics.jsonl  tokenizer/  checkpoints/step-*.pt  final/  best/

`run.json` holds the resolved settings and the provenance of the cache, in one file so that neither is ever alone. Token
ids lie in `tokens/` if the cache cannot be written.
"""

import io
import json
import math
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch

from ...cache.location import Url, to_location
from ...cache.storage.atomic import PARTIAL, atomic_directory, atomic_write, sweep_partial
from ...encoders.loading_errors import pickle_refusal, without_pickle_warnings
from ...encoders.tokenizer import TextTokenizer
from ..errors import DistillError
from ..provenance import content_of
from ..train_settings import SECTIONS, TrainSettings

LineKind = Literal["step", "validation", "sample", "finding"]
"""What a line of metrics.jsonl holds: a step, recall on held-out pairs or on the run's own, or a finding."""
KEEP_CHECKPOINTS = 2
# Settings that may differ when a run is resumed: they change where and how it runs, not what it computes. Paths are
# free because files move; the content of the cache is compared by its provenance, the tokenizer is kept in the run.
FREE_ON_RESUME = {"cache", "val", "tokenizer", "output", "log_every", "log_to", "checkpoint_every", "profile"}
# These are resolved into `computed_in`, or change memory and speed alone.
FREE_ON_RESUME |= {"device", "precision", "tf32", "compile", "embeddings", "buffer_gb", "workers"}
FREE_ON_RESUME |= {"micro_batch", "grad_checkpointing"}
FREE_ON_RESUME |= {"views"}  # the provenance has the number that the run began with


class RunFolder:
    """Folder of a run, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokenizer, self.tokens = path / "tokenizer", path / "tokens"
        self.final, self.best = path / "final", path / "best"
        self._description = path / "run.json"
        self._metrics, self._checkpoints = path / "metrics.jsonl", path / "checkpoints"

    def require_ready(self, settings: TrainSettings, description: dict[str, Any], *, resume: bool) -> None:
        """Check that a run may begin here, or that this one may be resumed; writes nothing.

        Args:
            settings: of the run.
            description: provenance and precision, as they are now.
            resume: whether the user asked to resume.

        Raises:
            DistillError: the folder holds something else, or a run with other settings or another cache.
        """
        if self._description.exists():
            if not resume:
                raise DistillError(f"{self.path} holds a run already: pass --resume to go on, or choose another -o")
            self._require_same(settings, description)
        elif os.path.lexists(self.path) and not self._may_begin():
            raise DistillError(f"{self.path} exists and holds no run: choose another -o")

    def begin(
        self, settings: TrainSettings, description: dict[str, Any], tokenizer: TextTokenizer, *, resume: bool
    ) -> None:
        """Write settings, provenance and tokenizer, before the first step.

        Raises:
            DistillError: as `require_ready`, which is called again now that the folder is locked.
        """
        self.require_ready(settings, description, resume=resume)
        self.path.mkdir(parents=True, exist_ok=True)
        sweep_partial(self.path)
        write_json(self._description, {"settings": _to_json(settings)} | description)
        self._checkpoints.mkdir(exist_ok=True)
        if not self.tokenizer.exists():
            with atomic_directory(self.tokenizer) as folder:
                tokenizer.save(folder)

    def provenance(self) -> dict[str, Any]:
        """Provenance of the targets: the encoder and counts of the cache.

        Raises:
            DistillError: there is no run here, or a damaged one.
        """
        if not self._description.exists():
            raise DistillError(f"{self.path}: no run here: make one with `clipglot train CACHE -o {self.path}`")
        result: dict[str, Any] = self._describe()["provenance"]
        return result

    def settings_to_resume(self) -> dict[str, Any]:
        """Settings that the run was begun with, as values of TrainSettings' fields; empty if there is no run.

        Raises:
            DistillError: the run's description is damaged.
        """
        hints = get_type_hints(TrainSettings)
        begun = self._describe()["settings"] if self._description.exists() else {}
        return {name: _from_json(hints[name], value) for name, value in begun.items() if name in hints}

    def settings(self) -> dict[str, Any]:
        """Resolved settings, as they were written.

        Raises:
            DistillError: the run's description is damaged.
        """
        result: dict[str, Any] = self._describe()["settings"]
        return result

    def _describe(self) -> dict[str, Any]:
        try:
            description: dict[str, Any] = json.loads(self._description.read_text(encoding="utf-8"))
            return {key: description[key] for key in ("settings", "provenance", "computed_in")}
        except (ValueError, KeyError, TypeError) as error:
            raise DistillError(f"{self._description} is damaged ({error}): choose another -o and train anew") from error

    def _require_same(self, settings: TrainSettings, description: dict[str, Any]) -> None:
        then, now = self._describe(), _to_json(settings)
        begun = then["settings"] | {"computed in": then["computed_in"]}
        now |= {"computed in": description["computed_in"]}
        for name in sorted((begun.keys() | now.keys()) - FREE_ON_RESUME):
            if begun.get(name) != now.get(name):
                raise DistillError(
                    f"{self.path} was begun with {name} = {begun.get(name)!r}, now it is {now.get(name)!r}: "
                    "leave it out to resume with the settings of the run, or choose another -o"
                )
        num_then, num_now = (p["provenance"].get("num_views", 1) for p in (then, description))
        if num_then != num_now:
            raise DistillError(
                f"{self.path} was begun on {num_then} stored views an image, now there are {num_now}: pass "
                f"--views {num_then}"
            )
        if content_of(then["provenance"]) != content_of(description["provenance"]):
            raise DistillError(
                f"{self.path} was begun on another cache than {settings.cache} is now: choose another -o"
            )

    def save_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint after `step` steps, then delete all but the two newest."""
        buffer = io.BytesIO()
        torch.save(state | {"step": step}, buffer)
        atomic_write(self._checkpoints / f"step-{step:09d}.pt", buffer.getbuffer())
        for old in self._sorted_checkpoints()[:-KEEP_CHECKPOINTS]:
            old.unlink()

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return bool(self._sorted_checkpoints())

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint, on the CPU; None if there is none.

        Raises:
            DistillError: the newest one is damaged.
        """
        files = self._sorted_checkpoints()
        if not files:
            return None
        try:
            with without_pickle_warnings():
                state: dict[str, Any] = torch.load(files[-1], map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
            instead = f"go on from {files[-2].name}" if len(files) > 1 else "begin anew"
            refused = pickle_refusal(error) is not None
            reason = "holds more than tensors" if refused else f"is damaged ({str(error).splitlines()[0]})"
            raise DistillError(f"{files[-1]} {reason}: delete it to {instead}") from error
        return state

    def append_metrics(self, kind: LineKind, metrics: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; `step` among the metrics says after which step it was measured."""
        # JSON has no infinity, which is the gradient norm of a step whose float16 gradients overflow.
        numbers = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind} | numbers) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl, each with its `kind`; a last line cut short by a kill is left out."""
        lines = self._metrics.read_bytes().split(b"\n")[:-1] if self._metrics.exists() else []
        return [_with_kind(json.loads(line)) for line in lines]

    def last_validation(self) -> dict[str, Any] | None:
        """Metrics of the newest validation, if there was one."""
        return next(reversed(self._validations()), None)

    def validation_at(self, step: int | None) -> dict[str, Any] | None:
        """Metrics of the validation after a step, if there was one."""
        return next((metrics for metrics in self._validations() if metrics["step"] == step), None)

    def best_validation(self) -> dict[str, Any] | None:
        """Metrics of the validation with the best mean recall, the first of equal ones."""
        return max(self._validations(), key=mean_recall, default=None)

    def _validations(self) -> list[dict[str, Any]]:
        lines = [line for line in self.metrics() if line["kind"] == "validation"]
        return [{name: value for name, value in line.items() if name != "kind"} for line in lines]

    def rewind_metrics(self, step: int) -> None:
        """Drop lines of later steps: a resumed run logs them again."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        atomic_write(self._metrics, "".join(kept).encode())

    def _may_begin(self) -> bool:
        """Whether the folder is empty, or holds only token ids and files of a start that was killed."""
        return self.path.is_dir() and all(
            file == self.tokens or file.name.endswith(PARTIAL) for file in self.path.iterdir()
        )

    def _sorted_checkpoints(self) -> list[Path]:
        return sorted(self._checkpoints.glob("step-*.pt"))


def mean_recall(validation: Mapping[str, Any]) -> float:
    """Mean of R@1, R@5 and R@10, text to image: the criterion of the best weights.

    Their sum is the usual one in retrieval (Faghri et al. 2018, arXiv:1707.05612, section 4.2).
    """
    return float(sum(validation[f"r_at_{k}"] for k in (1, 5, 10)) / 3)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, complete or not at all."""
    atomic_write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _with_kind(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl with its kind, told by its keys in runs made before lines carried it."""
    if "kind" in line:
        return line
    kinds: dict[str, LineKind] = {"finding": "finding", "r_at_1": "validation", "sample_r_at_1": "sample"}
    return {"kind": next((kind for key, kind in kinds.items() if key in line), "step")} | line


def _from_json(hint: Any, value: Any) -> Any:
    """Value of a setting, given its type and its form in run.json."""
    kinds = get_args(hint) or (hint,)
    if isinstance(value, str) and (Url in kinds or Path in kinds):
        return to_location(value) if Url in kinds else Path(value)
    return tuple(value) if isinstance(value, list) else value


def _to_json(settings: TrainSettings) -> dict[str, Any]:
    """Settings as JSON gives them back, in the order of `--help`."""
    values = asdict(settings)
    names = [name for section in SECTIONS.values() for name in section.split()]
    return {name: _setting_to_json(values[name]) for name in names}


def _setting_to_json(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
