"""Diagnosis of a run that does not learn: rules over what is measured anyway. Each finding is made once a run.

A rule speaks only where it is all but certain: a wrong finding costs the trust in the next one. Gradient norms have no
rule, because AdamW's steps do not depend on their scale: a run whose every gradient is clipped may be in the best of
health.

B pairs of a step, M further negatives, N images.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...encoders.tokenizer_coverage import OTHER_TOKENIZER
from ...evals.embedding_stats import anisotropy, effective_rank
from ..data.pairs import ValidationData
from ..data.statistics import CaptionStats
from ..errors import DivergedError
from ..train_settings import LearningSettings
from .schedule import learning_rate

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
    "diverged",
]
# Of the captions, before the first step: shares above which there is a finding.
MAX_COMMON, MAX_CUT, MAX_WITHOUT = 0.2, 0.1, 0.1
MAX_SHOWN = 40  # characters of a caption in a message
# Of the loss.
PATIENCE = 0.25  # share of the steps after which a run that learns shows it
LARGE_MOVE = 0.5  # sum of learning rates after which it shows it, too: hundreds of steps at the usual rate
WINDOW = 10  # lines of metrics that are averaged
MARGIN = 0.02  # share of the chance loss that counts as chance, too
ROSE = 0.5  # share of the fall so far that a loss must lose again
FELL = 0.9  # share of the chance loss below which a run has learned something
# Of recall and collapse.
MAX_CHANCE = 0.25  # recall of a random ranking, up to which R@10 is judged; else R@5 or R@1
MAX_BOUND = 0.5  # a tower that learns may stay below a higher one, so nothing is said of so few images or captions
SIGMAS = 3.0  # above chance: a recall at chance gets there once in a thousand validations
MIN_DISTINCT = 20  # captions below which nothing is said of how they lie
MAX_COSINE = 0.9  # mean cosine of different captions above which they have collapsed
MIN_RANK = 2.0  # directions below which captions have collapsed
# Of the advice.
USUAL_LR = 1e-3  # of a tower from scratch
SMALL_MOVE = 0.01  # of a weight; weights begin about 0.02 from zero
FEW_MOVES = 5  # times that far that a whole run must be able to move a weight


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Reason or sign that a run does not learn.

    Attributes:
        kind: of finding; there is at most one of each in a run.
        message: what was measured.
        advice: what to change.
        figures: that the message rests on.
        step: after which it was made; 0 before the first.
    """

    kind: Kind
    message: str
    advice: str
    figures: dict[str, float]
    step: int = 0

    @property
    def title(self) -> str:
        """The kind in words, as docs/diagnosis.md lists it."""
        return self.kind.replace("_", " ")

    def to_json(self) -> dict[str, Any]:
        """The finding as metrics.jsonl has it."""
        return {
            "step": self.step,
            "finding": self.kind,
            "message": self.message,
            "advice": self.advice,
            "figures": self.figures,
        }

    @classmethod
    def of_divergence(cls, error: DivergedError) -> "Finding":
        """The finding that ends a run; a resumed run drops it, because it lies after its checkpoint."""
        return cls(
            kind="diverged",
            message=f"{error.measured} at step {error.step:,}",
            advice=error.advice,
            figures={},
            step=error.step,
        )

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "Finding":
        """The finding of a line of metrics.jsonl."""
        return cls(
            kind=line["finding"],
            message=line["message"],
            advice=line["advice"],
            figures=line["figures"],
            step=line["step"],
        )


def chance_loss(settings: LearningSettings, captions: CaptionStats) -> float | None:
    """Loss of a tower that cannot tell captions apart; None for losses without such a level.

    >>> settings = LearningSettings(batch_size=512)
    >>> round(chance_loss(settings, CaptionStats(num_images=6000)), 4) == round(math.log(512), 4)
    True
    """
    if settings.teacher_weight or settings.similarity or settings.alignment or settings.uniformity or settings.simcse:
        return None
    level = {"infonce": _softmax_chance, "siglip": _sigmoid_chance}.get(settings.loss)
    return level(settings, captions) if level else None


