"""Diagnosis of a run that does not learn: rules over what is measured anyway. Each finding is made once a run.

A rule speaks only where what it says is all but certain: a finding that is wrong costs the trust in the next. Norms of
gradients have no rule, because AdamW's steps do not depend on their scale: a run whose every gradient is clipped
may be in the best of health.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...encoders.tokenizer_coverage import OTHER_TOKENIZER
from ...evals.embedding_stats import anisotropy, effective_rank
from ..data.pairs import ValidationData
from ..data.statistics import CaptionStats
from ..train_settings import TrainSettings
from .optimizer import learning_rate

Kind = Literal[
    "common_captions",
    "cut_captions",
    "badly_split_captions",
    "pictures_without_captions",
    "loss_at_chance",
    "loss_rose",
    "logit_scale_at_bound",
    "recall_at_chance",
    "collapsed",
]
MANY_COMMON, MANY_CUT, MANY_WITHOUT = 0.2, 0.1, 0.1  # shares from which they are worth a word
SIGMAS = 3.0  # above chance: a recall at chance gets there once in a thousand validations
USUAL = 1e-3  # rate of a tower from scratch
STILL = 0.01  # weights begin about 0.02 from zero
MOST_SHOWN = 40  # characters of a caption


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that keeps a run from learning, or shows that it does not.

    Attributes:
        kind: of finding; there is at most one of each in a run.
        message: what was measured.
        advice: what to change.
        figures: what the message rests on.
        step: after which it was made; 0 before the first.
    """

    kind: Kind
    message: str
    advice: str
    figures: dict[str, float]
    step: int = 0

    def to_json(self) -> dict[str, Any]:
        """A line of metrics.jsonl."""
        return {
            "step": self.step,
            "finding": self.kind,
            "message": self.message,
            "advice": self.advice,
            "figures": self.figures,
        }

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "Finding":
        """The finding of such a line."""
        return cls(
            kind=line["finding"],
            message=line["message"],
            advice=line["advice"],
            figures=line["figures"],
            step=line["step"],
        )


def chance_loss(settings: TrainSettings, pairs: CaptionStats) -> float | None:
    """The loss of a tower that cannot tell captions apart; None for losses that have no such level.

    >>> settings = TrainSettings(cache="c", output="o", batch_size=512)
    >>> round(chance_loss(settings, CaptionStats(num_pictures=6000)), 4) == round(math.log(512), 4)
    True
    """
    if settings.teacher_weight or settings.similarity or settings.alignment or settings.uniformity or settings.simcse:
        return None
    level = {"infonce": _softmax_at_chance, "siglip": _sigmoid_at_chance}.get(settings.loss)
    return level(settings, pairs) if level else None


def _softmax_at_chance(settings: TrainSettings, pairs: CaptionStats) -> float:
    """The logarithm of the candidates, averaged over both directions; further negatives widen one of them."""
    candidates = 1 + (settings.batch_size - 1) * (1 - pairs.masked)
    drawn = min(settings.num_negatives, pairs.num_pictures)
    further = drawn * (1 - settings.batch_size / pairs.num_pictures) * (1 - pairs.masked)  # less those of the batch
    return (math.log(candidates) + math.log(candidates + further)) / 2


def _sigmoid_at_chance(settings: TrainSettings, pairs: CaptionStats) -> float:
    """What the bias reaches alone: every image is believed with a chance of 1/B, one of the candidates is right."""
    wrong = (settings.batch_size - 1) * (1 - pairs.masked)
    return math.log(settings.batch_size) - wrong * math.log1p(-1 / settings.batch_size)


def chance_bound(num_candidates: int, num_pictures: int, most: int = 10) -> float:
    """The recall that chance alone hardly ever exceeds.

    Captions of one image err together, so images are what counts.

    Args:
        num_candidates: N, images to choose from.
        num_pictures: of them that are asked for.
        most: k of R@k.
    """
    chance = min(1.0, most / num_candidates)
    return chance + SIGMAS * math.sqrt(chance * (1 - chance) / num_pictures)


