"""`clipglot convert`, `import` and `merge`."""

from dataclasses import asdict

import click

from ..jobs.settings.convert import ConvertSettings
from ..jobs.settings.import_embeddings import ImportSettings
from ..jobs.settings.merge import MergeSettings
from .options import require_kind, settings_options
from .render import friendly_errors, json_option, print_json, say, stage_bars


@click.command()
@settings_options(ConvertSettings, "cache", "out", has_config=False)
@json_option
def convert(settings: ConvertSettings, as_json: bool) -> None:
    """Copy CACHE to OUT: an HDF5 file if OUT ends in .h5 or .hdf5, else a Zarr folder.

    CACHE is a sealed cache of either kind, or the URL of one. Every checksum is checked, and OUT appears only when it
    is complete.

    An OUT that ends in .npy, .parquet or .safetensors gets the embeddings of the embedded images alone, float16 of unit
    norm, for faiss, autofaiss, clip-retrieval and others; row, key and captions of each are in the .parquet, which
    stands beside an .npy or .safetensors.

    \b
    clipglot convert train.zarr train.h5
    clipglot convert train.zarr train.npy
    clipglot convert s3://bucket/train.zarr train.zarr
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), stage_bars("convert") as on_progress:
        require_kind(settings.cache, "cache")
        from ..jobs.convert import convert_cache

        result = convert_cache(settings, on_progress)
    num_images, copied = result.num_images, result.copied
    if embeddings := result.embeddings:
        if as_json:
            plain = asdict(embeddings) | {"files": [str(file) for file in embeddings.files]}
            print_json({"cache": str(settings.cache), "output": str(settings.out), "num_pictures": num_images} | plain)
            return
        left_out = f"; {embeddings.num_left_out:,} are left out" if embeddings.num_left_out else ""
        say(
            f"{', '.join(map(str, embeddings.files))}: {embeddings.num_embedded:,} embedded images"
            f"{left_out}; {embeddings.num_bytes / 1e6:,.1f} MB in {embeddings.wall_s:.1f} s"
        )
        return
    assert copied is not None, "one of both was written"
    if as_json:
        print_json(
            {"cache": str(settings.cache), "output": str(settings.out), "num_pictures": num_images} | asdict(copied)
        )
        return
    say(
        f"{settings.out}: {num_images:,} images, {copied.num_chunks:,} chunks, {copied.num_bytes / 1e6:,.1f} MB in "
        f"{copied.wall_s:.1f} s; every checksum of {settings.cache} held"
    )


@click.command(name="import")
@settings_options(ImportSettings, "source")
@json_option
def import_(settings: ImportSettings, as_json: bool) -> None:
    """Make a cache from SOURCE, embeddings computed elsewhere; run it again to resume.

    SOURCE is the output of clip-retrieval (img_emb/ and metadata/), or an .npy or .h5 file with --captions. Name the
    image tower that made the embeddings: export needs it. With --image-root a few images are embedded again, and a
    wrong tower is refused.

    \b
    clipglot import laion -o train.zarr --model ViT-B-32 --pretrained openai
    clipglot import emb.npy --captions rows.csv -o a.zarr --model local-dir:vit
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), stage_bars("load") as on_progress:
        from ..jobs.import_embeddings import import_embeddings

        result = import_embeddings(settings, on_progress)
    info = result.cache.info
    if as_json:
        print_json(
            {"cache": str(settings.output), "resumed": result.resumed, "num_pictures": info.num_images}
            | {"num_captions": info.num_captions, "status": info.counts, "wall_s": result.report.wall_s}
            | {"num_probes": result.num_probes, "min_cosine": result.min_cosine}
        )
        return
    say(
        f"{settings.output}: {info.counts.get('embedded', 0):,} of {info.num_images:,} embeddings imported, "
        f"{info.num_captions:,} captions"
    )
    if result.num_probes:
        say(f"{result.num_probes} images embedded again as a check: lowest cosine {result.min_cosine:.4f}")
    else:
        say("unchecked: pass --image-root to embed a few images again and compare, in case another tower made them")


@click.command()
@settings_options(MergeSettings, "caches", has_config=False)
@json_option
def merge(settings: MergeSettings, as_json: bool) -> None:
    """Concatenate CACHES of one image tower into a new cache, their rows in the order given.

    Caches made with different towers or settings are refused, and so is an image that two of them have. (To merge
    towers into a CLIP: clipglot export.)

    \b
    clipglot merge news.zarr art.zarr -o both.zarr
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), stage_bars("merge") as on_progress:
        for cache in settings.caches:
            require_kind(cache, "cache")
        from ..jobs.merge import merge_caches

        info = merge_caches(settings, on_progress).info
    if as_json:
        print_json(
            {"caches": list(map(str, settings.caches)), "output": str(settings.output)}
            | {"num_pictures": info.num_images, "num_captions": info.num_captions, "status": info.counts}
        )
        return
    say(
        f"{settings.output}: {info.num_images:,} images and {info.num_captions:,} captions of "
        f"{len(settings.caches)} caches"
    )