def _softmax_chance(settings: LearningSettings, captions: CaptionStats) -> float:
    """Logarithm of the candidates, averaged over both directions; further negatives widen one of them."""
    candidates = 1 + (settings.batch_size - 1) * (1 - captions.masked)
    num_drawn = min(settings.num_negatives, captions.num_images)
    further = num_drawn * (1 - settings.batch_size / captions.num_images) * (1 - captions.masked)  # less the batch's
    return (math.log(candidates) + math.log(candidates + further)) / 2


def _sigmoid_chance(settings: LearningSettings, captions: CaptionStats) -> float:
    """Loss that the bias reaches alone: each pair is positive with probability 1/B, and one candidate of B is."""
    num_negatives = (settings.batch_size - 1) * (1 - captions.masked)
    return math.log(settings.batch_size) - num_negatives * math.log1p(-1 / settings.batch_size)


def chance_recall(num_right: NDArray[np.int64], num_candidates: int, k: int = 10) -> float:
    """Expected R@k of a random ranking.

    Args:
        num_right: right answers of each query.
        num_candidates: N, answers that each query ranks.
        k: of R@k.

    >>> round(chance_recall(np.array([1, 1]), 40), 6), round(chance_recall(np.array([4]), 8, k=1), 6)
    (0.25, 0.5)
    """
    placed = np.arange(min(k, num_candidates))
    missed = np.clip(num_candidates - num_right[:, None] - placed, 0, None) / (num_candidates - placed)
    return float(1 - missed.prod(1).mean())


def chance_bound(chance: float, num_independent: int) -> float:
    """Recall that chance alone hardly ever exceeds.

    Args:
        chance: recall of a random ranking.
        num_independent: queries that err independently; captions of one image or with one text err together.
    """
    return chance + SIGMAS * math.sqrt(chance * (1 - chance) / num_independent)


def check_captions(captions: CaptionStats, context_length: int) -> Iterator[Finding]:
    """Findings about the captions themselves, before the first step."""
    if captions.common > MAX_COMMON:
        shown = captions.most_common[:MAX_SHOWN] + "…" * (len(captions.most_common) > MAX_SHOWN)
        yield Finding(
            kind="common_captions",
            message=f"{captions.common:.0%} of the captions are shared by many images each, "
            f'"{shown}" by {captions.most_common_share:.0%} of all images',
            advice="they do not tell images apart: leave them out, or cache again with another --text-field",
            figures={
                "common": captions.common,
                "equal": captions.equal,
                "masked": captions.masked,
                "most_common_share": captions.most_common_share,
            },
        )
    if captions.cut > MAX_CUT:
        yield Finding(
            kind="cut_captions",
            message=f"{captions.cut:.0%} of the captions are cut at --context-length {context_length}",
            advice=f"--context-length {captions.longer} would keep 99 % of them whole; a tokenizer made from the "
            "captions shortens them with a larger --vocab-size",
            figures={"cut": captions.cut, "longer": captions.longer},
        )
    if captions.badly_split:
        yield Finding(
            kind="badly_split_captions",
            message=f"the tokenizer splits these captions badly: {captions.badly_split}",
            advice=OTHER_TOKENIZER,
            figures={},
        )
    share = captions.num_without / (captions.num_images + captions.num_without)
    if share > MAX_WITHOUT:
        yield Finding(
            kind="pictures_without_captions",
            message=f"{share:.0%} of the embedded images ({captions.num_without:,}) have no caption and are left out",
            advice="check that the --text-field of `clipglot cache` names all columns of captions",
            figures={"without": share},
        )


