"""`clipglot report`: measure runs and merged CLIPs, and show everything in one HTML file."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache as cache_result
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.errors import CacheError
from ..cache.location import Location, Url, to_location
from ..cache.progress import OnProgress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.sources.image_folder import ImageFolderSource
from ..cache.storage.atomic import atomic_write, explain_os_error
from ..distill.training.final import Which, final_step
from ..distill.training.run_folder import RunFolder
from ..evals.captions import cached_captions, require_tower_of
from ..evals.errors import EvalError
from ..evals.labels import LabelledImages, with_names
from ..evals.prompts import read_class_names, read_templates
from ..inference.onnx_layout import is_onnx
from ..inference.towers import load_towers
from ..reports.buckets import count_words
from ..reports.charts import require_matplotlib
from ..reports.figures import CacheFigures, Report, Subject
from ..reports.measure import NamedTower, Prompts, measure_captions, measure_classes, recall_of_chance
from ..reports.page import write_page
from ..reports.run_curves import run_figures
from ..reports.run_towers import RunTowers
from ..reports.thumbnails import thumbnails
from ..reports.verdict import report_verdict, subject_verdict
from .evaluate import evaluate_speed, labelled_images, load_other, read_labels, require_replaceable
from .installed import installed_version
from .model_card import describe_weights
from .settings.evaluate import SpeedSettings, ZeroShotSettings, shot_numbers
from .settings.report import ReportSettings

MOST_WORDS = 300_000  # captions of a training cache whose words are counted
MOST_CLASSES = 5_000
MOST_FACT = 200  # characters
SAY_NOTHING = ("run", "merged")  # names of folders


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """A report that was written.

    Attributes:
        file: the HTML file.
        size: its bytes.
        num_thumbnails: images in it.
        report: all its figures.
    """

    file: Path
    size: int
    num_thumbnails: int
    report: Report

    def to_json(self) -> dict[str, Any]:
        """Every figure of the page."""
        return {"file": str(self.file), "size_bytes": self.size, "num_thumbnails": self.num_thumbnails} | (
            self.report.to_json()
        )


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A subject with its towers.

    Attributes:
        subject: without a verdict yet.
        tower: None of a run that has not finished.
        run: of a run.
    """

    subject: Subject
    tower: NamedTower | None
    run: RunFolder | None


def report(settings: ReportSettings, on_progress: OnProgress = ignore_progress) -> ReportResult:
    """Write the report of runs and merged CLIPs: one HTML file without scripts, and all of its figures.

    Args:
        settings: what to show, and the caches to measure on.
        on_progress: called through the stages of each measurement.

    Raises:
        CacheError: a cache that was asked for is absent, not complete, or damaged.
        DistillError: a damaged run.
        EncoderError: a CLIP that does not load.
        EvalError: no run and no merged CLIP, bad classes, or a package that is not installed.
    """
    require_matplotlib()
    if settings.output.is_dir():
        raise EvalError(f"{settings.output} is a folder: name a file, e.g. -o {settings.output / 'report.html'}")
    require_replaceable(settings.output)
    with explain_os_error(settings.output):  # before anything slow
        settings.output.parent.mkdir(parents=True, exist_ok=True)
    for file in (settings.classes, settings.against_classes):
        if file is not None:
            read_class_names(file, settings.classes_language)
    for templates in (settings.templates, settings.against_templates):
        read_templates(templates)
    if settings.labels:
        for _ in read_labels(settings):
            pass
    notes: list[str] = []
    opened = [_open(path, name) for path, name in zip(settings.runs, _names(settings.runs), strict=True)]
    caches = _caches(settings, opened, notes)
    measured = _measure_all(caches, opened, settings, notes, on_progress)
    figures = [each for _, each in measured]
    subjects = [_with_results(each, figures, settings, on_progress) for each in opened]
    shown = _read_thumbnails(measured, settings, notes, on_progress)
    result = Report(
        verdict=report_verdict(subjects, figures),
        subjects=subjects,
        caches=figures,
        notes=list(dict.fromkeys(notes)),
        version=installed_version("clipglot"),
    )
    page = write_page(result, shown).encode()
    with explain_os_error(settings.output):
        atomic_write(settings.output, page)
    return ReportResult(file=settings.output, size=len(page), num_thumbnails=sum(map(len, shown)), report=result)


