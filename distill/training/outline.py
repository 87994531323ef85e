"""Outline of a run before its first step, and the summary of each of its epochs: what a person wants to see of it.

`metrics.jsonl` has more, for programs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..data.statistics import CaptionStats
from ..train_settings import TrainSettings
from .diagnosis import chance_loss
from .run_folder import mean_recall
from .setup import Setup


@dataclass(frozen=True, kw_only=True)
class EpochSummary:
    """Results of an epoch.

    Attributes:
        epoch: its number, from 1; 0 before the first step, where a warm start was measured.
        step: steps done at its end.
        loss: mean over its steps, after a resume over those that followed; None if none is known.
        images_per_s: images trained on in a second, without validations; None for an epoch before a resume.
        recall: `r_at_1`, `r_at_5`, `r_at_10` and `median_rank`; None where nothing was measured.
        is_best: whether no earlier validation had a better mean of R@1, R@5 and R@10.
        languages: recalls and median rank of each language, where several were measured.
    """

    epoch: int
    step: int
    loss: float | None
    images_per_s: float | None = None
    recall: dict[str, float] | None = None
    is_best: bool = False
    languages: Mapping[str, dict[str, float]] = field(default_factory=dict)

    def line(self, outline: "RunOutline") -> str:
        """The epoch in one line of text."""
        told = []
        if self.loss is not None:
            of_chance = outline.of_chance(self.loss)
            told.append(f"loss {self.loss:.3f}" + (f" ({of_chance} of chance)" if of_chance else ""))
        if self.recall:
            told += [f"R@{k} {self.recall[f'r_at_{k}']:.1%}" for k in (1, 5, 10)]
            told.append(f"median rank {self.recall['median_rank']:,g}")
        if self.images_per_s:
            told.append(f"{self.images_per_s:,.0f} images/s")
        if self.is_best:
            told.append("best so far")
        by_language = "; ".join(
            f"{name}: R@1 {of['r_at_1']:.1%}, R@10 {of['r_at_10']:.1%}" for name, of in self.languages.items()
        )
        return f"epoch {self.epoch} of {outline.epochs}: {', '.join(told)}" + (
            f" ({by_language})" if by_language else ""
        )


@dataclass(frozen=True, kw_only=True)
class RunOutline:
    """A run, before its first step in this process.

    Attributes:
        text_tower: in words.
        num_trained: trained parameters of the tower.
        num_parameters: all parameters of the tower.
        vocabulary: what became of the tokens of the tower that training goes on from, in a few words.
        language_model: whether it is frozen, and what that means for a step; empty if it learns or there is none.
        image_tower: the one that made the embeddings.
        cache: that it trains on.
        val: cache of held-out pairs, if there is one.
        captions: sets and languages of captions, where any were chosen; else empty.
        val_captions: likewise of the held-out pairs.
        num_images: images with captions that the run trains on.
        num_captions: of these images.
        num_measured: images that recall is measured on: those of `val`, or a sample of the run's own.
        batch_size: images of a step.
        epochs: of the whole run.
        steps_per_epoch: of each.
        num_steps: of the whole run.
        chance_loss: loss of a tower that cannot tell captions apart; None for losses without such a level.
        device: where it learns.
        precision: it computes in.
        step: that it begins at; above 0 if it is resumed.
        past: epochs before the resume.
        past_losses: of the steps before the resume that were logged.
    """

    text_tower: str
    num_trained: int
    num_parameters: int
    vocabulary: str
    language_model: str
    image_tower: str
    cache: str
    val: str | None
    captions: str
    val_captions: str
    num_images: int
    num_captions: int
    num_measured: int
    batch_size: int
    epochs: int
    steps_per_epoch: int
    num_steps: int
    chance_loss: float | None
    device: str
    precision: str
    step: int
    past: list[EpochSummary]
    past_losses: list[float]

    def of_chance(self, loss: float | None) -> str:
        """A loss as a share of the chance loss; empty where either is unknown."""
        return "" if loss is None or not self.chance_loss else f"{loss / self.chance_loss:.0%}"

    def facts(self) -> dict[str, str]:
        """What the run is, by name."""
        trained = f"{self.num_parameters:,} parameters, all trained"
        if self.num_trained < self.num_parameters:
            share = self.num_trained / self.num_parameters
            trained = f"{self.num_trained:,} of {self.num_parameters:,} parameters trained ({share:.1%})"
        if self.val is not None:
            captions = f" with captions {self.val_captions}" if self.val_captions else ""
            recall = f"on {self.num_measured:,} held-out images, {self.val}{captions}, after every epoch"
        else:
            recall = f"on {self.num_measured:,} of the training images, ten times a run; --val measures held-out ones"
        resumed = f"; resumed at {self.step:,}" if self.step else ""
        epochs = f"{self.epochs:,} {'epoch' if self.epochs == 1 else 'epochs'} of {self.steps_per_epoch:,}"
        rows = {
            "text tower": f"{self.text_tower}; {trained}",
            "vocabulary": self.vocabulary,
            "language model": self.language_model,
            "image tower": f"{self.image_tower} (cached, frozen)",
            "images": f"{self.num_images:,} with {self.num_captions:,} captions, {self.cache}",
            "captions": self.captions,
            "recall": recall,
            "steps": f"{self.num_steps:,} of {self.batch_size:,} images ({epochs}){resumed}",
            "chance loss": f"{self.chance_loss:.2f}, the loss of a tower that guesses" if self.chance_loss else "",
            "device": f"{self.device}, {self.precision}",
        }
        return {name: value for name, value in rows.items() if value}


OnOutline = Callable[[RunOutline], None]
"""Called once, before the first step."""
OnEpoch = Callable[[EpochSummary], None]
"""Called at the end of each epoch."""


def outline_run(settings: TrainSettings, setup: Setup, step: int) -> RunOutline:
    """Outline of a run.

    Args:
        settings: of the run.
        setup: its parts.
        step: that it begins at.
    """
    student, loader = setup.student, setup.loader
    num_trained, num_parameters = student.num_parameters
    encoder = setup.description["provenance"]["encoder"]
    measured = setup.val_data or setup.sample
    metrics = [line for line in setup.run.metrics() if line["step"] <= step] if step else []
    captions: CaptionStats = setup.captions
    return RunOutline(
        text_tower=student.tower.config.describe(),
        num_trained=num_trained,
        num_parameters=num_parameters,
        vocabulary=student.tower.vocabulary,
        language_model=_frozen(settings),
        image_tower=" ".join(filter(None, (encoder["model"], encoder["pretrained"]))),
        cache=str(settings.cache),
        val=None if settings.val is None else str(settings.val),
        captions=f"{', '.join(setup.caption_names)}: {setup.mix.describe()}" if setup.mix else "",
        val_captions=", ".join(setup.val_caption_names) if setup.mix or settings.val_captions else "",
        num_images=captions.num_images,
        num_captions=setup.num_captions,
        num_measured=0 if measured is None else len(measured.image_emb),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        steps_per_epoch=loader.steps_per_epoch,
        num_steps=settings.epochs * loader.steps_per_epoch,
        chance_loss=chance_loss(settings, captions),
        device=str(setup.device),
        precision=setup.description["computed_in"]["precision"],
        step=step,
        past=list(summarize_epochs(metrics, loader.steps_per_epoch)),
        past_losses=[line["loss"] for line in metrics if line["kind"] == "step" and line["loss"] is not None],
    )


def _frozen(settings: TrainSettings) -> str:
    if not settings.freezes_lm:
        return ""
    if settings.live_because:
        return f"frozen, and run in every step because of {settings.live_because}"
    return "frozen; its features are computed once, and a step trains the head alone"


def summarize_epochs(metrics: Iterable[dict[str, Any]], steps_per_epoch: int) -> Iterable[EpochSummary]:
    """Summaries of the whole epochs in the lines of metrics.jsonl.

    >>> step = {"kind": "step", "step": 3, "loss": 2.0}
    >>> recall = {"kind": "validation", "step": 4, "r_at_1": 0.1, "r_at_5": 0.3, "r_at_10": 0.5, "median_rank": 9.0}
    >>> [(epoch.epoch, epoch.loss, epoch.is_best) for epoch in summarize_epochs([step, recall], 4)]
    [(1, 2.0, True)]
    """
    by_epoch: dict[int, list[dict[str, Any]]] = {}
    last = 0
    for line in metrics:
        by_epoch.setdefault((line["step"] - 1) // steps_per_epoch, []).append(line)
        last = max(last, line["step"])
    best = -1.0
    for epoch in range(-1 if -1 in by_epoch else 0, last // steps_per_epoch):
        lines, is_best = by_epoch.get(epoch, []), False
        losses = [line["loss"] for line in lines if line["kind"] == "step" and line["loss"] is not None]
        recall = next((figures for line in reversed(lines) if (figures := recall_of(line))), None)
        if recall and any(line["kind"] == "validation" for line in lines) and mean_recall(recall) > best:
            best, is_best = mean_recall(recall), True
        yield EpochSummary(
            epoch=epoch + 1,
            step=(epoch + 1) * steps_per_epoch,
            loss=sum(losses) / len(losses) if losses else None,
            recall=recall,
            is_best=is_best,
            languages=next((line["languages"] for line in reversed(lines) if "languages" in line), {}),
        )


def recall_of(line: dict[str, Any]) -> dict[str, float] | None:
    """Recalls and median rank of a line of metrics; None if it has none."""
    prefix = "sample_" if line["kind"] == "sample" else ""
    names = ("r_at_1", "r_at_5", "r_at_10", "median_rank")
    if line["kind"] not in ("validation", "sample") or not all(prefix + name in line for name in names):
        return None
    return {name: line[prefix + name] for name in names}