def advise(
    step: int, num_steps: int, settings: LearningSettings, captions: CaptionStats, *, lm_lr: float | None = None
) -> str:
    """Advice for a run that learns nothing: nothing to learn, too few steps, or weights moved too little or too much.

    Args:
        step: steps done.
        num_steps: of the run.
        settings: batch size and schedule.
        captions: of the run.
        lm_lr: the learning rate of a language model's own parameters, if any of them is trained.
    """
    if captions.common > MAX_COMMON:
        return "captions that many images share cannot tell them apart: leave them out"
    # AdamW moves a weight by about the learning rate in a step (Kingma and Ba 2015, arXiv:1412.6980, section 2.1).
    or_lm_lr = "" if lm_lr is None else f", a language model's --lm-lr (now {lm_lr:g})"
    if sum(learning_rate(i, num_steps, settings) for i in range(step)) < SMALL_MOVE:
        if num_steps * max(settings.lr, USUAL_LR) < FEW_MOVES * SMALL_MOVE:
            return (
                f"the run has only {num_steps:,} steps, too few at any rate: raise --epochs (now {settings.epochs}) or "
                f"lower --batch-size (now {settings.batch_size}), or begin with --warm-start ridge"
            )
        return (
            f"the weights have hardly moved in {step:,} steps: raise --lr (now {settings.lr:g}; {USUAL_LR:g} is usual "
            f"for towers from scratch, heads and LoRA){or_lm_lr} or --epochs (now {settings.epochs})"
        )
    return (
        f"lower --lr (now {settings.lr:g}), e.g. to {min(settings.lr / 10, USUAL_LR):.1g}{or_lm_lr}, or raise --warmup "
        f"(now {settings.warmup:g}); if that does not help, check that captions belong to their images"
    )


