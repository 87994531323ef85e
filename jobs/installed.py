"""Versions of installed packages."""

from functools import cache
from importlib.metadata import version

from .. import __version__


@cache
def installed_version(package: str) -> str:
    """The version of a package. Its metadata, with all of a README, is parsed but once."""
    return __version__ if package == "clipglot" else version(package)  # an editable install keeps old metadata