def _measure_all(
    caches: Sequence[Cache],
    opened: Sequence[_Opened],
    settings: ReportSettings,
    notes: list[str],
    on_progress: OnProgress,
) -> list[tuple[Cache, CacheFigures]]:
    """Each cache that the image tower of a subject made, and what the subjects and the reference do on it.

    Raises:
        EvalError: classes or labels that no cache has.
    """
    towers = [each.tower for each in opened if each.tower]
    reference = _reference(settings) if caches else None
    known = cache_result(partial(_known_words, opened))
    measured: list[tuple[Cache, CacheFigures]] = []
    for cache in caches:
        fitting = _fitting(cache, towers, settings, notes)
        if not fitting:
            continue
        if reference:
            require_tower_of(reference.towers, cache)
            fitting = [*fitting, reference]
        figures = _measure(cache, fitting, settings, known, notes, on_progress, alone=len(caches) == 1)
        measured.append((cache, figures))
    asked = settings.labels or settings.classes
    if asked and measured and not any(each.towers[0].zero_shot for _, each in measured):
        raise EvalError(
            f"{asked}: no image of {', '.join(each.path for _, each in measured)} has one "
            "of these classes: pass the cache of class folders, or --labels TABLE with its keys"
        )
    return measured


def _reference(settings: ReportSettings) -> NamedTower | None:
    """The tower that subjects are compared with."""
    if settings.against is None:
        return None
    folder = Path(settings.against)
    return NamedTower(
        name=_names([folder])[0] if folder.is_dir() else settings.against,
        towers=load_other(settings.against),
        is_reference=True,
        translations=settings.translations,
    )


def _read_thumbnails(
    measured: Sequence[tuple[Cache, CacheFigures]],
    settings: ReportSettings,
    notes: list[str],
    on_progress: OnProgress,
) -> list[dict[int, str]]:
    """Data URIs of the images of each cache by row, as many in all as the settings allow."""
    shown: list[dict[int, str]] = []
    for cache, figures in measured:
        images = [image for tower in figures.towers if tower.examples for image in tower.examples.images()]
        kept = images[: max(0, settings.thumbnails - sum(map(len, shown)))]
        made, problem = thumbnails(cache, kept, settings.image_root, on_progress)
        if problem:
            notes.append(f"Without {'some ' if made else ''}thumbnails of {figures.name}: {problem}")
        shown.append(made)
    return shown


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of folders, with a parent where the name says nothing; of equal ones as many as tell them apart."""
    names = [
        "/".join(path.absolute().parts[-2:]) if path.absolute().name in SAY_NOTHING else path.absolute().name
        for path in paths
    ]
    for depth in range(2, max((len(path.absolute().parts) for path in paths), default=0) + 1):
        counts = Counter(names)
        names = [
            "/".join(path.absolute().parts[-depth:]) if counts[name] > 1 else name
            for path, name in zip(paths, names, strict=True)
        ]
    counts = Counter(names)
    return [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names, 1)]


def _open(path: Path, name: str) -> _Opened:
    if (path / "run.json").exists():
        return _open_run(path, name)
    if not ((path / "open_clip_config.json").is_file() or is_onnx(path)):
        raise EvalError(
            f"{path} is no run and no merged CLIP: pass the -o of `clipglot train`, or of `clipglot export`"
        )
    clip = load_towers(path)
    record: dict[str, Any] = getattr(clip, "record", {})
    return _Opened(
        subject=Subject(name=name, path=str(path), kind="merged CLIP", verdict="", facts=_record_facts(record)),
        tower=NamedTower(name=name, towers=clip),
        run=None,
    )


def _open_run(path: Path, name: str) -> _Opened:
    run = RunFolder(path)
    figures = run_figures(run, _chance_recall(run))
    provenance = run.provenance()
    encoder, source = provenance["encoder"], provenance["source"]
    facts = {
        "image tower": encoder["model"] + (f", {encoder['pretrained']}" if encoder["pretrained"] else ""),
        "SHA-256 of its tensors": encoder["weights_sha256"],
        "cache": provenance["cache"],
        "source": source["path"],
        "SHA-256 of the source": source["sha256"],
        "images": f"{provenance['num_pictures']:,}",
        "captions": f"{provenance['num_captions']:,}",
    }
    tower = None
    if figures.is_finished:
        which: Which = "best" if run.best.exists() else "last"
        tower = NamedTower(name=name, towers=RunTowers(run, which))
        facts["measured weights"] = describe_weights(which, final_step(run, which))
    subject = Subject(
        name=name, path=str(path), kind="run", verdict="", run=figures, facts=facts, settings=run.settings()
    )
    return _Opened(subject=subject, tower=tower, run=run)


def _record_facts(record: dict[str, Any]) -> dict[str, str]:
    """What an export keeps of where it came from."""
    parts = {name: part for name, part in record.items() if isinstance(part, dict)}
    encoder, source, validation = (parts.get(name, {}) for name in ("encoder", "source", "validation"))
    told: dict[str, Any] = {
        "image tower": encoder.get("model"),
        "its weights": encoder.get("pretrained"),
        "SHA-256 of its tensors": encoder.get("weights_sha256"),
        "source": source.get("name"),
        "SHA-256 of the source": source.get("sha256"),
        "images trained on": record.get("num_embedded"),
        "captions": record.get("num_captions"),
        "weights": record.get("weights"),
    }
    told |= {f"validation of the run, R@{k}": validation.get(f"r_at_{k}") for k in (1, 5, 10)}
    return {name: _fact(value) for name, value in told.items() if value is not None}


def _fact(value: Any) -> str:
    """A value of an export's record, which may hold anything."""
    if isinstance(value, float):
        return f"{value:.1%}"
    return f"{value:,}" if type(value) is int and abs(value) < 10**15 else str(value)[:MOST_FACT]


