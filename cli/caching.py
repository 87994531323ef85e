"""`clipglot cache` and `inspect`."""

from dataclasses import asdict
from itertools import islice
from typing import Any

import click

from ..cache.format import EXPLANATION, Status
from ..cache.location import Location, to_location
from ..cache.plan import is_planned
from ..cache.report import PassReport
from ..cache.store import Cache
from ..cache.views import count_repeats, missing_views, num_begun
from ..distill.settings import CacheSettings
from ..distill.stopping import interrupted_by_sigterm
from .contents import because, contents, languages, left_out, sources, teacher, views
from .folders import require_kind
from .inspecting import looks, show, watch_until_sealed
from .main import is_first_process
from .options import settings_options
from .render import (
    PlainProgress,
    facts,
    friendly_errors,
    json_option,
    output,
    print_json,
    progress_bar,
    say,
    table,
    warn,
)

cache_argument = click.argument("cache", type=to_location)


@click.command()
@settings_options(CacheSettings, "source")
@json_option
def cache(settings: CacheSettings, as_json: bool) -> None:
    """Embed every picture of SOURCE once; run it again to resume.

    SOURCE is a table (.jsonl, .csv, .tsv) with a picture's path and its captions in each row, tars, Parquet or Arrow
    files, a dataset that Hugging Face's library saved, MUGE's folder, class folders or COCO's .json
    (docs/sources.md).

    With --views K it keeps K views of each: the plain one, and random crops for training to draw from. Run again with
    more views, it adds them; the cache stays usable meanwhile.

    \b
    clipglot cache train.jsonl -o train.zarr --model ViT-B-32 --pretrained openai

    Under torchrun, or as jobs that each have their --worker I/N, it is shared; nobody needs to talk to anybody.
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    plain = PlainProgress()
    with friendly_errors(), interrupted_by_sigterm(), progress_bar() as progress:
        tasks: dict[str, Any] = {}
        so_far: dict[str, str] = {}
        said: set[str] = set()

        def speak(stage: str, line: str) -> None:
            if is_first_process() and not as_json:
                plain.show(f"{stage}: {line}", at_once=stage not in said)
                said.add(stage)

        def show(stage: str, done: int, total: int | None) -> None:
            if stage == "wait":
                warn(f"{settings.share} waits until worker 0 has planned {settings.output}")
                return
            if stage not in tasks:
                for task in progress.tasks:  # the stage before is done, whatever its total was
                    progress.update(task.id, total=task.completed)
                tasks[stage] = progress.add_task(stage, total=total, note="")
            progress.update(tasks[stage], completed=done, total=total)
            so_far[stage] = f"{done:,}" + (f" of {total:,}" if total else "")
            if stage != "embed":  # which `show_pass` tells more of
                speak(stage, so_far[stage])

        def show_pass(report: PassReport) -> None:
            note = f"waits for {report.bottleneck}"
            progress.update(tasks["embed"], note=note)
            what, speed = "pictures" if settings.images else "texts", report.num_pictures / report.wall_s
            speak("embed", f"{so_far['embed']} {what}, {speed:,.0f}/s, {note}")

        try:
            from ..distill.caching import cache_pictures  # takes seconds, in which Ctrl-C may come

            result = cache_pictures(settings, show, on_report=show_pass)
        except KeyboardInterrupt:
            if is_first_process():
                click.echo(f"stopped: {_kept(settings.output)}; run the same command again to resume", err=True)
            raise SystemExit(130) from None
    report = result.report
    if not is_first_process():
        return
    if as_json:
        made = {"most_at_once": result.most_at_once, "deviation": result.deviation and asdict(result.deviation)}
        print_json(
            {"cache": str(settings.output), "resumed": result.resumed}
            | asdict(report)
            | {"bottleneck": report.bottleneck}
            | made
            | contents(result.cache)
        )
        return
    counts, repeats = result.cache.info.counts, count_repeats(result.cache)
    if report.num_pictures:
        in_views = f" in {result.cache.info.num_views} views" if result.cache.info.num_views > 1 else ""
        say(
            f"{settings.output}: {_by(settings)}{report.num_pictures:,} pictures{in_views} in {report.wall_s:.1f} s "
            f"({report.num_pictures / report.wall_s:,.0f}/s; it waited for {report.bottleneck}), "
            f"{counts.get('embedded', 0):,} of {len(result.cache):,} embedded"
        )
    else:
        say(f"{settings.output} is complete already: {counts.get('embedded', 0):,} pictures embedded")
    if report.num_pictures and settings.images:
        say(f"seconds by stage, which overlap: {_stages(report)}")
    if deviation := result.deviation:
        say(
            f"{deviation.precision} against fp32 on the first {deviation.num_pictures} pictures: cosine distance "
            f"{deviation.mean:.1e} on average, {deviation.worst:.1e} at worst"
        )
    if result.most_at_once:
        say(
            f"the device's memory held {result.most_at_once} of {settings.batch_size} pictures at once: "
            "the tower got its batches in parts"
        )
    if result.cache.info.num_duplicates:
        say(f"{result.cache.info.num_duplicates:,} pictures have the very bytes of another one")
    for flag, num in result.cache.info.left_out.items():
        say(f"{num:,} rows were left out by {flag}{because(result.cache.info, flag)}")
    if repeats:
        say(f"{repeats:,} further views repeat the plain one, because the picture could not be read again")
    if counts.get("embedded", 0) < len(result.cache):
        say(f"what failed and why: clipglot inspect {settings.output}")


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
    """Whose pictures are counted, where several share the pass."""
    return "" if settings.share.is_alone else f"{settings.share} did "


def _kept(path: Location) -> str:
    """What an interrupted pass leaves behind."""
    if not is_planned(path):
        return "no picture was embedded yet"
    cache = Cache(path)
    if not cache.info.is_laid_out:
        return "what was embedded before is kept"
    num_done = cache.num_chunks - len(missing_views(cache, num_begun(cache)))
    return f"{num_done:,} of {cache.num_chunks:,} chunks are embedded and kept"


@click.command()
@cache_argument
@click.option("--failures", type=int, default=10, show_default=True, help="failed pictures to list; -1 lists all")
@click.option("--watch", is_flag=True, help="show how its workers get on, until the pass is over")
@json_option
@friendly_errors()
def inspect(cache: Location, failures: int, watch: bool, as_json: bool) -> None:
    """Show what is in CACHE, what failed and why; of a pass that is not over, its workers too."""
    require_kind(cache, "cache")
    if watch:
        watch_until_sealed(cache, as_json=as_json)
        return
    opened = Cache(cache)
    opened.require_laid_out()
    listed = list(islice(opened.failures(), None if failures < 0 else failures)) if failures else []
    look = next(looks(cache))
    if as_json:
        print_json(
            contents(opened)
            | look.to_json()
            | {"failures": [{"row": f.row, "key": f.key, "status": f.status.label} for f in listed]}
        )
        return
    info, counts = opened.info, opened.count_status()
    encoder = f"{info.encoder.model}{f' / {info.encoder.pretrained}' if info.encoder.pretrained else ''}"
    output.print(
        facts(
            str(cache),
            {
                "state": info.state
                if info.state == "sealed"
                else f"{info.state}: not complete, run it again to resume",
                "pictures": f"{info.num_pictures:,}",
                "captions": f"{info.num_captions:,}"
                + "".join(f", {count:,} dropped ({reason})" for reason, count in info.dropped_captions.items()),
                **languages(opened),
                "embeddings": f"{info.num_views} × {info.num_pictures:,} × {info.encoder.dim} float16, "
                f"{opened.num_chunks:,} chunk{'s'[: opened.num_chunks != 1]} of {info.chunk_rows:,} rows",
                **views(opened),
                **({} if info.num_duplicates is None else {"exact duplicates": f"{info.num_duplicates:,}"}),
                "image tower": encoder,
                "its sha256": info.encoder.weights_sha256,
                "preprocessing": ", ".join(f"{k} {v}" for k, v in info.encoder.preprocess.items()),
                "precision": info.encoder.precision,
                "decoding": info.decoding,
                **({"teacher": teacher(opened)} if info.source.has_teacher else {}),
                **sources(info),
                **left_out(info),
                "made with": ", ".join(f"{name} {v}" for name, v in info.libraries.items()),
            },
        )
    )
    shares = table("status", "pictures", "share", "meaning", numbers=("pictures", "share"))
    for status, count in counts.items():
        share = f"{count / len(opened):.2%}"
        style = None if status == Status.EMBEDDED else "yellow"
        shares.add_row(status.label, f"{count:,}", share, EXPLANATION[status], style=style)
    output.print()
    output.print(shares)
    if not look.is_over:
        output.print()
        output.print(show(look))
    if listed:
        failed = table("row", "status", "picture", numbers=("row",))
        for failure in listed:
            failed.add_row(str(failure.row), failure.status.label, failure.key)
        output.print()
        output.print(failed)
        num_failed = sum(count for status, count in counts.items() if status > Status.EMBEDDED)
        if num_failed > len(listed):
            say(f"… and {num_failed - len(listed):,} more: --failures -1 lists all")
