"""`clipglot verify`."""

from dataclasses import asdict

import click

from ..distill.training.signals import interrupted_by_sigterm
from ..jobs.settings.verify import VerifySettings
from .options import require_kind, settings_options
from .render import friendly_errors, json_option, print_json, say, stage_bars, warn


@click.command()
@settings_options(VerifySettings, "cache")
@json_option
def verify(settings: VerifySettings, as_json: bool) -> None:
    """Read all of CACHE and check it: checksums, counts, contents, and a sample of images embedded again.

    Exit code 1 if anything is wrong, or if images that you asked for could not be embedded again. With --repair,
    damaged chunks of embeddings are marked; the `clipglot cache` command that is then printed embeds them again.
    """
    with friendly_errors(), interrupted_by_sigterm(), stage_bars("verify") as on_progress:
        require_kind(settings.cache, "cache")
        from ..cache.read.repair import is_made_by_commands
        from ..jobs.verify import verify_cache

        result = verify_cache(settings, on_progress, on_note=warn)
    info, probes = result.cache.info, result.probes
    if as_json:
        print_json(
            {"cache": str(settings.cache), "state": info.state, "faults": result.faults}
            | {"marked": result.marked, "command": result.command, "probes": asdict(probes)}
        )
    else:
        for fault in result.faults:
            say(fault)
        if not result.faults:
            say(f"{settings.cache}: every checksum holds ({info.state}, {info.num_images:,} images)")
        if probes.num:
            say(f"{probes.num} images embedded again, worst cosine {probes.min_cosine:.6f}")
        if probes.not_checked:
            say(f"not checked whether the tower still gives these embeddings: {probes.not_checked}")
        if result.command:
            say(f"marked to be embedded again: {', '.join(result.marked)}")
            say(f"now run: {result.command}")
        elif result.faults and not settings.repair and is_made_by_commands(info) and not result.cache.arrays.is_hdf5:
            say(f"to mark what a pass can embed again: clipglot verify {settings.cache} --repair")
        elif settings.repair and result.faults:
            say("none of this can be embedded again: see above what to do")
    if result.faults or result.incomplete:
        raise SystemExit(1)