def _val_cache(run: RunFolder) -> Location | None:
    """Cache of a run's validation; a relative path is that from where the run was started, if the run is there yet."""
    settings = run.settings()
    given, output = settings.get("val"), Path(str(settings.get("output")))
    if not given or not isinstance(given, str) or "\0" in given:
        return None
    val = to_location(given)
    if isinstance(val, Url) or val.is_absolute() or output.is_absolute() or val.exists():
        return val
    parts = run.path.absolute().parts
    if parts[-len(output.parts) :] == output.parts:
        return Path(*parts[: -len(output.parts)]) / val
    return val


def _chance_recall(run: RunFolder) -> float | None:
    """R@1 of a guess on the run's validation; None where its cache is not there."""
    val = _val_cache(run)
    if val is None or isinstance(val, Url):
        return None
    try:
        return recall_of_chance(cached_captions(Cache(val)))["r_at_1"]
    except (CacheError, EvalError):
        return None


def _caches(settings: ReportSettings, opened: Sequence[_Opened], notes: list[str]) -> list[Cache]:
    """The caches to measure on: those asked for, or those that the runs were validated on."""
    if settings.cache:
        return [Cache(path) for path in settings.cache]
    found: dict[str, Cache] = {}
    without_run: list[str] = []
    without_val: list[str] = []
    for each in opened:
        if each.run is None:
            without_run.append(each.subject.name)
            continue
        if each.tower is None:
            notes.append(f"{each.subject.name} has not finished, so its tower is not measured on a cache")
            continue
        val = _val_cache(each.run)
        if val is None:
            without_val.append(each.subject.name)
            continue
        try:
            found.setdefault(str(val), Cache(val))
        except CacheError as error:
            notes.append(f"The validation cache of {each.subject.name} is not there ({error}): pass --cache CACHE")
    measured = "so it is measured on those of the others" if found else "and no --cache was passed"
    notes += [f"{name} was trained without --val, {measured}" for name in without_val]
    if not found:
        notes += [f"{name} was measured on no cache: pass --cache CACHE" for name in without_run]
    return list(found.values())


def _known_words(opened: Sequence[_Opened]) -> Counter[str] | None:
    """Captions that each word is in, of what the first run was trained on; None where its cache is not there."""
    for each in opened:
        if each.run is None:
            continue
        location = to_location(each.run.provenance()["cache"])
        if isinstance(location, Url):
            return None
        try:
            return count_words(Cache(location).captions(0, MOST_WORDS))
        except (CacheError, ValueError, OSError):  # a path that no file can have
            return None
    return None


