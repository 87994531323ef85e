"""Figures of a report as plain values: what the page shows and `--json` prints. No image and no HTML is in here."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..evals.bootstrap import Difference
from ..evals.linear_probe import ProbeReport
from ..evals.retrieval import RetrievalReport
from ..evals.speed import SpeedReport
from ..evals.zeroshot import ClassificationReport

SubjectKind = Literal["run", "merged CLIP"]
EVERYTHING = "all captions"
"""Name of the retrieval over the captions of all languages."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A figure over the steps of a run.

    Attributes:
        steps: after which it was measured.
        values: None where it was NaN or infinite.
    """

    steps: list[int]
    values: list[float | None]

    @property
    def last(self) -> float | None:
        """The newest value."""
        return self.values[-1] if self.values else None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A finding of the diagnosis.

    Attributes:
        step: after which it was made.
        kind: of finding.
        message: what was measured.
        advice: what to change.
    """

    step: int
    kind: str
    message: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """What a run folder tells of its steps.

    Attributes:
        curves: by name: `loss`, `lr`, `temperature`, `grad_norm`, `pairs_per_s`, of validations `r_at_1`, `r_at_5`,
            `r_at_10`, `alignment`, `uniformity`, of a run's own pairs the same after `sample_`.
        step: of the newest line; 0 without any.
        num_steps: of the whole run, as its settings and cache say; None where they do not.
        is_finished: whether the trained tower is there.
        diverged_at: step whose loss or gradient was NaN or infinite; None of a healthy run.
        chance_loss: of a tower that cannot tell captions apart; None of losses without one.
        chance_recall: R@1 of a random ranking of the validation's images; None where its cache is not there.
        best_step: validation with the best mean recall.
        train_s: seconds of all steps that lines tell of, without validations.
        pairs_per_s: mean over these steps.
        wait: share of that time that was spent waiting for input.
        findings: of the diagnosis.
    """

    curves: dict[str, Curve]
    step: int
    num_steps: int | None
    is_finished: bool
    diverged_at: int | None
    chance_loss: float | None
    chance_recall: float | None
    best_step: int | None
    train_s: float
    pairs_per_s: float | None
    wait: float | None
    findings: list[Finding]

    @property
    def has_validation(self) -> bool:
        """Whether recall was measured on held-out pairs."""
        return bool(self.curves["r_at_1"].steps)

    @property
    def has_sample(self) -> bool:
        """Whether recall was measured on the run's own pairs."""
        return bool(self.curves["sample_r_at_1"].steps)

    def at(self, name: str, step: int | None) -> float | None:
        """Value of a curve after a step."""
        curve = self.curves[name]
        return next((value for at, value in zip(curve.steps, curve.values, strict=True) if at == step), None)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A run or a merged CLIP that the report is about.

    Attributes:
        name: unique among the subjects.
        path: as the user gave it.
        kind: of folder.
        verdict: what came out, in a plain sentence.
        run: of a run folder.
        facts: where it came from: encoder, data, text tower.
        settings: of a run.
        speed: if it was asked for.
    """

    name: str
    path: str
    kind: SubjectKind
    verdict: str
    run: RunFigures | None = None
    facts: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    speed: SpeedReport | None = None


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Recall of some of the captions, text to image.

    Attributes:
        name: what they have in common.
        num_captions: of them.
        r_at_1: share whose image comes first.
        r_at_10: share whose image is among the first ten.
    """

    name: str
    num_captions: int
    r_at_1: float
    r_at_10: float


@dataclass(frozen=True, kw_only=True)
class ShownImage:
    """An image of a cache that an example shows.

    Attributes:
        row: in the cache.
        key: its path, as the source names it.
    """

    row: int
    key: str


@dataclass(frozen=True, kw_only=True)
class ScoredText:
    """A text for an image.

    Attributes:
        text: caption or class name.
        cosine: with the image.
        probability: softmax over all texts that were ranked.
        is_right: whether it is one of the image's own.
    """

    text: str
    cosine: float
    probability: float
    is_right: bool


@dataclass(frozen=True, kw_only=True)
class TopTexts:
    """The best texts of an image.

    Attributes:
        image: that they were ranked for.
        texts: best first.
        num_texts: that were ranked.
        right: a text of the image's own.
        right_rank: of the first right text, from 1.
    """

    image: ShownImage
    texts: list[ScoredText]
    num_texts: int
    right: str
    right_rank: int


