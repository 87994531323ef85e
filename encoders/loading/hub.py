"""Access to the model hub, with one refusal at once where it cannot be reached."""

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from ..errors import EncoderError

CONNECT_S = 5.0
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class HubUnreachableError(ConnectionError):
    """No connection to the hub, and the file that was asked for is not on this machine."""


@contextmanager
def without_hub_bars() -> Iterator[None]:
    """Keep the hub's library from drawing progress bars of its own inside the block."""
    had_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if had_bars:
            enable_progress_bars()


@contextmanager
def hub_access() -> Iterator[None]:
    """Fetch files inside the block, or use those on this machine where the hub cannot be reached.

    Left alone, its library tries each file six times, for 23 seconds and with two lines for each try.

    Raises:
        HubUnreachableError: a file is not on this machine either.
    """
    reason = None if constants.HF_HUB_OFFLINE else _why_no_connection(constants.ENDPOINT)
    if reason is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)  # open_clip logs what it raises
    try:
        yield
    except Exception as error:
        if _is_absence(error):
            raise HubUnreachableError(reason) from error
        raise
    finally:
        logging.disable(disabled)
        constants.HF_HUB_OFFLINE = False


@cache  # a network that answers nothing costs its seconds once
def _why_no_connection(url: str) -> str | None:
    """Why no connection to a hub can be opened; None if it can, or if a proxy is in between."""
    endpoint = urlsplit(url)
    if {endpoint.scheme, "all"} & getproxies().keys():
        return None
    try:
        address = endpoint.hostname or "", endpoint.port or {"http": 80}.get(endpoint.scheme, 443)
        socket.create_connection(address, timeout=CONNECT_S).close()
    except OSError as error:
        return f"{endpoint.netloc}: {error.strerror or error}"
    return None


def _is_absence(error: BaseException | None) -> bool:
    """Whether an error comes from a file that is not on this machine."""
    while error is not None:
        if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
            return True
        error = error.__cause__ or error.__context__
    return False


def fetched(source: str | Path, patterns: list[str]) -> Path:
    """A folder, or the files of a hub repository that match the patterns, in the hub's cache.

    Raises:
        EncoderError: neither a folder nor a name that a repository could have.
        Exception: of the hub, if it gives nothing.
    """
    if Path(source).is_dir():
        return Path(source)
    if not _HUB_NAME.fullmatch(str(source)):
        raise EncoderError(f"{source}: no such folder")
    return fetched_from_hub(str(source), patterns)


def fetched_from_hub(name: str, patterns: list[str]) -> Path:
    """As `fetched`, for the names in a config, which lead to no folder: not even to one that lies where we run.

    Raises:
        EncoderError: no name that a repository could have, such as a path.
        Exception: of the hub, if it gives nothing.
    """
    if not _HUB_NAME.fullmatch(name):
        raise EncoderError(
            f"open_clip_config.json names {name}, which is no repository of the hub: put the files of that language "
            "model beside it"
        )
    with without_hub_bars(), hub_access():
        return Path(snapshot_download(name, allow_patterns=patterns))
