"""`clipglot convert`, `import` and `merge`."""

from dataclasses import asdict
from pathlib import Path, PurePosixPath

import click

from ..cache.location import Location, to_location
from ..cache.read.cache import Cache
from ..jobs.settings.import_embeddings import ImportSettings
from .options import LocalPath, cache_argument, require_kind, settings_options
from .render import friendly_errors, json_option, print_json, progress_bar, say


@click.command()
@cache_argument
@click.argument("out", type=LocalPath(path_type=Path))
@json_option
def convert(cache: Location, out: Path, as_json: bool) -> None:
    """Copy CACHE to OUT: one HDF5 file if it is called .h5 or .hdf5, else Zarr.

    CACHE is a sealed cache of either kind, or the URL of one. Every checksum is
    checked, and OUT appears only when all of it is there.

    \b
    clipglot convert train.zarr train.h5
    clipglot convert s3://bucket/train.zarr train.zarr
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    if out.suffix.lower() not in ("", ".zarr", ".h5", ".hdf5"):
        raise click.UsageError(
            f"OUT: {out} ends in {out.suffix}: call a Zarr folder .zarr, or nothing, and an HDF5 file .h5 or .hdf5"
        )
    with friendly_errors(), progress_bar() as progress:
        from ..cache.write.convert import convert as copy

        require_kind(cache, "cache")
        task = progress.add_task("convert", total=None, note="")
        opened = Cache(cache)
        done = copy(opened, out, lambda done, total: progress.update(task, completed=done, total=total))
    if as_json:
        print_json({"cache": str(cache), "output": str(out), "num_pictures": len(opened)} | asdict(done))
        return
    say(
        f"{out}: {len(opened):,} images, {done.num_chunks:,} chunks, {done.num_bytes / 1e6:,.1f} MB in "
        f"{done.wall_s:.1f} s; every checksum of {cache} held"
    )


@click.command(name="import")
@settings_options(ImportSettings, "source")
@json_option
def import_(settings: ImportSettings, as_json: bool) -> None:
    """Make a cache of SOURCE, embeddings that are there; run it again to resume.

    SOURCE is what clip-retrieval wrote (img_emb/ and metadata/), or an .npy or .h5
    file with --captions. Name the tower that made them: export will need it.
    With --image-root a few images are embedded again, and a wrong tower is refused.

    \b
    clipglot import laion -o train.zarr --model ViT-B-32 --pretrained openai
    clipglot import emb.npy --captions rows.csv -o a.zarr --model local-dir:vit
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), progress_bar() as progress:
        stages = ("read", "plan", "import")
        tasks = {stage: progress.add_task(stage, total=None, note="", visible=False) for stage in stages}
        from ..jobs.import_embeddings import import_embeddings

        result = import_embeddings(
            settings,
            lambda stage, done, total: progress.update(tasks[stage], completed=done, total=total, visible=True),
        )
    info = result.cache.info
    if as_json:
        print_json(
            {"cache": str(settings.output), "resumed": result.resumed, "num_pictures": info.num_pictures}
            | {"num_captions": info.num_captions, "status": info.counts, "wall_s": result.report.wall_s}
            | {"num_probes": result.num_probes, "min_cosine": result.min_cosine}
        )
        return
    say(
        f"{settings.output}: {info.counts.get('embedded', 0):,} of {info.num_pictures:,} embeddings imported, "
        f"{info.num_captions:,} captions"
    )
    if result.num_probes:
        say(f"{result.num_probes} images embedded again: cosine {result.min_cosine:.4f} at least")
    else:
        say("not checked whether this tower made them: pass --image-root to have a few images embedded again")


@click.command()
@click.argument("caches", type=to_location, nargs=-1, required=True)
@click.option("-o", "--output", type=LocalPath(path_type=Path), required=True, help="where the new cache goes")
@click.option("--prefix", is_flag=True, help="put each cache's name before its keys; image files are not found then")
@json_option
def merge(caches: tuple[Location, ...], output: Path, prefix: bool, as_json: bool) -> None:
    """Put CACHES of one image tower together into one, rows in order.

    Caches that were made with other towers or settings are refused, and so is an
    image that two of them have. (To merge towers into a CLIP: clipglot export.)

    \b
    clipglot merge news.zarr art.zarr -o both.zarr
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    if len(caches) < 2:
        raise click.UsageError("CACHES: give two or more")
    with friendly_errors(), progress_bar() as progress:
        from ..cache.write.merge import merge_caches

        for cache in caches:
            require_kind(cache, "cache")
        task = progress.add_task("merge", total=None, note="")
        prefixes = [PurePosixPath(cache).stem for cache in caches]
        merged = merge_caches(
            [Cache(cache) for cache in caches],
            output,
            prefixes=prefixes if prefix else None,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    info = merged.info
    if as_json:
        print_json(
            {"caches": list(map(str, caches)), "output": str(output), "num_pictures": info.num_pictures}
            | {"num_captions": info.num_captions, "status": info.counts}
        )
        return
    say(f"{output}: {info.num_pictures:,} images and {info.num_captions:,} captions of {len(caches)} caches")
