"""Commands, invoked in this process, and the arguments of a training run of a moment."""

from pathlib import Path

from click.testing import CliRunner, Result
from clipglot.cli.main import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def small(cache: Path, output: Path) -> list[object]:
    """Arguments of a training run of a moment."""
    sizes = "--width 16 --heads 2 --layers 1 --vocab-size 300 --context-length 16 --batch-size 8 --device cpu"
    return ["train", cache, "-o", output, *sizes.split()]
