"""Pictures that are files of their own, below the image root and never outside it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .below import open_below, require_image_root
from .format import Status
from .location import Location, Url
from .pictures import RejectedPictureError
from .remote import UrlReader, require_remote_root
from .source import Reader


def require_root(root: Location) -> None:
    """Check what keys are relative to.

    Raises:
        CacheError: no such folder, or a store that cannot be read.
    """
    if isinstance(root, Url):
        require_remote_root(root)
    else:
        require_image_root(root)


class PathReader(Reader):
    """Reads files by their path below a root."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @classmethod
    def below(cls, root: Location) -> Reader:
        """A reader of what lies below a root, on the disk or at a URL.

        Raises:
            CacheError: no such folder, or a store that cannot be read.
        """
        require_root(root)
        return UrlReader(root) if isinstance(root, Url) else cls(root.resolve())

    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of each file; a file that vanishes or fails while it is read is unreadable."""
        assert locators is None
        for key in keys:
            try:
                with open_below(self._root, key) as file:
                    yield file.read()
            except RejectedPictureError as rejected:
                yield rejected.status
            except OSError:
                yield Status.UNREADABLE
