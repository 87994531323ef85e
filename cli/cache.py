"""`clipglot cache`."""

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..cache.format import CacheInfo, Status
from ..cache.location import Location
from ..cache.read.cache import Cache
from ..cache.write.plan import is_planned
from ..cache.write.report import PassReport
from ..cache.write.views import missing_views, num_begun
from ..distill.training.signals import interrupted_by_sigterm
from ..jobs.inspect import CacheContents
from ..jobs.settings.cache import RENAMED, CacheSettings
from .cache_progress import PassProgress
from .describe import because
from .main import is_first_process
from .options import settings_options
from .render import friendly_errors, json_option, print_json, progress_bar, say, warn

if TYPE_CHECKING:
    from ..jobs.cache import CacheResult


def _known(merged: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Of a cache that is there, the tower and how images go through it: nothing else could be added to it."""
    with friendly_errors():
        if "output" not in merged or not is_planned(merged["output"]):
            return {}
        info = Cache(merged["output"]).info
    tower = {} if "model" in merged else {"model": info.encoder.model, "pretrained": info.encoder.pretrained}
    given = {"batch_size": info.batch_size, "max_pixels": info.max_pixels, "decoding": info.decoding}
    return given | {"precision": info.encoder.precision} | tower


@click.command()
@settings_options(CacheSettings, "source", known=_known, renamed=RENAMED)
@json_option
def cache(settings: CacheSettings, as_json: bool) -> None:
    """Embed every image of SOURCE once; run it again to resume.

    SOURCE is a table (.jsonl, .csv, .tsv) with an image's path and its captions in each row, tars, Parquet or Arrow
    files, a dataset that Hugging Face's library saved, MUGE's folder, class folders or COCO's .json
    (docs/sources.md).

    With --views K it keeps K views of each: the plain one, and random crops for training to draw from. Run again with
    more views, it adds them; the cache stays usable meanwhile.

    \b
    clipglot cache train.jsonl -o train.zarr --model ViT-B-32 --pretrained openai

    Under torchrun, or as as jobs with a --shard I/N each, processes share it without talking to each other.
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), interrupted_by_sigterm():
        try:
            with progress_bar() as progress:
                shown = PassProgress(settings, progress, silent=as_json)
                before = Cache(settings.output).info if is_planned(settings.output) else None
                from ..jobs.cache import cache_images  # takes seconds, in which Ctrl-C may come

                result = cache_images(settings, shown.show, on_report=shown.show_pass)
                shown.end()
        except KeyboardInterrupt:  # the bars are gone, and draw over nothing
            if is_first_process():
                warn(f"stopped: {_kept(settings.output)}; run the same command again to resume")
            raise SystemExit(130) from None
    if not is_first_process():
        return
    if as_json:
        report = result.report
        made = {"most_at_once": result.most_at_once, "deviation": result.deviation and asdict(result.deviation)}
        waited = report.bottleneck if report.num_pictures or report.others_s else None
        print_json(
            {"cache": str(settings.output), "resumed": result.resumed}
            | asdict(report)
            | {"bottleneck": waited}
            | made
            | CacheContents(result.cache).to_json()
        )
    else:
        _say(settings, result, before)


def _say(settings: CacheSettings, result: "CacheResult", before: CacheInfo | None) -> None:
    """What the command did, and what the user should know of the cache.

    Args:
        settings: of the pass.
        result: of it.
        before: the metadata that the cache had, if it was there.
    """
    report, info, repeats = result.report, result.cache.info, CacheContents(result.cache).num_repeated_views
    was_sealed = before is not None and before.state == "sealed"
    num_embedded, in_views = info.counts.get("embedded", 0), f" in {info.num_views} views" * (info.num_views > 1)
    if report.num_pictures:
        say(
            f"{settings.output}: {_by(settings)}{report.num_pictures:,} images{in_views} in {report.wall_s:.1f} s "
            f"({report.num_pictures / report.wall_s:,.0f}/s; it waited for {report.bottleneck}), "
            f"{num_embedded:,} of {len(result.cache):,} embedded"
        )
    else:
        say(f"{settings.output} is complete already: {num_embedded:,} images embedded{in_views}")
    if report.num_pictures and settings.images:
        say(f"seconds by stage, which overlap: {_stages(report)}")
    if deviation := result.deviation:
        say(
            f"{deviation.precision} against fp32 on the first {deviation.num_pictures} images: cosine distance "
            f"{deviation.mean:.1e} on average, {deviation.worst:.1e} at worst"
        )
    if result.most_at_once:
        say(
            f"the device's memory held {result.most_at_once} of {settings.batch_size} images at once: "
            "the tower got its batches in parts"
        )
    if report.num_died:
        say(f"{report.num_died:,} decoding processes died and were replaced; images that end theirs are damaged")
    if info.num_duplicates:
        say(f"{info.num_duplicates:,} images have the very bytes of another one")
    # What a command that sealed the cache left out, that command has said.
    for flag, num in (Counter(info.left_out) - Counter(before.left_out if before and was_sealed else {})).items():
        say(f"{num:,} rows were left out by {flag}{because(info, flag)}")
    if repeats:
        say(f"{repeats:,} further views repeat the plain one, because the image could not be read again")
    if num_embedded < len(result.cache):
        say(f"{_failed(info)}; which: clipglot inspect {settings.output} --failures; --retry tries them again")
    if report.num_pictures and not was_sealed:
        say(f"next: clipglot train {settings.output} -o run")


def _failed(info: CacheInfo) -> str:
    """How many images of a sealed cache failed, and of which reason how many, the most frequent first."""
    reasons = sorted((-num, reason) for reason, num in info.counts.items() if reason != Status.EMBEDDED.label)
    listed = ", ".join(f"{-num:,} {reason}" for num, reason in reasons)
    return f"{info.num_images - info.counts.get('embedded', 0):,} of {info.num_images:,} failed: {listed}"


def _stages(report: PassReport) -> str:
    """What each stage took; those in worker processes are summed over them."""
    stages = {
        "read": report.read_s,
        "decode": report.decode_s,
        "transfer": report.transfer_s,
        "forward": report.forward_s,
        "write": report.write_s,
    }
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())


def _by(settings: CacheSettings) -> str:
    """Whose images are counted, where several share the pass."""
    return "" if settings.worker.is_alone else f"{settings.worker} did "


def _kept(path: Location) -> str:
    """What an interrupted pass leaves behind."""
    if not is_planned(path):
        return "no image was embedded yet"
    cache = Cache(path)
    if not cache.info.is_laid_out:
        return "what was embedded before is kept"
    num_done = cache.num_chunks - len(missing_views(cache, num_begun(cache)))
    return f"{num_done:,} of {cache.num_chunks:,} chunks are embedded and kept"
