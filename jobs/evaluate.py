"""`clipglot eval …`: measure a merged CLIP, or the embeddings of a cache. No image is opened."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.errors import CacheError
from ..cache.format import SourceInfo
from ..cache.progress import OnProgress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.read.caption_sets import with_captions
from ..cache.sources.kinds import open_source
from ..encoders.loading.model_names import HUB_PREFIX, LOCAL_PREFIX
from ..evals.bootstrap import Difference, difference
from ..evals.captions import (
    cached_captions,
    encode,
    in_translation,
    recall_differences,
    require_tower_of,
    retrieve_by_language,
    retrieve_captions,
)
from ..evals.errors import EvalError
from ..evals.labels import LabelledImages, labels_of, with_names
from ..evals.prompts import read_class_names, read_templates
from ..evals.queries import read_queries, retrieve_queries, write_submission
from ..evals.retrieval import Ranks, RetrievalReport
from ..evals.speed import SpeedReport, default_texts, measure_speed
from ..evals.zeroshot import ClassificationReport, Predictions, classification_report, predict_classes
from ..inference.clip import load
from ..inference.prompts import class_embeddings
from ..inference.towers import Towers, load_towers
from .settings.evaluate import ProbeSettings, RetrievalSettings, SpeedSettings, ZeroShotSettings
from .settings.report import ReportSettings

KS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Against:
    """Results of another CLIP on the same images, and the differences.

    Attributes:
        name: of the other CLIP.
        report: its results.
        differences: of each metric, ours less theirs.
        sentences: what the differences say.
    """

    name: str
    report: Any
    differences: list[Difference]
    sentences: list[str]

    @classmethod
    def of(cls, ours: str, name: str, report: Any, differences: list[Difference]) -> "Against":
        """With the sentences."""
        shown = Path(name).name if Path(name).is_dir() else name
        if shown == (own := Path(ours).name):
            own, shown = ours, name
        sentences = [each.sentence(own, shown) for each in differences]
        return cls(name=name, report=report, differences=differences, sentences=sentences)

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        differences = [asdict(each) | {"significant": each.is_significant} for each in self.differences]
        return asdict(self) | {"report": self.report.to_json(), "differences": differences}


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """Recall on a cache, over all captions and by language.

    Attributes:
        report: over all captions.
        languages: by tag, where captions have several: that language's captions over all images.
        against: results of another CLIP.
    """

    report: RetrievalReport
    languages: dict[str, RetrievalReport] = field(default_factory=dict)
    against: Against | None = None

    @property
    def text_to_image(self) -> Ranks:
        """Recall of images by captions."""
        return self.report.text_to_image

    @property
    def image_to_text(self) -> Ranks:
        """Recall of captions by images."""
        return self.report.image_to_text

    def to_json(self) -> dict[str, Any]:
        """All figures, and the definition of a right answer."""
        more: dict[str, Any] = {}
        if self.languages:
            more["languages"] = {tag: report.to_json() for tag, report in self.languages.items()}
        if self.against:
            more["against"] = self.against.to_json()
        return self.report.to_json() | more


@dataclass(frozen=True, kw_only=True)
class QueriesResult:
    """Recall of MUGE's queries, text to image.

    Attributes:
        ranks: of the queries whose images are known and embedded; None where the file keeps them secret.
        mean_recall: of R@1, R@5 and R@10, as the leaderboard has it; None likewise. Lost queries count as misses.
        num_queries: in the file.
        num_lost: queries none of whose images is embedded.
        submission: file that was written.
    """

    ranks: Ranks | None
    mean_recall: float | None
    num_queries: int
    num_lost: int
    submission: Path | None

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return asdict(self) | {"submission": self.submission and str(self.submission)}


@dataclass(frozen=True, kw_only=True)
class Interpolated:
    """Zero-shot accuracy with text weights between two towers.

    Attributes:
        share: of the way from the other CLIP's weights (0) to this one's (1).
        top1: accuracy.
        mean_per_class: mean accuracy of the classes.
    """

    share: float
    top1: float
    mean_per_class: float


@dataclass(frozen=True, kw_only=True)
class ZeroShotResult:
    """Zero-shot classification on a cache.

    Attributes:
        report: accuracy, classes, confusions.
        templates: prompts.
        num_unlabelled: embedded images without a class, which are left out.
        against: results of another CLIP.
        interpolated: accuracies between the two.
    """

    report: ClassificationReport
    templates: tuple[str, ...]
    num_unlabelled: int
    against: Against | None = None
    interpolated: list[Interpolated] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All figures."""
        return self.report.to_json() | {
            "templates": list(self.templates),
            "num_unlabelled": self.num_unlabelled,
            "against": self.against and self.against.to_json(),
            "interpolated": [asdict(each) for each in self.interpolated],
        }


