"""The `clipglot` command. Each subcommand's module is imported only when it runs, so that `--help` answers at once."""

import importlib
import os
import time
from typing import Any

import click

from .terminal import guard_outputs

# name: (module, attribute, what `clipglot --help` says)
COMMANDS = {
    "cache": ("cache", "cache", "Embed every image of a source once."),
    "inspect": ("inspect", "inspect", "Show what is in a cache, what failed and why."),
    "convert": ("convert", "convert", "Copy a cache to HDF5, or back to Zarr."),
    "import": ("convert", "import_", "Make a cache of embeddings that are there."),
    "merge": ("convert", "merge", "Put several caches of one tower together."),
    "verify": ("verify", "verify", "Check and repair a cache."),
    "duplicates": ("duplicates", "duplicates", "Find near-duplicate images, and leakage between caches."),
    "tokenizer": ("tokenizer", "tokenizer", "Train, extend or judge a tokenizer on the captions of a cache."),
    "train": ("train", "train", "Train a text tower on a cache."),
    "export": ("export", "export", "Merge both towers into one CLIP."),
    "predict": ("export", "predict", "Which text describes an image best?"),
    "eval": ("evaluate", "evaluate", "Measure a merged CLIP."),
    "bench": ("bench", "bench", "Measure what this machine reaches."),
    "demo": ("demo", "demo", "Do the whole job on images that it draws itself."),
}
FIRST_SPEAKS_S = 20.0  # in which the first of several processes has met what all have met, and was ended by it


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for; of several processes only the first says errors."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command. A process that is not the first ends as the first does, and says nothing."""
        guard_outputs()
        if is_first_process():
            return super().main(*args, **kwargs)
        try:
            return super().main(*args, **kwargs | {"standalone_mode": False})
        except click.ClickException as error:
            # The launcher ends all processes once one has ended: not before the first has spoken.
            time.sleep(FIRST_SPEAKS_S)
            raise SystemExit(error.exit_code) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the job, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
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
    """Whether this is the process that speaks to the user, of those that `torchrun` started, or alone."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("RANK", "0") == "0"


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="clipglot")
def main() -> None:
    """Teach a frozen CLIP a new language or domain on one GPU.

    images + captions → cache → train → export → one CLIP that open_clip loads
    """
    # Before torch is imported. Threads that wait actively take the cores from decoding workers and from whatever else
    # runs: on two shared cores a training step took twice as long (benchmarks/threads_cpu_2026-11.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A fork after tokenizing would otherwise print a warning of the Rust library on every worker.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