class Diagnosis:
    """Findings of a run so far, and the figures for those to come.

    Attributes:
        findings: so far, those from before a resume among them.
    """

    def __init__(
        self,
        settings: LearningSettings,
        num_steps: int,
        captions: CaptionStats,
        *,
        context_length: int,
        lm_lr: float | None = None,
        past: Iterable[dict[str, Any]] = (),
    ) -> None:
        """Begin, or go on after a resume.

        Args:
            settings: batches, schedule and loss.
            num_steps: of the whole run.
            captions: that it trains on.
            context_length: at which captions are cut.
            lm_lr: the learning rate of a language model's own parameters, if any of them is trained.
            past: lines of metrics.jsonl from before the resume.
        """
        self._settings, self._num_steps, self._captions = settings, num_steps, captions
        self._context_length, self._lm_lr = context_length, lm_lr
        self._chance = chance_loss(settings, captions)
        if self._chance is not None and self._chance < math.log(settings.batch_size) / 2:
            self._chance = None  # most images share their captions: there is little to tell apart
        self._moved, self._step = 0.0, 0  # sum of the learning rates of all steps so far
        self._measured: dict[str, Any] = {}  # the last recalls
        self._losses: list[float] = []  # after warm-up, one a line
        self._scales: list[float] = []
        self._lowest, self._lowest_step = math.inf, 0
        self.findings: list[Finding] = []
        for line in past:
            if line["kind"] == "finding":
                self.findings.append(Finding.from_json(line))
            elif line["kind"] == "step":
                self._add(line)
            else:
                self._measured = {name.removeprefix("sample_"): value for name, value in line.items()}

    @property
    def has_learned(self) -> bool:
        """False if a finding said that recall is at chance and the last recall was still at chance."""
        figures = next((finding.figures for finding in self.findings if finding.kind == "recall_at_chance"), {})
        return all(self._measured.get(k, 0.0) > figures["bound"] for k in figures if k.startswith("r_at_"))

    def check_captions(self) -> list[Finding]:
        """New findings before the first step."""
        return self._keep_new(check_captions(self._captions, self._context_length))

    def check_step(self, metrics: dict[str, Any]) -> list[Finding]:
        """New findings after a logged step.

        Args:
            metrics: its line of metrics.jsonl.
        """
        self._add(metrics)
        return self._keep_new(self._check_loss(metrics["step"]))

    def check_recall(
        self, metrics: dict[str, Any], data: ValidationData, step: int, *, held_out: bool
    ) -> list[Finding]:
        """New findings after a validation.

        Args:
            metrics: measured by `validate`.
            data: on which it was measured.
            step: after which.
            held_out: whether the run does not learn from these pairs.
        """
        return self._keep_new(self._check_recall(metrics, data, step, "held-out" if held_out else "training"))

    def _keep_new(self, findings: Iterable[Finding]) -> list[Finding]:
        known = {finding.kind for finding in self.findings}
        new = [finding for finding in findings if finding.kind not in known]
        self.findings += new
        return new

    def _add(self, metrics: dict[str, Any]) -> None:
        self._moved += metrics.get("lr", 0.0) * (metrics["step"] - self._step)
        self._step = metrics["step"]
        if metrics["step"] <= round(self._settings.warmup * self._num_steps):
            return
        self._losses.append(math.nan if metrics["loss"] is None else metrics["loss"])
        self._scales.append(metrics.get("logit_scale") or 0.0)
        if len(self._losses) >= WINDOW and (mean := float(np.mean(self._losses[-WINDOW:]))) < self._lowest:
            self._lowest, self._lowest_step = mean, metrics["step"]

    def _shows_learning(self, step: int, patience: float) -> bool:
        """Whether a run that learns shows it after so many steps: a share of all, or enough for weights to move far.

        Args:
            step: steps done.
            patience: share of the steps.
        """
        return step >= patience * self._num_steps or (self._moved >= LARGE_MOVE and not self._may_be_falling())

    def _may_be_falling(self) -> bool:
        """Whether the loss is falling, or has too few figures to tell."""
        window = np.array(self._losses[-WINDOW:])
        if len(window) < WINDOW:
            return True
        error = window.std(ddof=1) / math.sqrt(WINDOW)
        return bool(window[: WINDOW // 2].mean() - window[WINDOW // 2 :].mean() > 2 * error)

    def _advise(self, step: int) -> str:
        return advise(step, self._num_steps, self._settings, self._captions, lm_lr=self._lm_lr)

    def _check_loss(self, step: int) -> Iterator[Finding]:
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
        if not self._shows_learning(step, PATIENCE):
            return
        if mean - 2 * error > (1 - MARGIN) * chance and not self._may_be_falling():
            yield Finding(
                kind="loss_at_chance",
                step=step,
                message=f"the loss is {mean:.2f} at step {step:,}, no better than guessing ({chance:.2f} with "
                f"--batch-size {settings.batch_size})",
                advice=self._advise(step),
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

    def _check_recall(self, metrics: dict[str, Any], data: ValidationData, step: int, kind: str) -> Iterator[Finding]:
        num_candidates = len(data.image_emb)
        # Where few images or shared captions make a high recall likely by chance, fewer places tell more.
        chances = {k: chance_recall(data.num_right, num_candidates, k) for k in (10, 5, 1)}
        k = next((k for k, chance in chances.items() if chance <= MAX_CHANCE), 1)
        chance, recall = chances[k], metrics[f"r_at_{k}"]
        bound = chance_bound(chance, min(len(np.unique(data.image_index)), len(np.unique(data.text_ids))))
        self._measured = metrics
        patience = 2 * PATIENCE if self._may_be_falling() else PATIENCE
        if not self._shows_learning(step, patience) or bound > MAX_BOUND or recall > bound:
            return
        advice = self._advise(step)
        loss = float(np.mean(self._losses[-WINDOW:])) if self._losses else math.inf
        by_heart = self._chance is not None and loss < FELL * self._chance
        yield Finding(
            kind="recall_at_chance",
            step=step,
            message=f"R@{k} is {recall:.1%} over {num_candidates:,} {kind} images at step {step:,}; guessing gives "
            f"{chance:.1%}",
            advice=f"the training loss fell to {loss:.2f} all the same, so pairs were learned by heart: "
            "check that captions belong to their images, and are of one kind in both caches"
            if by_heart
            else advice,
            figures={f"r_at_{k}": recall, "chance": chance, "bound": bound},
        )
        if len(np.unique(data.groups)) < MIN_DISTINCT:
            return
        cosine, rank = metrics["anisotropy"], metrics["effective_rank"]
        image_cosine, image_rank = anisotropy(data.image_emb), effective_rank(data.image_emb)
        # Images may lie close together themselves; captions that lie closer still do not tell them apart.
        in_cone = cosine > MAX_COSINE and 1 - cosine < (1 - image_cosine) / 2
        if in_cone or rank < MIN_RANK < image_rank / 2:
            yield Finding(
                kind="collapsed",
                step=step,
                message=f"different captions have a mean cosine of {cosine:.3f} at step {step:,}, images of "
                f"{image_cosine:.3f}"
                if in_cone
                else f"captions lie along {rank:.1f} directions at step {step:,}, images along {image_rank:.1f}",
                advice=advice,
                figures={
                    "anisotropy": cosine,
                    "effective_rank": rank,
                    "image_anisotropy": image_cosine,
                    "image_effective_rank": image_rank,
                },
            )
