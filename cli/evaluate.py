"""`clipglot eval …`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..jobs.settings.evaluate import ProbeSettings, RetrievalSettings, SpeedSettings, ZeroShotSettings
from .main import Group
from .options import SectionedCommand, require_kind, settings_options
from .render import friendly_errors, json_option, output, percent, print_json, say, stage_bars, table

if TYPE_CHECKING:
    from ..evals.linear_probe import ProbeReport
    from ..evals.retrieval import RetrievalReport
    from ..evals.speed import SpeedReport
    from ..jobs.evaluate import Against, QueriesResult, RetrievalResult, ZeroShotResult

CLASSES_SHOWN = 20
MATRIX_SHOWN = 12  # classes of a confusion matrix that fits a terminal
SECTIONS = {
    "Classes and prompts": "merged cache classes classes_language templates distractors labels label_field key_field",
    "Comparison": "against against_classes against_templates interpolate",
}


@click.group(cls=Group)
def evaluate() -> None:
    """Measure a merged CLIP, from caches alone."""


@evaluate.command(short_help="Recall of images by captions, and of captions by images.")
@settings_options(RetrievalSettings, "merged", "cache", has_config=False)
@json_option
def retrieval(settings: RetrievalSettings, as_json: bool) -> None:
    """Recall of the CLIP in MERGED on the images and captions of CACHE, in both directions.

    CACHE must come from the same image tower; no image is opened. Equal captions
    are one text: every image that has it is a right answer to it, and every
    caption with a text of an image is one to that image. Captions in several
    languages are measured language by language, too.
    """
    with friendly_errors(), stage_bars("load") as on_progress:
        require_kind(settings.merged, "merged CLIP")
        require_kind(settings.cache, "cache")
        from ..jobs.evaluate import QueriesResult, evaluate_retrieval

        result = evaluate_retrieval(settings, on_progress)
    if as_json:
        print_json(result.to_json())
    elif isinstance(result, QueriesResult):
        _print_queries(result)
    else:
        _print_retrieval(settings.merged, result)


def _print_retrieval(merged: Path, result: "RetrievalResult") -> None:
    columns = ("direction", "R@1", "R@5", "R@10", "median rank", "queries", "candidates", "mean recall")
    reports = [("all captions", result.report), *result.languages.items()]
    if result.against:
        reports = [(f"{merged.name}, {captions}" if result.languages else merged.name, r) for captions, r in reports]
        reports.append((result.against.name, result.against.report))
    rows = table("", *columns, numbers=columns[1:])
    for name, report in reports:
        for i, cells in enumerate(_recalls(report)):
            rows.add_row(*(("", *cells) if i else (name, *cells, percent(report.mean_recall))))
    output.print(rows)
    _print_against(result.against, "R@1")


def _recalls(report: "RetrievalReport") -> list[tuple[str, ...]]:
    """Cells of both directions."""
    return [
        (
            direction,
            *(percent(recall) for recall in (ranks.r_at_1, ranks.r_at_5, ranks.r_at_10)),
            f"{ranks.median_rank:,.1f}",
            f"{ranks.num_queries:,}",
            f"{ranks.num_candidates:,}",
        )
        for direction, ranks in (("text → image", report.text_to_image), ("image → text", report.image_to_text))
    ]


def _print_against(against: "Against | None", metric: str = "") -> None:
    """What the differences of a metric say; of all by default. --json has every one."""
    for difference, sentence in zip(against.differences, against.sentences, strict=True) if against else ():
        if metric in difference.metric:
            say(sentence)


def _print_queries(result: "QueriesResult") -> None:
    if result.ranks and result.mean_recall is not None:
        ranks = result.ranks
        recalls = ", ".join(f"R@{k} {percent(getattr(ranks, f'r_at_{k}'))}" for k in (1, 5, 10))
        say(f"{ranks.num_queries:,} queries over {ranks.num_candidates:,} images: {recalls}")
        say(f"mean recall {percent(result.mean_recall)}")
    else:
        say(f"{result.num_queries:,} queries without item_ids: nothing to measure")
    if result.num_lost:
        say(f"{result.num_lost:,} queries have no embedded image; the mean recall counts them as misses")
    if result.submission:
        say(f"submission: {result.submission}")


@evaluate.command(
    cls=SectionedCommand,
    sections=SECTIONS,
    short_help="Zero-shot accuracy with class names in any language.",
)
@settings_options(ZeroShotSettings, "merged", "cache", has_config=False)
@json_option
def zeroshot(settings: ZeroShotSettings, as_json: bool) -> None:
    """Zero-shot accuracy of the CLIP in MERGED on the classes of CACHE.

    The class of an image is its folder's name, or its only caption. --classes gives
    them names in any language: a line a class, "label TAB name|synonym", or names
    alone in the order of the sorted labels.

    \b
    clipglot eval zeroshot merged cifar10.zarr --classes ru.txt --templates ru
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), stage_bars("load") as on_progress:
        require_kind(settings.merged, "merged CLIP")
        require_kind(settings.cache, "cache")
        from ..jobs.evaluate import evaluate_zeroshot

        result = evaluate_zeroshot(settings, on_progress)
    if as_json:
        print_json(result.to_json())
    else:
        _print_zeroshot(settings, result)


