"""`clipglot serve`."""

from contextlib import ExitStack

import click

from ..jobs.settings.serve import ServeSettings
from .options import SectionedCommand, require_kind, settings_options
from .render import friendly_errors, json_option, print_json, say, stage_bars, warn

SECTIONS = {
    "Who may ask": "host token allow_host",
    "Images": "image_root fold_above thumbnail_folder thumbnail_megabytes",
}


@click.command(cls=SectionedCommand, start="merged caches against index onnx port", sections=SECTIONS)
@settings_options(ServeSettings, "merged", "caches")
@json_option
def serve(settings: ServeSettings, as_json: bool) -> None:
    """Search CACHES from a browser with the CLIP in MERGED: a page on this machine, and a JSON API.

    \b
    clipglot serve merged images.zarr
    clipglot serve merged images.zarr --against english   two towers side by side
    clipglot serve merged-onnx images.zarr                without torch

    Only this machine reaches the page unless --host is given; then the address that is
    printed holds a token. Ctrl-C ends the server. The API is described at /openapi.json.
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), ExitStack() as bars:
        on_progress = bars.enter_context(stage_bars("load"))
        for folder in (settings.merged, *settings.against):
            require_kind(folder, "merged CLIP")
        for cache in settings.caches:
            require_kind(cache, "cache")
        from ..jobs.serve import Served
        from ..jobs.serve import serve as run

        def tell(served: Served) -> None:
            bars.close()  # the bar would stand there as long as the server runs
            if served.is_public:
                warn("other machines can reach this server; the token in its address lets them in")
            if as_json:
                print_json({"url": served.url, "token": served.token, "num_images": served.num_images})
            else:
                say(f"{served.num_images:,} images at {served.url} (Ctrl-C ends)")

        run(settings, on_progress, tell)
    if not as_json:
        say("stopped")