def find_in_pairs(pairs: CaptionStats, settings: TrainSettings) -> Iterator[Finding]:
    """What is wrong with the pairs themselves, before the first step."""
    if pairs.common > MANY_COMMON:
        shown = pairs.most_common[:MOST_SHOWN] + "…" * (len(pairs.most_common) > MOST_SHOWN)
        yield Finding(
            kind="common_captions",
            message=f"{pairs.common:.0%} of the captions are carried by many images each, "
            f'"{shown}" by {pairs.most_common_share:.0%} of all images',
            advice="they do not tell images apart: leave them out, or cache again with another --text-field",
            figures={
                "common": pairs.common,
                "equal": pairs.equal,
                "masked": pairs.masked,
                "most_common_share": pairs.most_common_share,
            },
        )
    if pairs.cut > MANY_CUT:
        yield Finding(
            kind="cut_captions",
            message=f"{pairs.cut:.0%} of the captions are cut at --context-length {settings.context_length}",
            advice=f"--context-length {pairs.longer} would hold 99 % of all whole; a larger --vocab-size shortens them",
            figures={"cut": pairs.cut, "longer": pairs.longer},
        )
    if pairs.badly_split:
        yield Finding(
            kind="badly_split_captions",
            message=f"the tokenizer splits these captions badly: {pairs.badly_split}",
            advice=OTHER_TOKENIZER,
            figures={},
        )
    share = pairs.num_without / (pairs.num_pictures + pairs.num_without)
    if share > MANY_WITHOUT:
        yield Finding(
            kind="pictures_without_captions",
            message=f"{share:.0%} of the embedded images ({pairs.num_without:,}) have no caption and are in no batch",
            advice="look whether the --text-field of `clipglot cache` names all columns of captions",
            figures={"without": share},
        )


def remedy(step: int, num_steps: int, settings: TrainSettings, pairs: CaptionStats) -> str:
    """What to change where nothing is learned: there is nothing to learn, or weights moved too little, or too much."""
    if pairs.common > MANY_COMMON:
        return "captions that many images carry cannot tell them apart: leave them out"
    # AdamW moves a weight by about the rate a step (Kingma and Ba 2015, arXiv:1412.6980, section 2.1).
    of_model = "" if settings.text in ("scratch", "clip") else f", a language model's --lm-lr (now {settings.lm_lr:g})"
    if sum(learning_rate(i, num_steps, settings) for i in range(step)) < STILL:
        return (
            f"the weights have hardly moved in {step:,} steps: raise --lr (now {settings.lr:g}; {USUAL:g} is usual for "
            f"towers from scratch, heads and LoRA){of_model} or --epochs (now {settings.epochs})"
        )
    return (
        f"lower --lr (now {settings.lr:g}), e.g. to {min(settings.lr / 10, USUAL):.1g}{of_model}, or raise --warmup "
        f"(now {settings.warmup:g}); if that does not help, look whether captions belong to their images"
    )


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
        self, settings: TrainSettings, num_steps: int, pairs: CaptionStats, past: Iterable[dict[str, Any]] = ()
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
            self._chance = None  # most images carry the same captions: there is little to tell apart
        self._losses: list[float] = []  # after warm-up, one a line
        self._scales: list[float] = []
        self._lowest, self._lowest_step = math.inf, 0
        self.findings: list[Finding] = []
        for line in past:
            if line["kind"] == "finding":
                self.findings.append(Finding.from_json(line))
            elif line["kind"] == "step":
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
        bound = chance_bound(num_candidates, len(np.unique(data.image_index)))
        patience = 2 * PATIENCE if self._falls() else PATIENCE
        if step < patience * self._num_steps or bound >= 1 or recall > bound:
            return
        advice = remedy(step, self._num_steps, self._settings, self._pairs)
        loss = float(np.mean(self._losses[-WINDOW:])) if self._losses else math.inf
        by_heart = self._chance is not None and loss < FELL * self._chance
        yield Finding(
            kind="recall_at_chance",
            step=step,
            message=f"R@10 is {recall:.1%} over {num_candidates:,} {kind} images at step {step:,}; guessing gives "
            f"{10 / num_candidates:.1%}",
            advice=f"the training loss fell to {loss:.2f} all the same, so pairs were learned by heart: "
            "look whether captions belong to their images, and are of one kind in both caches"
            if by_heart
            else advice,
            figures={"r_at_10": recall, "chance": 10 / num_candidates, "bound": bound},
        )
        if len(np.unique(data.groups)) < DISTINCT:
            return
        cosine, rank = metrics["anisotropy"], metrics["effective_rank"]
        of_images = anisotropy(data.image_emb), effective_rank(data.image_emb)
        # Images may lie close together themselves; captions that lie closer still do not tell them apart.
        alike = cosine > ALIKE and 1 - cosine < (1 - of_images[0]) / 2
        if alike or rank < LINE < of_images[1] / 2:
            yield Finding(
                kind="collapsed",
                step=step,
                message=f"different captions have a mean cosine of {cosine:.3f} at step {step:,}, images of "
                f"{of_images[0]:.3f}"
                if alike
                else f"captions lie along {rank:.1f} directions at step {step:,}, images along {of_images[1]:.1f}",
                advice=advice,
                figures={
                    "anisotropy": cosine,
                    "effective_rank": rank,
                    "image_anisotropy": of_images[0],
                    "image_effective_rank": of_images[1],
                },
            )
