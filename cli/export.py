"""`clipglot export`."""

from dataclasses import asdict

import click

from ..jobs.settings.export import ExportSettings
from .options import SectionedCommand, require_kind, require_new, settings_options
from .render import friendly_errors, json_option, percent, print_json, say

SECTIONS = {
    "Weights": "step interpolate quantize",
    "Image tower": "model pretrained",
    "Model card and hub": "license language dataset push private",
}


@click.command(cls=SectionedCommand, start="run output format", sections=SECTIONS)
@settings_options(ExportSettings, "run")
@json_option
def export(settings: ExportSettings, as_json: bool) -> None:
    """Merge the image tower of RUN's cache and the text tower of RUN into one CLIP.

    The image tower is loaded again and checked against the cache: by its hash, and by embedding a few cached images
    again. The merged folder is loaded as its users will load it before it gets its name. Where
    the run had a --val, the weights of its best validation are taken.

    RUN may also be a merged CLIP, to be written in other formats.

    \b
    clipglot export run -o merged
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors():
        is_merged = (settings.run / "open_clip_config.json").is_file()
        if is_merged and "open_clip" in settings.format:
            raise click.ClickException(
                f"{settings.run} is a merged CLIP, expected a run: pass --format transformers, for example, to write "
                "it in another format; `clipglot predict` and `clipglot eval` take it as it is"
            )
        if not is_merged:
            require_kind(settings.run, "run")
        require_new(settings.output)
        from ..jobs.export import export_run
        from ..jobs.model_card import describe_weights

        result = export_run(settings)
    if as_json:
        plain = asdict(result) | {"folder": str(result.folder), "loaded_by": result.loaded_by, "code": result.code}
        plain["formats"] = [asdict(each) | {"folder": str(each.folder)} for each in result.formats]
        print_json(plain)
        return
    if result.which is not None:
        recall = f", R@10 {percent(result.validation['r_at_10'])}" if result.validation else ""
        other = "; --step last takes those of the last step" if result.which == "best" else ""
        say(f"text tower: weights {describe_weights(result.which, result.step)}{recall}{other}")
        if result.num_probes:
            probes = f"{result.num_probes} cached images embedded again, worst cosine {result.min_cosine:.6f}"
        else:
            probes = (
                "unchecked whether it made the embeddings, because no image could be embedded again: "
                f"{result.why_no_probes}"
            )
        say(f"image tower: matches its hash; {probes}")
    for number, each in enumerate(result.formats):
        if number:
            say("")
        how = ""
        if each.text_difference is not None:
            how = (
                f"; largest difference of a feature: text {each.text_difference:.0e}, image {each.image_difference:.0e}"
            )
        say(f"{each.folder}: {each.loaded_by} loads both towers{how}")
        for note in each.notes:
            say(f"  {note}")
        for line in filter(None, each.code.splitlines()):
            say(line, wrap=False)
    if result.url:
        say(f"uploaded to {result.url}")
