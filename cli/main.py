"""The `clipglot` command. Each subcommand's module is imported only when it runs, so that `--help` answers at once."""

import importlib
import os
import time
from difflib import get_close_matches
from typing import Any

import click

from .. import __version__
from .terminal import guard_outputs

# name: (module, attribute, description in `clipglot --help`)
COMMANDS = {
    "cache": ("cache", "cache", "Embed every image of a source once."),
    "captions": ("captions", "captions", "Give a cache captions in a further language."),
    "inspect": ("inspect", "inspect", "Show contents and failed images of a cache."),
    "convert": ("convert", "convert", "Copy a cache to HDF5, or back to Zarr."),
    "import": ("convert", "import_", "Make a cache from existing embeddings."),
    "merge": ("convert", "merge", "Concatenate caches of one image tower."),
    "verify": ("verify", "verify", "Check and repair a cache."),
    "duplicates": ("duplicates", "duplicates", "Find near-duplicate images, or leakage between caches."),
    "index": ("index", "index", "Write an index for search in a large cache."),
    "tokenizer": ("tokenizer", "tokenizer", "Train, extend or inspect a tokenizer on the captions of a cache."),
    "train": ("train", "train", "Train a text tower on a cache."),
    "export": ("export", "export", "Merge image and text tower into an open_clip checkpoint."),
    "predict": ("predict", "predict", "Tell which text describes an image best."),
    "search": ("search", "search", "Find the images of a cache that fit a text or an image best."),
    "eval": ("evaluate", "evaluate", "Evaluate a merged CLIP."),
    "report": ("report", "report", "Show runs and merged CLIPs in one HTML file."),
    "serve": ("serve", "serve", "Search caches from a browser."),
    "bench": ("bench", "bench", "Measure the training speed of this machine."),
    "demo": ("demo", "demo", "Run the whole workflow offline on drawn images."),
}
COMPLETION = "_CLIPGLOT_COMPLETE"  # set by a shell that asks how a line goes on
INTERRUPTED = 130  # exit code after Ctrl-C, as of a shell: 128 and the number of the signal
FIRST_SPEAKS_S = 20.0  # enough for the first process to report an error that all processes have


class Group(click.Group):
    """Command group that asks whether a similar command was meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As of `click.Group`, whose suggestions know no lazy commands."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            near = get_close_matches(args[0], self.list_commands(ctx), 3)
            meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """Command group with lazy imports; of several processes only the first prints errors."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command. Every process but the first ends silently, with the same exit code."""
        if COMPLETION not in os.environ:  # what click tells a shell are bytes, and names of commands and options
            guard_outputs()
        if is_first_process():
            return super().main(*args, **kwargs)
        try:
            return super().main(*args, **kwargs | {"standalone_mode": False})
        except click.ClickException as error:
            # The launcher ends all processes when one ends: wait until the first has printed the error.
            time.sleep(FIRST_SPEAKS_S)
            raise SystemExit(error.exit_code) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C, which commands with something to say answer themselves, has an exit code here."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            if is_first_process():
                click.echo("stopped", err=True)
            raise SystemExit(INTERRUPTED) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the workflow, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of the command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"clipglot.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, _, help_) in COMMANDS.items()])


def is_first_process() -> bool:
    """Whether this process prints for the user: the only one, or the first of those that `torchrun` started."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK", "0") == "0"


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="clipglot")
def main() -> None:
    """Teach a frozen CLIP a new language or domain, with one GPU or none.

    images + captions → cache → train → export → one CLIP that open_clip loads
    """
    # Set before torch is imported. Threads that wait actively take cores from decoding workers and other processes: on
    # two shared cores a training step took twice as long (benchmarks/threads_cpu_2026-11.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A fork after tokenizing would otherwise print a warning of the Rust library on every worker.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
