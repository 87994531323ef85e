"""Curves, findings and state of a run, from its folder."""

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
    num_embedded = provenance["counts"].get(Status.EMBEDDED.label, provenance["num_pictures"])
    is_finished = (run.final / "config.json").exists()
    last = max((line["step"] for line in lines), default=0)
    timed, waited, pairs = _time(steps, settings.batch_size if settings else 0)
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
    found = [(line["step"], line.get(name)) for line in lines if name in line]
    return Curve(
        steps=[step for step, _ in found],
        values=[float(value) if isinstance(value, int | float) else None for _, value in found],
    )


def _settings(run: RunFolder) -> TrainSettings | None:
    """Settings of a run; None where this version would not take them."""
    try:
        return TrainSettings(**run.settings_to_resume())
    except (DistillError, TypeError):
        return None


def _chance_loss(settings: TrainSettings | None, num_embedded: int) -> float | None:
    if settings is None or not num_embedded:
        return None
    return chance_loss(settings, CaptionStats(num_images=num_embedded))


def _num_steps(settings: TrainSettings | None, num_embedded: int) -> int | None:
    """Steps of a whole run, if every embedded image has a caption."""
    if settings is None or num_embedded < settings.batch_size:
        return None
    return settings.epochs * (num_embedded // settings.batch_size)


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
        if "step_s" in line and line["step_s"] is not None:
            timed += num * line["step_s"]
            waited += num * (line.get("data_s") or 0.0)
            pairs += num * batch_size
    return timed, waited, pairs
