"""`clipglot tokenizer`."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..jobs.settings.tokenizer import TokenizerSettings
from .options import require_kind, require_new, settings_options
from .render import friendly_errors, json_option, output, percent, print_json, say, table, warn

if TYPE_CHECKING:
    from ..jobs.tokenizer import TokenizerReport


@click.command()
@settings_options(TokenizerSettings, "cache")
@json_option
def tokenizer(settings: TokenizerSettings, as_json: bool) -> None:
    """Train or extend a tokenizer on the captions of CACHE, or inspect how one splits them.

    A trained tokenizer reads every script. The report says, script by script, into what words are split.

    \b
    clipglot tokenizer train.zarr -o tokenizer --kind unigram
    clipglot tokenizer train.zarr -o tokenizer --extend open_clip
    clipglot tokenizer train.zarr --inspect some-language-model
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors():
        require_kind(settings.cache, "cache")
        if not settings.inspect:
            require_new(settings.output)
        from ..jobs.tokenizer import inspect_tokenizer, train_tokenizer

        report = (inspect_tokenizer if settings.inspect else train_tokenizer)(settings)
    if as_json:
        print_json(asdict(report))
    else:
        _print(report)


def _print(report: "TokenizerReport") -> None:
    say(
        f"{report.tokenizer}: {report.vocab_size:,} tokens; {report.num_captions:,} captions of "
        f"{report.tokens_per_caption:.1f} tokens (BOS and EOS included), 95% have at most {report.percentile_95}, "
        f"longest {report.longest}; a context of {report.context_length} cuts {report.num_cut:,}"
    )
    numbers = ("captions", "text", "tokens", "whole", "pieces", "unknown")
    rows = table("script", "captions", "text", "tokens", "per", "whole", "pieces", "unknown", numbers=numbers)
    for split in report.scripts:
        shares = map(percent, (split.whole, split.pieces, split.unknown))
        of_text = (percent(split.captions), percent(split.characters))
        rows.add_row(split.script, *of_text, f"{split.tokens_per_unit:.2f}", split.unit, *shares)
    output.print()
    output.print(rows)
    if report.warning:
        warn(f"warning: {report.warning}")
