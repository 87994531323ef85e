"""Findings: what keeps a run from learning, or shows that it does not, and what to change. Pure functions of figures.

B pairs of a step, M further negatives, N pictures.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..encoders.splitting import OTHER_TOKENIZER
from .optimizer import learning_rate
from .pairs import PairFigures
from .train_settings import TrainSettings

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


def chance_loss(settings: TrainSettings, pairs: PairFigures) -> float | None:
    """The loss of a tower that cannot tell captions apart; None for losses that have no such level.

    >>> settings = TrainSettings(cache="c", output="o", batch_size=512)
    >>> round(chance_loss(settings, PairFigures(num_pictures=6000)), 4) == round(math.log(512), 4)
    True
    """
    if settings.teacher_weight or settings.similarity or settings.alignment or settings.uniformity or settings.simcse:
        return None
    level = {"infonce": _softmax_at_chance, "siglip": _sigmoid_at_chance}.get(settings.loss)
    return level(settings, pairs) if level else None


def _softmax_at_chance(settings: TrainSettings, pairs: PairFigures) -> float:
    """The logarithm of the candidates, averaged over both directions; further negatives widen one of them."""
    candidates = 1 + (settings.batch_size - 1) * (1 - pairs.masked)
    drawn = min(settings.num_negatives, pairs.num_pictures)
    further = drawn * (1 - settings.batch_size / pairs.num_pictures) * (1 - pairs.masked)  # less those of the batch
    return (math.log(candidates) + math.log(candidates + further)) / 2


def _sigmoid_at_chance(settings: TrainSettings, pairs: PairFigures) -> float:
    """What the bias reaches alone: every picture is believed with a chance of 1/B, one of the candidates is right."""
    wrong = (settings.batch_size - 1) * (1 - pairs.masked)
    return math.log(settings.batch_size) - wrong * math.log1p(-1 / settings.batch_size)


def chance_bound(num_candidates: int, num_pictures: int, most: int = 10) -> float:
    """The recall that chance alone hardly ever exceeds.

    Captions of one picture err together, so pictures are what counts.

    Args:
        num_candidates: N, pictures to choose from.
        num_pictures: of them that are asked for.
        most: k of R@k.
    """
    chance = min(1.0, most / num_candidates)
    return chance + SIGMAS * math.sqrt(chance * (1 - chance) / num_pictures)


def find_in_pairs(pairs: PairFigures, settings: TrainSettings) -> Iterator[Finding]:
    """What is wrong with the pairs themselves, before the first step."""
    if pairs.common > MANY_COMMON:
        shown = pairs.most_common[:MOST_SHOWN] + "…" * (len(pairs.most_common) > MOST_SHOWN)
        yield Finding(
            kind="common_captions",
            message=f"{pairs.common:.0%} of the captions are carried by many pictures each, "
            f'"{shown}" by {pairs.most_common_share:.0%} of all pictures',
            advice="they do not tell pictures apart: leave them out, or cache again with another --text-field",
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
            message=f"{share:.0%} of the embedded pictures ({pairs.num_without:,}) have no caption and are in no batch",
            advice="look whether the --text-field of `clipglot cache` names all columns of captions",
            figures={"without": share},
        )


def remedy(step: int, num_steps: int, settings: TrainSettings, pairs: PairFigures) -> str:
    """What to change where nothing is learned: there is nothing to learn, or weights moved too little, or too much."""
    if pairs.common > MANY_COMMON:
        return "captions that many pictures carry cannot tell them apart: leave them out"
    # AdamW moves a weight by about the rate a step (Kingma and Ba 2015, arXiv:1412.6980, section 2.1).
    of_model = "" if settings.text in ("scratch", "clip") else f", a language model's --lm-lr (now {settings.lm_lr:g})"
    if sum(learning_rate(i, num_steps, settings) for i in range(step)) < STILL:
        return (
            f"the weights have hardly moved in {step:,} steps: raise --lr (now {settings.lr:g}; {USUAL:g} is usual for "
            f"towers from scratch, heads and LoRA){of_model} or --epochs (now {settings.epochs})"
        )
    return (
        f"lower --lr (now {settings.lr:g}), e.g. to {min(settings.lr / 10, USUAL):.1g}{of_model}, or raise --warmup "
        f"(now {settings.warmup:g}); if that does not help, look whether captions belong to their pictures"
    )
