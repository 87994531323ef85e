"""Pictures that are files of their own, below the image root and never outside it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .format import Status
from .location import Location
from .pictures import RejectedPictureError, open_below, require_image_root
from .source import Reader


class PathReader(Reader):
    """Reads files by their path below a root."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @classmethod
    def below(cls, root: Location) -> "PathReader":
        """A reader of what lies below a root.

        Raises:
            CacheError: no such folder.
        """
        require_image_root(Path(root))
        return cls(Path(root).resolve())

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
