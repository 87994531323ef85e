"""`clipglot duplicates`."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..jobs.settings.duplicates import DuplicatesSettings
from .options import require_kind, settings_options
from .render import friendly_errors, json_option, output, percent, print_json, say, stage_bars, table

if TYPE_CHECKING:
    from ..evals.duplicates import DuplicatesReport


@click.command()
@settings_options(DuplicatesSettings, "cache")
@json_option
def duplicates(settings: DuplicatesSettings, as_json: bool) -> None:
    """Find near-duplicate images in CACHE, or images of a second cache that are also in CACHE.

    Embeddings are compared; no image is opened. The cosine of two copies depends on the image tower: look at the
    pairs before you trust a threshold.

    \b
    clipglot duplicates train.zarr --against val.zarr
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), stage_bars("compare") as on_progress:
        require_kind(settings.cache, "cache")
        if settings.against:
            require_kind(settings.against, "cache")
        from ..jobs.duplicates import find_duplicates

        report = find_duplicates(settings, on_progress)
    if as_json:
        print_json(
            {"cache": str(settings.cache), "against": settings.against and str(settings.against)} | asdict(report)
        )
    else:
        _print(report, settings)


def _print(report: "DuplicatesReport", settings: DuplicatesSettings) -> None:
    is_sample = report.num_compared < report.num_pictures
    compared = f"{report.num_pictures:,} images"
    if is_sample:
        compared = f"a sample of {report.num_compared:,} of {compared}"
    others = f"those of {settings.cache}" if settings.against else "the others"
    say(f"{settings.against or settings.cache}: {compared}, each compared with all {report.num_others:,} of {others}")
    shares = table("cosine at least", "images with such a neighbour", "share")
    for cosine, num in report.above.items():
        shares.add_row(cosine, f"{num:,}", f"{num / report.num_compared:.2%}")
    output.print(shares)
    share = f"{percent(report.share)} {'leaked' if settings.against else 'have a duplicate'}"
    if is_sample:
        share += f" in the sample; of all images {percent(report.share_low)} to {percent(report.share_high)} (95 %)"
    say(f"at {report.threshold:g}: {share}")
    if groups := report.groups:
        say(
            f"{groups.num_groups:,} groups hold {groups.num_pictures:,} images, the largest {groups.largest:,}: "
            f"{groups.num_pictures - groups.num_groups:,} could go"
        )
    elif not settings.against:
        say("groups need all pairs to be compared: pass --sample 0")
    if report.pairs:
        pairs = table("cosine", "image", "its neighbour", numbers=("cosine",))
        for pair in report.pairs:
            pairs.add_row(f"{pair.cosine:.4f}", pair.key, pair.other_key)
        output.print(pairs)
        if report.num_pairs > len(report.pairs):
            say(f"… and {report.num_pairs - len(report.pairs):,} more: --pairs -1 lists all")
    repeated = f"are also in {settings.cache}, word for word" if settings.against else "occur more than once"
    say(f"{report.num_repeated_captions:,} of {report.num_captions:,} captions {repeated}")
    if report.num_same_keys is not None:
        say(f"{report.num_same_keys:,} images have the same key in both caches")
