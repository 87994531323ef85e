"""What every source of pictures and captions promises: rows to plan from, and a reader of the pictures' bytes.

A source of one's own is one class; `docs/sources.md` shows one. B pictures of a block.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .format import SourceInfo, Status
from .location import Location
from .rows import Batch, Row, batched


class Reader(ABC):
    """Gives a decoding process the encoded pictures. It is pickled once to each process and opens files there."""

    @abstractmethod
    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of each picture of a block, or why there are none, one at a time.

        Args:
            keys: of B pictures.
            locators: `[B, 3]`, see `Locator`; None where keys are paths.
        """


class Source(ABC):
    """Pictures and captions in one of the shapes that people have them in.

    Attributes:
        kind: its name, kept in the cache.
        image_field: where a record names the picture, unless the user says otherwise.
        text_fields: where it has captions, unless the user says otherwise.
        info: what was asked for, complete but for kind and sha256.
        left_out: records that were read and left out, by the flag that did so.
    """

    kind: ClassVar[str]
    image_field: ClassVar[str] = "image"
    text_fields: ClassVar[tuple[str, ...]] = ("text",)

    def __init__(self, info: SourceInfo) -> None:
        self.info = info
        self.left_out: Counter[str] = Counter()

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Every record, in an order that is always the same. No picture is decoded.

        Raises:
            CacheError: a record is not as promised; the message names file, record and remedy.
        """

    @abstractmethod
    def sha256(self) -> str:
        """Hex digest by which a changed source is recognised when a pass is resumed."""

    def batches(self) -> Iterator[Batch]:
        """The same records as columns; a source that can read faster so has a `batches` of its own."""
        return batched(self.rows())

    def files(self) -> list[str]:
        """What locators count: paths of the larger files below the image root. Complete once the rows are read."""
        return []

    @classmethod
    def reader(cls, root: Location, files: Sequence[str], info: SourceInfo) -> Reader:
        """What reads the pictures of rows that have a locator.

        Args:
            root: the image root.
            files: as `files` gave them when the cache was planned.
            info: as the cache keeps it.
        """
        raise NotImplementedError(f"{cls.__name__} gives locators, so it needs a reader")
