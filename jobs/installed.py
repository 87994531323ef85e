"""Versions of installed packages."""

from functools import cache
from importlib.metadata import version


@cache
def installed_version(package: str) -> str:
    """The version of a package. Its metadata, with all of a README, is parsed but once."""
    return version(package)
