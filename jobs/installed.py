"""Installed packages: their versions, and Dask where a command is to work on a cluster."""

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec

from .. import __version__
from ..distill.errors import DistillError


@cache
def installed_version(package: str) -> str:
    """The version of a package. Its metadata, with all of a README, is parsed but once."""
    return __version__ if package == "clipglot" else version(package)  # an editable install keeps old metadata


def require_dask() -> None:
    """Refuse to work on a cluster where Dask is not installed, before anything slow.

    Raises:
        DistillError: it is not.
    """
    if find_spec("distributed") is None:
        raise DistillError("--scheduler needs Dask: pip install '.[dask]' in a clone of clipglot")