def evaluate_retrieval(
    settings: RetrievalSettings, on_progress: OnProgress = ignore_progress
) -> RetrievalResult | QueriesResult:
    """Recall of a merged CLIP on the images and captions of a cache, or of MUGE's queries; no image is opened.

    Raises:
        CacheError: no cache, or one that is not complete.
        EncoderError: no merged CLIP, or one that does not load.
        EvalError: the cache was made by another image tower, or has no caption of an embedded image.
    """
    if settings.queries:
        return _evaluate_queries(settings, settings.queries, on_progress)
    clip, cache = load_towers(settings.merged), with_captions(Cache(settings.cache), settings.captions)
    require_tower_of(clip, cache)
    captions = cached_captions(cache)
    emb = encode(clip, captions.texts, on_progress)
    found = retrieve_captions(captions, emb, on_progress=on_progress)
    languages = retrieve_by_language(captions, emb, on_progress)
    against = None
    if settings.against:
        other = load_other(settings.against)
        require_tower_of(other, cache)
        theirs = in_translation(cache, captions) if settings.translations else captions
        places = retrieve_captions(theirs, encode(other, theirs.texts, on_progress), on_progress=on_progress)
        differences = recall_differences(found, places, KS)
        against = Against.of(str(settings.merged), settings.against, places.report(), differences)
    return RetrievalResult(report=found.report(), languages=languages, against=against)


def _evaluate_queries(settings: RetrievalSettings, file: Path, on_progress: OnProgress) -> QueriesResult:
    if settings.submission:
        require_replaceable(settings.submission)
    queries = read_queries(file)
    clip, cache = load_towers(settings.merged), Cache(settings.cache)
    require_tower_of(clip, cache)
    emb = encode(clip, [query.text for query in queries], on_progress)
    places, num_lost = retrieve_queries(queries, emb, cache, on_progress)
    if settings.submission:
        write_submission(settings.submission, queries, emb, cache)
    ranks = places.summary() if places else None
    mean_recall = None
    if ranks:
        found = ranks.num_queries / (ranks.num_queries + num_lost)
        mean_recall = found * (ranks.r_at_1 + ranks.r_at_5 + ranks.r_at_10) / len(KS)
    return QueriesResult(
        ranks=ranks,
        mean_recall=mean_recall,
        num_queries=len(queries),
        num_lost=num_lost,
        submission=settings.submission,
    )


def require_replaceable(file: Path) -> None:
    """Refuse a file to write that is a device or a pipe, which the new file would take the place of.

    Raises:
        EvalError: it is one.
    """
    if file.exists() and not file.is_file():
        raise EvalError(f"{file} is no file that can be replaced: name another one")


def load_other(name: str) -> Towers:
    """A CLIP by folder, hub repository (ORG/NAME), or open_clip's name and weights (NAME:PRETRAINED).

    Raises:
        EncoderError: no such model, or one that does not load.
    """
    if not Path(name).is_dir() and ":" in name.removeprefix(HUB_PREFIX).removeprefix(LOCAL_PREFIX):
        model, pretrained = name.rsplit(":", 1)
        return load(model, pretrained, device="cpu").model
    return load(name, device="cpu").model


def evaluate_zeroshot(settings: ZeroShotSettings, on_progress: OnProgress = ignore_progress) -> ZeroShotResult:
    """Zero-shot classification of the images of a cache by class names; no image is opened.

    Raises:
        CacheError: no cache, or one that is not complete.
        EncoderError: no merged CLIP, one that does not load, or text towers with nothing between them.
        EvalError: another image tower, images without one class each, or a bad file of classes or templates.
    """
    templates = read_templates(settings.templates)
    given = read_class_names(settings.classes, settings.classes_language) if settings.classes else None
    other_templates = read_templates(settings.against_templates) if settings.against_templates else templates
    other_given = (
        read_class_names(settings.against_classes, settings.classes_language) if settings.against_classes else given
    )
    cache = Cache(settings.cache)
    images = labelled_images(cache, settings)
    named = with_names(images, given, distractors=settings.distractors) if given else images
    other_named = named
    if settings.against_classes and other_given:
        other_named = with_names(images, other_given, distractors=settings.distractors)
        if other_named.labels != named.labels or not np.array_equal(other_named.rows, named.rows):
            raise EvalError(
                f"{settings.against_classes} and {settings.classes or 'the cache'} name other classes, so the two "
                "CLIPs cannot be compared: give both the same labels"
            )
    clip = load_towers(settings.merged)
    require_tower_of(clip, cache)
    image_emb = named.embeddings(cache)

    def classify(
        towers: Towers, classes: LabelledImages, prompts: tuple[str, ...]
    ) -> tuple[Predictions, ClassificationReport]:
        class_emb = class_embeddings(lambda texts: encode(towers, texts, on_progress), classes.names, prompts)
        predictions = predict_classes(image_emb, named.classes, class_emb, on_progress)
        return predictions, classification_report(predictions, named.classes, classes.labels, classes.shown)

    predictions, report = classify(clip, named, templates)
    against, interpolated = None, []
    if settings.against:
        other = load_other(settings.against)
        require_tower_of(other, cache)
        theirs, other_report = classify(other, other_named, other_templates)
        right, other_right = (each.best == named.classes for each in (predictions, theirs))
        metrics = [("top-1", right, other_right)]
        if report.top5 is not None:
            metrics.append(("top-5", predictions.in_top, theirs.in_top))
        against = Against.of(
            str(settings.merged),
            settings.against,
            other_report,
            [difference(name, _floats(a), _floats(b), named.rows) for name, a, b in metrics],
        )
        for share in settings.shares:
            from ..encoders.interpolate import interpolate_clips

            _, between = classify(interpolate_clips(_merged(other), _merged(clip), share), named, templates)
            interpolated.append(Interpolated(share=share, top1=between.top1, mean_per_class=between.mean_per_class))
    return ZeroShotResult(
        report=report,
        templates=templates,
        num_unlabelled=named.num_unlabelled,
        against=against,
        interpolated=interpolated,
    )


