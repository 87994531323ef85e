"""What tests of copies share: the bytes of a folder, and the command line."""

from pathlib import Path

from click.testing import CliRunner, Result
from clipglot.cli.main import main


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def run(*arguments: object) -> Result:
    """`clipglot` with these arguments."""
    return CliRunner().invoke(main, [str(a) for a in arguments])
