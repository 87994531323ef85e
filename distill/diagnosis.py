"""Diagnosis of a run that does not learn: rules over what is measured anyway. Each finding is made once a run.

A rule speaks only where what it says is all but certain: a finding that is wrong costs the trust in the next. Norms of
gradients have no rule, because AdamW's steps do not depend on their scale: a run whose every gradient is clipped
may be in the best of health.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..evals.geometry import anisotropy, effective_rank
from .data import ValidationData
from .findings import Finding, chance_bound, chance_loss, find_in_pairs, remedy
from .pairs import PairFigures
from .train_settings import TrainSettings

PATIENCE = 0.25  # share of the steps after which a run that learns shows it
WINDOW = 10  # lines of metrics that are averaged
MARGIN = 0.02  # share of the loss at chance that counts as chance, too
ROSE = 0.5  # share of what a loss had fallen by that it must lose again
FELL = 0.9  # share of the loss at chance below which a run has learned something
DISTINCT = 20  # captions below which nothing is said of how they lie
ALIKE = 0.9  # mean cosine
LINE = 2.0  # directions


class Diagnosis:
    """What has been found of a run, and what is still looked for.

    Attributes:
        findings: so far, those from before a resume among them.
    """

    def __init__(
        self, settings: TrainSettings, num_steps: int, pairs: PairFigures, past: Iterable[dict[str, Any]] = ()
    ) -> None:
        """Begin, or go on.

        Args:
            settings: of the run.
            num_steps: of the whole run.
            pairs: that it learns from.
            past: lines of metrics.jsonl from before.
        """
        self._settings, self._num_steps, self._pairs = settings, num_steps, pairs
        self._chance = chance_loss(settings, pairs)
        if self._chance is not None and self._chance < math.log(settings.batch_size) / 2:
            self._chance = None  # most pictures carry the same captions: there is little to tell apart
        self._losses: list[float] = []  # after warm-up, one a line
        self._scales: list[float] = []
        self._lowest, self._lowest_step = math.inf, 0
        self.findings: list[Finding] = []
        for line in past:
            if "finding" in line:
                self.findings.append(Finding.from_json(line))
            elif "loss" in line:
                self._note(line)

    def of_pairs(self) -> list[Finding]:
        """What is new before the first step."""
        return self._new(find_in_pairs(self._pairs, self._settings))

    def of_step(self, metrics: dict[str, Any]) -> list[Finding]:
        """What is new after a logged step.

        Args:
            metrics: its line of metrics.jsonl.
        """
        self._note(metrics)
        return self._new(self._in_losses(metrics["step"]))

    def of_recall(self, metrics: dict[str, Any], data: ValidationData, step: int, *, held_out: bool) -> list[Finding]:
        """What is new after a validation.

        Args:
            metrics: what `validate` measured.
            data: on this.
            step: after which.
            held_out: whether the run does not learn from these pairs.
        """
        return self._new(self._in_recall(metrics, data, step, "held-out" if held_out else "training"))

    def _new(self, found: Iterable[Finding]) -> list[Finding]:
        known = {finding.kind for finding in self.findings}
        new = [finding for finding in found if finding.kind not in known]
        self.findings += new
        return new

    def _note(self, metrics: dict[str, Any]) -> None:
        if metrics["step"] <= round(self._settings.warmup * self._num_steps):
            return
        self._losses.append(metrics["loss"])
        self._scales.append(metrics.get("logit_scale") or 0.0)
        if len(self._losses) >= WINDOW and (mean := float(np.mean(self._losses[-WINDOW:]))) < self._lowest:
            self._lowest, self._lowest_step = mean, metrics["step"]

    def _falls(self) -> bool:
        """Whether the loss is still falling, or may be."""
        window = np.array(self._losses[-WINDOW:])
        if len(window) < WINDOW:
            return True
        error = window.std(ddof=1) / math.sqrt(WINDOW)
        return bool(window[: WINDOW // 2].mean() - window[WINDOW // 2 :].mean() > 2 * error)

    def _in_losses(self, step: int) -> Iterator[Finding]:
        settings, chance = self._settings, self._chance
        if chance is None or len(self._losses) < WINDOW:
            return
        window = np.array(self._losses[-WINDOW:])
        mean, error = float(window.mean()), float(window.std(ddof=1) / math.sqrt(WINDOW))
        figures = {"loss": mean, "chance": chance}
        fallen = chance - self._lowest
        if fallen > 2 * MARGIN * chance and mean - 2 * error > self._lowest + ROSE * fallen:
            yield Finding(
                kind="loss_rose",
                step=step,
                message=f"the loss rose again, from {self._lowest:.2f} at step {self._lowest_step:,} to {mean:.2f} at "
                f"step {step:,}",
                advice=f"the steps are too long: lower --lr (now {settings.lr:g}), e.g. to {settings.lr / 3:.1g}, or "
                "raise --warmup or --batch-size",
                figures=figures | {"lowest": self._lowest, "lowest_step": self._lowest_step},
            )
        if step < PATIENCE * self._num_steps:
            return
        if mean - 2 * error > (1 - MARGIN) * chance and not self._falls():
            yield Finding(
                kind="loss_at_chance",
                step=step,
                message=f"the loss is {mean:.2f} at step {step:,}, no better than guessing ({chance:.2f} with "
                f"--batch-size {settings.batch_size})",
                advice=remedy(step, self._num_steps, settings, self._pairs),
                figures=figures,
            )
        for bound in (1.0, settings.max_logit_scale):
            if np.allclose(self._scales[-WINDOW:], bound, rtol=1e-3) and mean > chance / 2:
                yield Finding(
                    kind="logit_scale_at_bound",
                    step=step,
                    message=f"logit_scale is at its bound of {bound:g} at step {step:,}, with a loss of {mean:.2f}",
                    advice=f"the temperature ran away before the tower had learned: lower --lr (now {settings.lr:g}), "
                    f"or begin at another --temperature (now {settings.resolved_temperature:g})",
                    figures=figures | {"logit_scale": bound},
                )

    def _in_recall(self, metrics: dict[str, Any], data: ValidationData, step: int, kind: str) -> Iterator[Finding]:
        num_candidates, recall = len(data.image_emb), metrics["r_at_10"]
        bound = chance_bound(num_candidates, len(np.unique(data.owners)))
        patience = 2 * PATIENCE if self._falls() else PATIENCE
        if step < patience * self._num_steps or bound >= 1 or recall > bound:
            return
        advice = remedy(step, self._num_steps, self._settings, self._pairs)
        loss = float(np.mean(self._losses[-WINDOW:])) if self._losses else math.inf
        by_heart = self._chance is not None and loss < FELL * self._chance
        yield Finding(
            kind="recall_at_chance",
            step=step,
            message=f"R@10 is {recall:.1%} over {num_candidates:,} {kind} pictures at step {step:,}; guessing gives "
            f"{10 / num_candidates:.1%}",
            advice=f"the training loss fell to {loss:.2f} all the same, so pairs were learned by heart: "
            "look whether captions belong to their pictures, and are of one kind in both caches"
            if by_heart
            else advice,
            figures={"r_at_10": recall, "chance": 10 / num_candidates, "bound": bound},
        )
        if len(np.unique(data.groups)) < DISTINCT:
            return
        cosine, rank = metrics["anisotropy"], metrics["effective_rank"]
        of_images = anisotropy(data.image_emb), effective_rank(data.image_emb)
        # Pictures may lie close together themselves; captions that lie closer still do not tell them apart.
        alike = cosine > ALIKE and 1 - cosine < (1 - of_images[0]) / 2
        if alike or rank < LINE < of_images[1] / 2:
            yield Finding(
                kind="collapsed",
                step=step,
                message=f"different captions have a mean cosine of {cosine:.3f} at step {step:,}, pictures of "
                f"{of_images[0]:.3f}"
                if alike
                else f"captions lie along {rank:.1f} directions at step {step:,}, pictures along {of_images[1]:.1f}",
                advice=advice,
                figures={
                    "anisotropy": cosine,
                    "effective_rank": rank,
                    "image_anisotropy": of_images[0],
                    "image_effective_rank": of_images[1],
                },
            )