def _fitting(
    cache: Cache, towers: Sequence[NamedTower], settings: ReportSettings, notes: list[str]
) -> list[NamedTower]:
    """The towers whose image tower made a cache.

    Raises:
        EvalError: there is but one, and the cache that the user named was made by another.
    """
    fitting = []
    for tower in towers:
        try:
            require_tower_of(tower.towers, cache)
            fitting.append(tower)
        except EvalError as error:
            if len(towers) == 1 and settings.cache:
                raise
            notes.append(f"{tower.name} is not measured on {cache.path.name}: {error}")
    return fitting


def _measure(
    cache: Cache,
    towers: Sequence[NamedTower],
    settings: ReportSettings,
    known: Callable[[], Counter[str] | None],
    notes: list[str],
    on_progress: OnProgress,
    *,
    alone: bool,
) -> CacheFigures:
    images = _classes_of(cache, settings, alone=alone)
    if not cache.info.source.images:
        notes.append(
            f"{cache.path.name} has no images (--no-images): what is called an image here is the embedding of a "
            "translation"
        )
    if images is None:
        own_texts = "translations" if settings.translations else ""
    else:
        own_texts = settings.against_classes.name if settings.against_classes else ""
    if own_texts:  # a name that says so: the two towers read different texts
        towers = [replace(each, name=f"{each.name} with {own_texts}") if each.is_reference else each for each in towers]
    if images is None:
        return measure_captions(cache, towers, known(), on_progress)
    shots = shot_numbers(settings.shots) if settings.shots else ()
    if shots and min(np.bincount(images.classes)[np.unique(images.classes)]) < 2:
        notes.append(f"{cache.path.name} has no linear probe: a class has a single image, so none is left to test")
        shots = ()
    prompts = partial(_prompts, images, settings)
    return measure_classes(cache, towers, prompts, on_progress, shots=shots, seeds=settings.seeds)


def _classes_of(cache: Cache, settings: ReportSettings, *, alone: bool) -> LabelledImages | None:
    """Classes of a cache's images; None where its captions are no classes.

    They are if the user names a table of labels that has its keys, if the images lie in class folders, or if every
    image has one caption and most captions are those of several images. A cache that is alone has classes if the user
    names them.

    Raises:
        EvalError: it has none of these.
    """
    own = ZeroShotSettings(
        merged=Path(),
        cache=cache.path,
        labels=settings.labels,
        label_field=settings.label_field,
        key_field=settings.key_field,
    )
    if settings.labels and not alone:
        try:
            return labelled_images(cache, own)
        except EvalError:  # the table is of another cache
            own = replace(own, labels=None)
    is_labelled = own.labels or (settings.classes and alone) or _shares_captions(cache)
    return labelled_images(cache, own) if is_labelled else None


def _shares_captions(cache: Cache) -> bool:
    """Whether the captions look like classes."""
    if cache.info.source.kind == ImageFolderSource.kind:
        return True
    owners = cache.caption_image()
    if not cache.info.source.images or not len(owners) or len(np.unique(owners)) < len(owners):
        return False
    return 2 <= len(set(cache.captions())) <= min(len(owners) / 2, MOST_CLASSES)


def _prompts(images: LabelledImages, settings: ReportSettings, tower: NamedTower) -> Prompts:
    """Classes as a tower reads them."""
    file, templates = settings.classes, settings.templates
    if tower.is_reference:
        file, templates = settings.against_classes or file, settings.against_templates or templates
    if file is None:
        return Prompts(images=images, templates=read_templates(templates))
    named = with_names(images, read_class_names(file, settings.classes_language), distractors=settings.distractors)
    return Prompts(images=named, templates=read_templates(templates))


def _with_results(
    opened: _Opened, figures: Sequence[CacheFigures], settings: ReportSettings, on_progress: OnProgress
) -> Subject:
    subject = opened.subject
    speed = None
    if settings.speed and subject.kind == "merged CLIP":
        speed = evaluate_speed(SpeedSettings(merged=Path(subject.path)), on_progress)
    verdict = subject_verdict(subject.name, subject.run, figures)
    return replace(subject, verdict=verdict, speed=speed)
