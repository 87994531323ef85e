"""What kind of folder a path is, so that a command that is given another kind names the one that takes it."""

from typing import Literal

import click

from ..cache.location import Location, Url

Kind = Literal["cache", "run", "merged CLIP"]
# The file by which each kind is known, and what to do with it.
_KINDS: dict[Kind, tuple[str, str]] = {
    "cache": ("zarr.json", "train on it with `clipglot train {} -o RUN`"),
    "run": ("run.json", "merge it with `clipglot export {} -o MERGED`"),
    "merged CLIP": ("open_clip_config.json", "`clipglot predict` and `clipglot eval` take it"),
}


def require_kind(path: Location, expected: Kind) -> None:
    """Refuse a folder of another kind; what is of none, or at a URL, is for the command to judge.

    Raises:
        click.ClickException: says what it is and what takes it.
    """
    if isinstance(path, Url):
        return
    found: dict[Kind, str] = {kind: remedy for kind, (mark, remedy) in _KINDS.items() if (path / mark).is_file()}
    if expected not in found:
        for kind, remedy in found.items():
            raise click.ClickException(f"{path} is a {kind}, expected a {expected}: {remedy.format(path)}")
