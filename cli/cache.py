"""`clipglot cache`."""

import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cache.format import CacheInfo, Status
from ..cache.progress import Progress
from ..cache.sources.image_folder import ImageFolderSource
from ..cache.sources.kinds import open_source
from ..cache.write.report import PassReport
from ..distill.training.signals import interrupted_by_sigterm
from ..jobs.inspect import CacheContents
from ..jobs.output_cache import OutputCache
from ..jobs.settings.cache import RENAMED, CacheSettings
from .cache_progress import PassProgress
from .describe import left_out_line
from .main import INTERRUPTED, is_first_process
from .options import SectionedCommand, settings_options
from .render import friendly_errors, json_option, print_json, progress_bar, say, warn

if TYPE_CHECKING:
    from ..jobs.cache import CacheResult

# Names of splits and caches that are measured on, not trained on.
HELD_OUT = re.compile(r"(?<![a-z])(val|valid|validation|dev|test|eval|held.?out|unseen)(?![a-z])", re.IGNORECASE)


def _known(merged: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Settings of an existing cache, which is opened here and handed on; a pass with others could add nothing to it."""
    if "output" not in merged:
        return {}
    with friendly_errors():
        output = OutputCache(merged["output"])
    options["output"] = output
    known = output.pass_settings()
    if "model" in merged:  # with its own weights, or none
        known.pop("pretrained", None)
    return known


SECTIONS = {
    "Records": "language language_field encoding where split limit",
    "Images": "image_root max_pixels decoding",
    "Augmented views": "views augment_scale augment_flip augment_jitter augment_grayscale augment_seed",
    "Translations": "teacher_field images",
    "Complete caches": "append retry",
    "Speed": "batch_size num_workers device precision chunk_rows",
    "Many GPUs and machines": "scheduler num_local shard",
}


@click.command(
    cls=SectionedCommand,
    start="source output model pretrained image_field text_field image_root",
    sections=SECTIONS,
)
@settings_options(CacheSettings, "source", known=_known, renamed=RENAMED)
@json_option
def cache(settings: CacheSettings, output: OutputCache, as_json: bool) -> None:
    """Embed every image of SOURCE once; run it again to resume.

    SOURCE is a table (.jsonl, .csv, .tsv) with the path and the captions of an image in each row, tars, Parquet or
    Arrow files, a dataset saved by Hugging Face datasets, a MUGE folder, images with texts beside them, class folders,
    or COCO's .json (docs/sources.md).

    With --views K, each image is stored in K views: the plain one, and random crops for training to draw from. Run it
    again with a larger K to add views; the cache stays usable meanwhile.

    \b
    clipglot cache train.jsonl -o train.zarr --model ViT-B-32 --pretrained openai

    Many machines share the work: as workers of a Dask cluster (--scheduler), as jobs with a --shard I/N each, or as
    processes of torchrun (docs/many-machines.md).
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), interrupted_by_sigterm():
        try:
            with progress_bar() as bars:
                shown = PassProgress(settings, output, bars, silent=as_json)
                source = open_source(settings.source_info)
                if output.cache is None and isinstance(settings.source, Path) and source.begins_at_once:
                    next(source.rows(), None)  # a wrong field is told at once
                shown.show(Progress("load", 0))  # before imports that take seconds, in which Ctrl-C may come
                from ..jobs.cache import cache_images

                result = cache_images(
                    settings, shown.show, source=source, output=output, on_report=shown.show_report, on_note=warn
                )
                shown.end()
        except KeyboardInterrupt:  # the bars are gone, so nothing draws over the message
            if is_first_process():
                warn(f"stopped: {_kept(output)}")
            raise SystemExit(INTERRUPTED) from None
    if not is_first_process():
        return
    if as_json:
        report = result.report
        bottleneck = report.bottleneck if report.num_pictures or report.others_s else None
        print_json(
            {"cache": str(settings.output), "resumed": result.resumed}
            | asdict(report)
            | {"bottleneck": bottleneck}
            | {"most_at_once": result.most_at_once, "deviation": result.deviation and asdict(result.deviation)}
            | {"chunks_left": result.chunks_left}
            | CacheContents(result.cache).to_json()
        )
    else:
        _print(settings, result)


