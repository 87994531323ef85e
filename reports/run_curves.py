"""Curves, findings and state of a run, from its folder."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ..cache.format import Status
from ..distill.data.statistics import CaptionStats
from ..distill.errors import DistillError
from ..distill.train_settings import TrainSettings
from ..distill.training.diagnosis import chance_loss
from ..distill.training.run_folder import RunFolder
from .figures import Curve, Finding, RunFigures

OF_STEPS = ("loss", "lr", "logit_scale", "grad_norm", "pairs_per_s")
OF_VALIDATIONS = (
    "r_at_1",
    "r_at_5",
    "r_at_10",
    "median_rank",
    "alignment",
    "uniformity",
    "anisotropy",
    "effective_rank",
)
DIVERGED = "diverged"
LARGEST = 1e15  # of a figure; none of a run comes near it


def run_figures(run: RunFolder, chance_recall: float | None = None) -> RunFigures:
    """What a run folder tells of its steps.

    Args:
        run: finished or not.
        chance_recall: R@1 of a random ranking of the validation's images.

    Raises:
        DistillError: no run, or a damaged one.
    """
    provenance = run.provenance()
    lines = run.metrics()
    steps, validations, samples, findings = (
        [line for line in lines if line["kind"] == kind] for kind in ("step", "validation", "sample", "finding")
    )
    curves = {name: _curve(steps, name) for name in OF_STEPS}
    scale = curves.pop("logit_scale")
    curves["temperature"] = Curve(steps=scale.steps, values=[1 / value if value else None for value in scale.values])
    curves |= {name: _curve(validations, name) for name in OF_VALIDATIONS}
    curves |= {f"sample_{name}": _curve(samples, f"sample_{name}") for name in OF_VALIDATIONS}
    best = run.best_validation()
    settings = _settings(run)
    counts = provenance.get("counts")
    num_embedded = counts.get(Status.EMBEDDED.label) if isinstance(counts, dict) else None
    if type(num_embedded) is not int:
        num_embedded = provenance["num_pictures"]
    is_finished = (run.final / "config.json").exists()
    last = max((line["step"] for line in lines if abs(line["step"]) < LARGEST), default=0)
    batch_size = settings.batch_size if settings and type(settings.batch_size) is int else 0
    timed, waited, pairs = _time(steps, batch_size)
    return RunFigures(
        curves=curves,
        step=last,
        num_steps=last if is_finished else _num_steps(settings, num_embedded),
        is_finished=is_finished,
        diverged_at=_diverged_at(steps, findings),
        chance_loss=_chance_loss(settings, num_embedded),
        chance_recall=chance_recall,
        best_step=best["step"] if best else None,
        train_s=timed,
        pairs_per_s=pairs / timed if timed else None,
        wait=waited / timed if timed else None,
        findings=[
            Finding(step=line["step"], kind=line["finding"], message=line["message"], advice=line["advice"])
            for line in findings
        ],
    )


def _curve(lines: Sequence[dict[str, Any]], name: str) -> Curve:
    found = [(line["step"], line.get(name)) for line in lines if name in line and abs(line["step"]) < LARGEST]
    return Curve(
        steps=[step for step, _ in found],
        values=[_number(value) for _, value in found],
    )


def _number(value: Any) -> float | None:
    """A finite number of a line; None for anything else, since files of runs are not trusted."""
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # an endless integer
        return None
    return number if abs(number) < LARGEST else None


def _settings(run: RunFolder) -> TrainSettings | None:
    """Settings of a run; None where this version would not take them."""
    try:
        return TrainSettings(**run.settings_to_resume())
    except (DistillError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError):
        return None


def _chance_loss(settings: TrainSettings | None, num_embedded: int) -> float | None:
    if settings is None or not num_embedded:
        return None
    try:
        return _number(chance_loss(settings, CaptionStats(num_images=num_embedded)))
    except (TypeError, ValueError, ArithmeticError):
        return None


def _num_steps(settings: TrainSettings | None, num_embedded: int) -> int | None:
    """Steps of a whole run, if every embedded image has a caption."""
    if settings is None or type(settings.epochs) is not int or type(settings.batch_size) is not int:
        return None
    return settings.epochs * (num_embedded // settings.batch_size) or None


def _diverged_at(steps: Sequence[dict[str, Any]], findings: Sequence[dict[str, Any]]) -> int | None:
    """Step of the finding that says so; else of a newest line without a loss."""
    for line in findings:
        if line["finding"] == DIVERGED:
            return int(line["step"])
    return int(steps[-1]["step"]) if steps and steps[-1]["loss"] is None else None


def _time(steps: Sequence[dict[str, Any]], batch_size: int) -> tuple[float, float, int]:
    """Seconds of all steps, seconds of these spent waiting, and pairs."""
    timed, waited, pairs = 0.0, 0.0, 0
    for before, line in pairwise([{"step": 0}, *steps]):
        num = max(0, line["step"] - before["step"])
        step_s = _number(line.get("step_s"))
        if step_s is not None and step_s > 0 and num < LARGEST:
            timed += num * step_s
            waited += num * (_number(line.get("data_s")) or 0.0)
            pairs += num * batch_size
    return timed, waited, pairs
