"""`clipglot duplicates`."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..jobs.settings.duplicates import DuplicatesSettings
from .options import require_kind, settings_options
from .render import friendly_errors, json_option, output, percent, print_json, progress_bar, say, table

if TYPE_CHECKING:
    from ..evals.duplicates import DuplicatesReport


@click.command()
@settings_options(DuplicatesSettings, "cache")
@json_option
def duplicates(settings: DuplicatesSettings, as_json: bool) -> None:
    """Find near-duplicate images in CACHE, or images of a second cache that CACHE holds too.

    Embeddings are compared, no image is opened. What cosine a copy has depends on the image tower: look at the
    pairs before you believe a threshold.

    \b
    clipglot duplicates train.zarr --against val.zarr
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), progress_bar() as progress:
        require_kind(settings.cache, "cache")
        if settings.against:
            require_kind(settings.against, "cache")
        from ..cache.read.cache import Cache
        from ..distill.device import resolve_device
        from ..evals.duplicates import find_duplicates

        task = progress.add_task("compare", total=None, note="")
        report = find_duplicates(
            Cache(settings.cache),
            Cache(settings.against) if settings.against else None,
            threshold=settings.threshold,
            sample=settings.sample,
            seed=settings.seed,
            num_listed=settings.pairs,
            device=resolve_device(settings.device),
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        print_json(
            {"cache": str(settings.cache), "against": settings.against and str(settings.against)} | asdict(report)
        )
    else:
        _print(report, settings)


def _print(report: "DuplicatesReport", settings: DuplicatesSettings) -> None:
    asked, sampled = settings.against or settings.cache, report.num_compared < report.num_pictures
    which = f"a sample of {report.num_compared:,} of {report.num_pictures:,}" if sampled else f"{report.num_pictures:,}"
    where = f"those of {settings.cache}" if settings.against else "the others"
    say(f"{asked}: {which} images, each compared with all {report.num_others:,} of {where}")
    found = table("cosine at least", "images with such a neighbour", "share")
    for mark, count in report.above.items():
        found.add_row(mark, f"{count:,}", f"{count / report.num_compared:.2%}")
    output.print(found)
    what = f"{percent(report.share)} {'leaked' if settings.against else 'have a duplicate'}"
    if sampled:
        what += f" in the sample; of all images {percent(report.share_low)} to {percent(report.share_high)} (95 %)"
    say(f"at {report.threshold:g}: {what}")
    if report.groups:
        groups = report.groups
        say(
            f"{groups.num_groups:,} groups hold {groups.num_pictures:,} images, the largest {groups.largest:,}: "
            f"{groups.num_pictures - groups.num_groups:,} could go"
        )
    elif not settings.against:
        say("groups are formed only where all pairs are compared: --sample 0")
    if report.pairs:
        pairs = table("cosine", "image", "its neighbour", numbers=("cosine",))
        for pair in report.pairs:
            pairs.add_row(f"{pair.cosine:.4f}", pair.key, pair.other_key)
        output.print(pairs)
        if report.num_pairs > len(report.pairs):
            say(f"… and {report.num_pairs - len(report.pairs):,} more: --pairs -1 lists all")
    elsewhere = f"word for word in {settings.cache}" if settings.against else "more than once"
    say(f"{report.num_repeated_captions:,} of {report.num_captions:,} captions stand {elsewhere}")
    if report.num_same_keys is not None:
        say(f"{report.num_same_keys:,} images have the same key in both caches")