@dataclass(frozen=True, kw_only=True)
class SimilarityMatrix:
    """Cosines of some images and of a text of each.

    Attributes:
        images: the columns.
        texts: the rows; the text at a place belongs to the image at that place.
        cosines: a row a text.
        num_right: texts whose own image has the largest cosine of the row.
    """

    images: list[ShownImage]
    texts: list[str]
    cosines: list[list[float]]
    num_right: int


@dataclass(frozen=True, kw_only=True)
class FoundImage:
    """A caption, its image, and the image that the tower put first.

    Attributes:
        caption: the query.
        language: its tag, "" without one.
        image: its own.
        rank: of its own image, or of another with the same caption; ties in random order.
        cosine: of the caption and its image.
        first: the image of the largest cosine.
        first_cosine: its cosine.
    """

    caption: str
    language: str
    image: ShownImage
    rank: float
    cosine: float
    first: ShownImage
    first_cosine: float


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What a tower does with single images and texts of a cache.

    Attributes:
        similarity: None without two images.
        top_texts: of some images.
        best: captions whose image is first by the largest margin; empty for classes.
        worst: captions whose image comes last.
    """

    similarity: SimilarityMatrix | None
    top_texts: list[TopTexts]
    best: list[FoundImage] = field(default_factory=list)
    worst: list[FoundImage] = field(default_factory=list)

    def images(self) -> list[ShownImage]:
        """All images, the most telling first, each once."""
        shown = [
            *(self.similarity.images if self.similarity else []),
            *(top.image for top in self.top_texts),
            *(image for found in (*self.worst, *self.best) for image in (found.image, found.first)),
        ]
        return list({image.row: image for image in shown}.values())


@dataclass(frozen=True, kw_only=True)
class TowerFigures:
    """What one tower does on one cache.

    Attributes:
        name: of the subject, or of the tower that it is compared with.
        is_reference: whether it is only compared with.
        retrieval: by language tag, under `EVERYTHING` of all captions; empty for classes.
        spread: `alignment`, `uniformity`, `anisotropy` and `effective_rank` of the captions' embeddings.
        buckets: recall of parts of the captions, by what they were divided by.
        zero_shot: of classes.
        zero_shot_of_test: accuracy on the images that linear probes were tested on, if there are any.
        differences: to the tower that it is compared with.
        examples: of the first subject.
    """

    name: str
    is_reference: bool = False
    retrieval: dict[str, RetrievalReport] = field(default_factory=dict)
    spread: dict[str, float] = field(default_factory=dict)
    buckets: dict[str, list[Bucket]] = field(default_factory=dict)
    zero_shot: ClassificationReport | None = None
    zero_shot_of_test: float | None = None
    differences: list[Difference] = field(default_factory=list)
    examples: Examples | None = None


@dataclass(frozen=True, kw_only=True)
class CacheFigures:
    """What the towers do on a cache.

    Attributes:
        name: of the cache.
        path: of the cache.
        num_images: embedded.
        num_captions: of embedded images.
        chance: of a guess: `r_at_1`, `r_at_10` (text to image), or `top1`.
        facts: where the cache came from.
        languages: number of captions of each tag.
        towers: the subjects that fit the cache, then the tower that they are compared with.
        probe: linear probes of its images.
        templates: of zero-shot prompts.
    """

    name: str
    path: str
    num_images: int
    num_captions: int
    chance: dict[str, float]
    facts: dict[str, str]
    languages: dict[str, int]
    towers: list[TowerFigures]
    probe: ProbeReport | None = None
    templates: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All figures of a report.

    Attributes:
        verdict: of the whole, in a plain sentence.
        subjects: runs and merged CLIPs, in the order given.
        caches: that they were measured on.
        notes: what is not in the report, and why.
        version: of clipglot.
    """

    verdict: str
    subjects: list[Subject]
    caches: list[CacheFigures]
    notes: list[str]
    version: str

    def to_json(self) -> dict[str, Any]:
        """Every figure, as JSON takes it: None for what is NaN or infinite."""
        plain: dict[str, Any] = _finite(asdict(self))
        for cache, figures in zip(plain["caches"], self.caches, strict=True):
            for tower, of_tower in zip(cache["towers"], figures.towers, strict=True):
                for tag, report in of_tower.retrieval.items():
                    tower["retrieval"][tag]["mean_recall"] = report.mean_recall
                for plain_difference, difference in zip(tower["differences"], of_tower.differences, strict=True):
                    plain_difference["difference"] = difference.difference
                    plain_difference["is_significant"] = difference.is_significant
        return plain


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