def _floats(right: NDArray[np.bool_]) -> NDArray[np.float64]:
    return right.astype(np.float64)


def _merged(clip: Towers) -> Any:
    """A CLIP whose weights are at hand.

    Raises:
        EvalError: it is an export in ONNX.
    """
    if not hasattr(clip, "text_tower"):
        raise EvalError(f"{clip.name} is an export in ONNX: --interpolate needs the merged CLIP")
    return clip


def labelled_images(cache: Cache, settings: ZeroShotSettings | ProbeSettings) -> LabelledImages:
    """The classes of a cache's images, as the settings say where they are.

    Raises:
        CacheError: a table that cannot be read, or a cache that is not complete.
        EvalError: an image has several classes, or none has one.
    """
    if settings.labels is None:
        return labels_of(cache)
    return labels_of(cache, read_labels(settings), str(settings.labels))


def read_labels(settings: ZeroShotSettings | ProbeSettings | ReportSettings) -> Iterator[tuple[str, str]]:
    """Key and label of each record of the table; any table that is a source of images and captions.

    Raises:
        EvalError: it cannot be read, or lacks a column.
    """
    info = SourceInfo(
        path=str(settings.labels),
        sha256="",
        image_root="",
        image_field=settings.key_field,
        text_fields=[settings.label_field],
    )
    try:
        for row in open_source(info).rows():
            for label in row.captions:
                yield row.key, label
    except CacheError as error:  # names the flags of `clipglot cache`, whose sources read the table
        told = str(error).replace("--text-field", "--label-field").replace("--image-field", "--key-field")
        raise EvalError(told) from error


def evaluate_probe(settings: ProbeSettings, on_progress: OnProgress = ignore_progress) -> Any:
    """A linear probe on the embeddings of a cache, with few images a class and with all.

    Returns:
        A `ProbeReport`.

    Raises:
        CacheError: no cache, or one that is not complete.
        DistillError: no such device.
        EncoderError: no merged CLIP, or one that does not load.
        EvalError: images without one class each, a class that only one part has, or caches of two image towers.
    """
    from ..distill.device import resolve_device
    from ..evals.linear_probe import Labelled, probe, split

    device = str(resolve_device(settings.device))
    templates = read_templates(settings.templates)
    given = read_class_names(settings.classes) if settings.classes else None
    cache = Cache(settings.cache)
    images = labelled_images(cache, settings)
    everything = Labelled(emb=images.embeddings(cache), classes=images.classes)
    if settings.test is None:
        first, second = split(images.classes, settings.test_share, seed=0)
        train, test, test_images, test_cache = everything.take(first), everything.take(second), images, cache
    else:
        test_cache = Cache(settings.test)
        if name := cache.info.encoder.difference(test_cache.info.encoder):
            raise EvalError(
                f"{cache.path} and {test_cache.path} were made by two image towers ({name}): cache both with one"
            )
        test_images = labelled_images(test_cache, settings)
        place = {label: i for i, label in enumerate(images.labels)}
        if lacking := [label for label in test_images.labels if label not in place]:
            raise EvalError(f"{cache.path} has no image of class {lacking[0]!r}, which {test_cache.path} has")
        classes = np.array([place[label] for label in test_images.labels])[test_images.classes]
        train, test = everything, Labelled(emb=test_images.embeddings(test_cache), classes=classes)
    zero_shot = None
    if settings.merged:
        clip = load_towers(settings.merged)
        require_tower_of(clip, test_cache)
        named = with_names(images, given) if given else images
        assert named.labels == images.labels, "names for fewer labels are refused without --classes-language"
        class_emb = class_embeddings(lambda texts: encode(clip, texts, on_progress), named.names, templates)
        zero_shot = float((predict_classes(test.emb, test.classes, class_emb).best == test.classes).mean())
    return probe(
        train,
        test,
        len(images.labels),
        settings.numbers,
        settings.seeds,
        zero_shot,
        on_progress,
        device,
    )


def evaluate_speed(settings: SpeedSettings, on_progress: OnProgress = ignore_progress) -> SpeedReport:
    """Speed and size of a merged CLIP, or of its export in ONNX.

    Raises:
        CacheError: no cache, or one that is not complete.
        EncoderError: no such folder, or one that does not load.
    """
    texts = cached_captions(Cache(settings.cache)).texts if settings.cache else default_texts()
    clip = load(settings.merged, device=settings.device).model
    return measure_speed(clip, texts, settings.batches, on_progress=on_progress)