def _print_zeroshot(settings: ZeroShotSettings, result: "ZeroShotResult") -> None:
    reports = [(settings.merged.name, result.report)]
    if result.against:
        reports.append((result.against.name, result.against.report))
    is_binary = result.report.roc_auc is not None
    columns = ("top-1", "top-5", "mean per class", *(("ROC-AUC",) if is_binary else ()), "images", "classes")
    rows = table("CLIP", *columns, numbers=columns)
    for name, report in reports:
        shares = (report.top1, report.top5, report.mean_per_class)
        cells = ["" if share is None else percent(share) for share in shares]
        cells += [f"{report.roc_auc:.3f}"] if is_binary and report.roc_auc is not None else []
        rows.add_row(name, *cells, f"{report.num_images:,}", f"{len(report.classes):,}")
    rows.add_row("chance", percent(result.report.chance), style="dim")
    output.print(rows)
    _print_against(result.against)
    if result.num_unlabelled:
        say(f"left out: {result.num_unlabelled:,} embedded images without a class")
    if result.templates == ("{}",):
        say("prompts: the names alone (--templates ru, for example, averages several)")
    else:
        say(f"prompts: {', '.join(settings.templates)}")
    if result.against and not settings.against_classes:
        say(f"{result.against.name} read the same names; --against-classes FILE gives it others, e.g. English ones")
    if result.report.top1 < result.report.chance and settings.classes:
        say("below chance: check that each name in --classes stands with its label; names alone go by order")
    if result.interpolated:
        between = table("share", "top-1", "mean per class", numbers=("share", "top-1", "mean per class"))
        for each in result.interpolated:
            between.add_row(f"{each.share:g}", percent(each.top1), percent(each.mean_per_class))
        output.print(between)
    _print_classes(result)


def _print_classes(result: "ZeroShotResult") -> None:
    """The weakest classes, then the confusion matrix, or the most confused pairs of many classes."""
    report = result.report
    name = {score.label: score.name for score in report.classes}
    with_images = [score for score in report.classes if score.num_images]
    weakest = sorted(with_images, key=lambda score: score.accuracy or 0)[:CLASSES_SHOWN]
    rows = table("class", "accuracy", "precision", "images", numbers=("accuracy", "precision", "images"))
    for score in weakest:
        shares = (score.accuracy, score.precision)
        shown = score.name if score.name == score.label else f"{score.label}: {score.name}"
        rows.add_row(shown, *("" if s is None else percent(s) for s in shares), f"{score.num_images:,}")
    output.print(rows)
    if len(with_images) > CLASSES_SHOWN:
        say(f"the {CLASSES_SHOWN} weakest of {len(with_images):,} classes; --json has all")
    if len(report.classes) <= MATRIX_SHOWN:
        numbers = [str(i) for i, _ in enumerate(report.classes, 1)]
        matrix = table("class \\ taken for", *numbers, numbers=numbers)
        for i, (score, counts) in enumerate(zip(report.classes, report.matrix().tolist(), strict=True), 1):
            matrix.add_row(f"{i} {score.name}", *(f"{count:,}" if count else "·" for count in counts))
        output.print(matrix)
    elif confused := report.most_confused():
        pairs = table("class", "taken for", "images", numbers=("images",))
        for cell in confused:
            pairs.add_row(name[cell.label], name[cell.predicted], f"{cell.num_images:,}")
        output.print(pairs)
        wrong = round((1 - report.top1) * report.num_images)
        if (left := wrong - sum(cell.num_images for cell in confused)) > 0:
            say(f"and {left:,} more of {wrong:,} errors; --json has all")