def _print(settings: CacheSettings, result: "CacheResult") -> None:
    """Say what the pass did, and what the user should know of the cache."""
    report, before, info = result.report, result.before, result.cache.info
    was_sealed = before is not None and before.state == "sealed"
    num_embedded, in_views = info.counts.get("embedded", 0), f" in {info.num_views} views" * (info.num_views > 1)
    unit = "images" if settings.images else "texts"
    by = "" if settings.own_shard.is_whole else f"{settings.own_shard} did "
    did = f"{settings.output}: {by}{report.num_pictures:,} {unit}{in_views} in {report.wall_s:.1f} s"
    if report.num_pictures:
        did += f" ({report.num_pictures / report.wall_s:,.0f}/s; it waited for {report.bottleneck})"
    if result.chunks_left:
        say(did)
        say(
            f"{result.chunks_left:,} of {result.cache.num_chunks:,} chunks are left to other shards; the last of them, "
            "or this command without --shard, completes the cache"
        )
        return
    if report.num_pictures:
        say(f"{did}, {num_embedded:,} of {info.num_images:,} embedded")
    else:
        say(f"{settings.output} is complete already: {num_embedded:,} {unit} embedded{in_views}")
    if report.num_pictures and settings.images:
        say(f"seconds by stage, which overlap: {_stages(report)}")
    if deviation := result.deviation:
        say(
            f"{deviation.precision} against fp32 on the first {deviation.num_pictures} images: cosine distance "
            f"{deviation.mean:.1e} on average, {deviation.worst:.1e} at worst"
        )
    if result.most_at_once:
        say(
            f"device memory held only {result.most_at_once} of {settings.batch_size} images at once: batches were split"
        )
    if report.num_died:
        say(f"{report.num_died:,} decoding processes died and were replaced; images that crash them count as damaged")
    if info.num_duplicates:
        say(f"{info.num_duplicates:,} images are byte-for-byte copies of another one")
    # The rows that an earlier command left out were reported by that command, if it sealed the cache.
    reported = before.left_out if before and was_sealed else {}
    for flag, num in (Counter(info.left_out) - Counter(reported)).items():
        say(left_out_line(info, flag, num))
    if num_repeated := CacheContents(result.cache).num_repeated_views:
        say(f"{num_repeated:,} augmented views repeat the plain one, because the image could not be read again")
    if num_embedded < info.num_images:
        say(f"{_failures(info)}; list them: clipglot inspect {settings.output} --failures; try them again: --retry")
    if report.num_pictures and not was_sealed:
        is_held_out = any(
            HELD_OUT.search(str(name)) for name in (settings.split or "", Path(str(settings.output)).stem)
        )
        train = f"TRAIN_CACHE -o run --val {settings.output}" if is_held_out else f"{settings.output} -o run"
        classify = f"eval zeroshot MERGED {settings.output}"
        say(f"next: clipglot {classify if info.source.kind == ImageFolderSource.kind else f'train {train}'}")


def _kept(output: OutputCache) -> str:
    """What is kept of an interrupted pass, and how it goes on."""
    if output.cache is None:
        return "no image was embedded yet; run the same command again"
    kept, info = "what was embedded before is kept", output.cache.info
    if info.is_laid_out:
        kept = f"{output.num_embedded():,} of {info.num_images:,} images are embedded and kept"
    return f"{kept}; run the same command again to resume"


def _failures(info: CacheInfo) -> str:
    """How many images of a sealed cache failed, and for which reasons, the most frequent first."""
    reasons = sorted((-num, reason) for reason, num in info.counts.items() if reason != Status.EMBEDDED.label)
    listed = ", ".join(f"{-num:,} {reason}" for num, reason in reasons)
    return f"{info.num_images - info.counts.get('embedded', 0):,} of {info.num_images:,} failed: {listed}"


def _stages(report: PassReport) -> str:
    """Seconds of each stage; those in worker processes are summed over them."""
    stages = {
        "read": report.read_s,
        "decode": report.decode_s,
        "transfer": report.transfer_s,
        "forward": report.forward_s,
        "write": report.write_s,
    }
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in stages.items())
