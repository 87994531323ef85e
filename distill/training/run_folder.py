"""Run folder: settings, provenance, metrics, checkpoints and the final tower, each file complete or absent.

    run/run.json  metrics.jsonl  tokenizer/  checkpoints/step-*.pt  final/  best/

`run.json` holds the resolved settings and the provenance of the cache, in one file so that neither is ever alone. Token
ids lie in `tokens/` if the cache cannot be written.
"""

import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch

from ...cache.errors import UnwritableError
from ...cache.format import EncoderInfo
from ...cache.location import Url, to_location
from ...cache.storage.atomic import PARTIAL, atomic_directory, atomic_write, explain_os_error, sweep_partial
from ...cache.storage.regular import open_regular, read_regular
from ...cache.typed import has_type, require_types
from ...encoders.loading.weights_errors import pickle_refusal, without_pickle_warnings
from ...encoders.tokenizer import TextTokenizer
from ..errors import DistillError
from ..provenance import content_of
from ..train_settings import SECTIONS, TrainSettings

LineKind = Literal["step", "validation", "sample", "finding"]
"""What a line of metrics.jsonl holds: a step, recall on held-out pairs or on the run's own, or a finding."""
KEEP_CHECKPOINTS = 2
MAX_METRICS_BYTES = 2**28  # of metrics.jsonl: a line takes 300 bytes
MAX_LINE_BYTES = 2**20
# What is read of lines.
NEEDED: dict[str, dict[str, Any]] = {
    "step": {"loss": float | None},
    "validation": dict.fromkeys(("r_at_1", "r_at_5", "r_at_10", "median_rank"), float),
    "sample": {},
    "finding": {"finding": str, "message": str, "advice": str, "figures": dict[str, float | None]},
}
# Settings that may differ when a run is resumed: they change where and how it runs, not what it computes. Paths are
# free because files move; the content of the cache is compared by its provenance, the tokenizer is kept in the run.
FREE_ON_RESUME = {"cache", "val", "tokenizer", "output", "log_every", "log_to", "checkpoint_every", "profile"}
# These are resolved into `computed_in`, or change memory and speed alone.
FREE_ON_RESUME |= {"device", "precision", "tf32", "compile", "embeddings", "buffer_gb", "workers"}
FREE_ON_RESUME |= {"micro_batch", "grad_checkpointing"}
FREE_ON_RESUME |= {"vocab_text"}  # files move; the pruned tokenizer is kept in the run
FREE_ON_RESUME |= {"val_captions"}  # as --val
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
        with explain_os_error(self.path):
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
        begun = _with_later_settings(self._describe()["settings"]) if self._description.exists() else {}
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
            description: dict[str, Any] = json.loads(read_regular(self._description))
            require_keys(description["provenance"])
            parts = {key: description[key] for key in ("settings", "provenance", "computed_in")}
            if not all(isinstance(part, dict) for part in parts.values()):
                raise TypeError("a part of it is no object")
            return parts
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise DistillError(f"{self._description} is damaged ({error}): choose another -o and train anew") from error

    def _require_same(self, settings: TrainSettings, description: dict[str, Any]) -> None:
        then, now = self._describe(), _to_json(settings)
        begun = _with_later_settings(then["settings"]) | {"computed in": then["computed_in"]}
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
        for was in then["provenance"].get("captions", []):
            if was not in description["provenance"].get("captions", []):
                raise DistillError(
                    f"{self.path} was begun on a caption set {was['name']} that had other captions than that of "
                    f"{settings.cache} has now: put them back with `clipglot captions`, or choose another -o"
                )
        if content_of(then["provenance"]) != content_of(description["provenance"]):
            raise DistillError(
                f"{self.path} was begun on another cache than {settings.cache} is now: choose another -o"
            )

    def save_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint after `step` steps, then delete all but the two newest."""
        buffer = io.BytesIO()
        torch.save(state | {"step": step}, buffer)
        with self.writing():
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
            _require_uncompressed(files[-1])
            with without_pickle_warnings():
                state: dict[str, Any] = torch.load(files[-1], map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or type(state.get("step")) is not int:
                raise ValueError("no checkpoint of a run")
        except Exception as error:  # of torch, zipfile and pickle
            raise self.damaged_checkpoint(error) from error
        return state

    def damaged_checkpoint(self, error: Exception) -> DistillError:
        """The error that says what to do about the newest checkpoint, which cannot be loaded."""
        *older, newest = self._sorted_checkpoints()
        instead = f"go on from {older[-1].name}" if older else "begin anew"
        refused = pickle_refusal(error) is not None
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        reason = "holds more than tensors" if refused else f"is damaged ({first_line})"
        return DistillError(f"{newest} {reason}: delete it to {instead}")

    def append_metrics(self, kind: LineKind, metrics: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; `step` among the metrics says after which step it was measured."""
        # JSON has no infinity, which is the gradient norm of a step whose float16 gradients overflow.
        numbers = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        with self.writing(), open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind} | numbers) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl, each with its `kind`; a last line cut short by a kill is left out.

        Raises:
            DistillError: the file holds something else than metrics, or is too large.
        """
        if not os.path.lexists(self._metrics):
            return []
        number = 0
        try:
            lines = read_regular(self._metrics, MAX_METRICS_BYTES).split(b"\n")[:-1]
            metrics = []
            for number, line in enumerate(lines, 1):  # noqa: B007 (the error names it)
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"{len(line):,} bytes, expected at most {MAX_LINE_BYTES:,}")
                metrics.append(_checked_line(json.loads(line, parse_constant=lambda name: None)))
        except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
            where, what = (f"line {number} of {self._metrics}", "that line") if number else (self._metrics, "it")
            raise DistillError(f"{where} is no line of metrics ({error}): delete {what}") from error
        return metrics

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
        with self.writing():
            atomic_write(self._metrics, "".join(kept).encode())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write to the folder of a run that has begun; what fails says how to go on.

        Raises:
            DistillError: a full disk, for example.
        """
        try:
            with explain_os_error(self.path, again="go on with --resume"):
                yield
        except UnwritableError as error:
            raise DistillError(f"{error}, from the last checkpoint") from error.__cause__

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