@evaluate.command(short_help="Accuracy of a linear classifier on the image embeddings.")
@settings_options(ProbeSettings, "cache", has_config=False)
@json_option
def probe(settings: ProbeSettings, as_json: bool) -> None:
    """Accuracy of a linear classifier on the embeddings of CACHE, by training images a class.

    It tells what the image tower knows of the classes, whatever the text tower. No
    image is opened.

    \b
    clipglot eval probe train.zarr --test test.zarr --merged merged --templates ru
    """  # noqa: D301 (as above)
    with friendly_errors(), stage_bars("load") as on_progress:
        require_kind(settings.cache, "cache")
        if settings.test:
            require_kind(settings.test, "cache")
        if settings.merged:
            require_kind(settings.merged, "merged CLIP")
        from ..jobs.evaluate import evaluate_probe

        report: ProbeReport = evaluate_probe(settings, on_progress)
    if as_json:
        print_json(report.to_json())
        return
    columns = ("images a class", "accuracy", "lowest", "highest", "mean per class", "penalty C", "training images")
    rows = table(*columns, numbers=columns)
    if report.zero_shot is not None:
        rows.add_row("zero-shot", percent(report.zero_shot))
    for point in report.points:
        shares = (point.accuracy, point.low, point.high, point.mean_per_class)
        penalties = ", ".join(dict.fromkeys(f"{penalty:.3g}" for penalty in point.penalties))
        shots = "all" if point.shots is None else f"{point.shots:,}"
        rows.add_row(shots, *(percent(share) for share in shares), penalties, f"{point.num_train:,}")
    rows.add_row("chance", percent(report.chance), style="dim")
    output.print(rows)
    say(f"{report.num_test:,} test images of {report.num_classes:,} classes")
    for point in report.points:
        if point.num_short:
            say(f"{point.shots:,} images a class: {point.num_short:,} classes have fewer; of those all but one train")


@evaluate.command(short_help="Texts and images a second, latency, size.")
@settings_options(SpeedSettings, "merged", has_config=False)
@json_option
def speed(settings: SpeedSettings, as_json: bool) -> None:
    """Texts and images a second, latency of one query, parameters and bytes of the CLIP in MERGED."""
    with friendly_errors(), stage_bars("load") as on_progress:
        require_kind(settings.merged, "merged CLIP")
        if settings.cache:
            require_kind(settings.cache, "cache")
        from ..jobs.evaluate import evaluate_speed

        report: SpeedReport = evaluate_speed(settings, on_progress)
    if as_json:
        print_json(report.to_json())
        return
    columns = ("batch", "per second", "lowest", "highest")
    rows = table("tower", *columns, numbers=columns)
    for rate in report.rates:
        rows.add_row(rate.side, f"{rate.batch:,}", *(f"{value:,.1f}" for value in (rate.per_s, rate.low, rate.high)))
    output.print(rows)
    ones = table("one at a time", "p50 ms", "p95 ms", numbers=("p50 ms", "p95 ms"))
    for latency in report.latencies:
        ones.add_row(latency.side, f"{latency.p50_ms:.1f}", f"{latency.p95_ms:.1f}")
    output.print(ones)
    known: list[tuple[str, Any]] = [
        ("text parameters", report.text_parameters),
        ("image parameters", report.image_parameters),
        ("bytes", report.num_bytes),
    ]
    figures = [f"{name} {value:,}" for name, value in known if value is not None]
    say(", ".join([*figures, f"{report.device}, {report.threads} threads"]))
