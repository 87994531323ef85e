"""`clipglot captions`."""

import click

from ..jobs.settings.captions import CaptionsSettings
from .options import require_kind, settings_options
from .render import friendly_errors, json_option, print_json, say, stage_bars, warn


@click.command()
@settings_options(CaptionsSettings, "cache", "file", has_config=False)
@json_option
def captions(settings: CaptionsSettings, as_json: bool) -> None:
    """Give CACHE a further set of captions, from the table FILE; no image is read.

    A record's captions belong to the image whose key its --image-field has. `clipglot train CACHE --captions NAME`
    trains on a set, and on several sets together.

    \b
    clipglot captions train.zarr ru.csv --language ru
    clipglot captions train.zarr more.jsonl --name ru --add
    clipglot captions train.zarr --name ru --drop
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), stage_bars("load") as on_progress:
        require_kind(settings.cache, "cache")
        from ..jobs.captions import add_captions

        result = add_captions(settings, on_progress)
    info, added = result.info, result.added
    if as_json:
        print_json({"cache": str(settings.cache)} | result.to_json())
        return
    for note in result.notes:
        say(note)
    if added is None:
        say(f"{settings.cache}: caption set {info.name}, {info.num_captions:,} captions, is deleted")
        return
    from .describe import told_languages

    counted = f"{info.num_captions:,} captions ({told_languages(result.languages)}) of {added.num_images:,} images"
    say(f"{settings.cache}: caption set {info.name}: {counted}")
    for reason, num in info.dropped_captions.items():
        say(f"{num:,} captions were left out ({reason})")
    if added.num_unmatched:
        named = ", ".join(map(repr, added.unmatched))
        more = ", …" if added.num_unmatched > len(added.unmatched) else ""
        warn(
            f"{added.num_unmatched:,} of {added.num_rows:,} records have the key of no image of the cache and are "
            f"left out: {named}{more}: if they should match, write keys as `clipglot inspect` shows them"
        )
    say(f"next: clipglot train {settings.cache} --captions {info.name} -o RUN")