def _require_uncompressed(checkpoint: Path) -> None:
    """Raise unless a checkpoint is stored as torch does it: a zip of which nothing inflates.

    Raises:
        OSError, ValueError, BadZipFile: it is not.
    """
    with open(open_regular(checkpoint), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if zipfile.is_zipfile(file) and sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()) > size:
            raise ValueError(f"a zip of {size:,} bytes that holds more")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, complete or not at all."""
    atomic_write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def require_keys(provenance: Any) -> None:
    """Raise unless a provenance has what export and resume read of it.

    Raises:
        TypeError, KeyError: it has not.
    """
    require_types(EncoderInfo(**provenance["encoder"]))
    texts = (provenance["cache"], provenance["source"]["path"], provenance["source"]["sha256"])
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"cache and source are {texts}")
    if not has_type(sets := provenance.get("captions", []), list[dict[str, str]]) or any(
        "name" not in of for of in sets
    ):
        raise TypeError(f"captions is {sets!r:.100}")
    for name in ("num_pictures", "num_captions"):
        if type(provenance[name]) is not int:
            raise TypeError(f"{name} is {provenance[name]!r}")


def _checked_line(parsed: Any) -> dict[str, Any]:
    """A line of metrics.jsonl, if it has the form of one.

    Raises:
        TypeError, ValueError, KeyError: it has not.
    """
    if not isinstance(parsed, dict):
        raise TypeError(f"{type(parsed).__name__}, expected an object")
    line: dict[str, Any] = _with_kind(parsed)
    if line["kind"] not in get_args(LineKind) or type(line["step"]) is not int:
        raise ValueError(f"kind {line['kind']!r:.40} at step {line['step']!r:.40}")
    for name, hint in NEEDED[line["kind"]].items():
        if not has_type(line[name], hint):
            raise TypeError(f"{name} is {line[name]!r:.40}")
    by_language = line.get("languages", {})  # of a validation
    needed = NEEDED["validation"].keys()
    if not has_type(by_language, dict[str, dict[str, float]]) or any(needed - of.keys() for of in by_language.values()):
        raise TypeError(f"languages is {by_language!r:.40}")
    return line


def _with_kind(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl with its kind, told by its keys in runs made before lines carried it."""
    if "kind" in line:
        return line
    kinds: dict[str, LineKind] = {"finding": "finding", "r_at_1": "validation", "sample_r_at_1": "sample"}
    return {"kind": next((kind for key, kind in kinds.items() if key in line), "step")} | line


def _with_later_settings(begun: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run, with those that came after it was begun as what it did without them."""
    later: dict[str, Any] = {"text_layers": "", "text_prompt": "", "prune_vocab": False, "vocab_text": []}
    later |= {"captions": [], "val_captions": [], "language": [], "language_temperature": None}
    later["text_features"] = "live" if begun.get("train_layers") == 0 else "auto"
    return later | begun


def _from_json(hint: Any, value: Any) -> Any:
    """Value of a setting, given its type and its form in run.json."""
    kinds = get_args(hint) or (hint,)
    if isinstance(value, str) and (Url in kinds or Path in kinds):
        return to_location(value) if Url in kinds else Path(value)
    if isinstance(value, list):
        return tuple(map(Path, value)) if Path in kinds else tuple(value)
    return value


def _to_json(settings: TrainSettings) -> dict[str, Any]:
    """Settings as JSON gives them back, in the order of `--help`."""
    values = asdict(settings)
    names = [name for section in SECTIONS.values() for name in section.split()]
    return {name: _setting_to_json(values[name]) for name in names}


def _setting_to_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_setting_to_json(each) for each in value]
    return str(value) if isinstance(value, Path) else value
