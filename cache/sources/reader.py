"""Interface of readers: the encoded images of a block, by path or by locator, in a decoding process.

Every decoding process imports this module, so it loads no zarr and no pyarrow. B images of a block.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..format import Status


class Locator(NamedTuple):
    """The place of an image in a larger file.

    Attributes:
        file: number of the file, among those of the source.
        start: a number that the source's reader knows; here usually the first byte.
        size: another; here usually the number of bytes.
    """

    file: int
    start: int
    size: int


class Reader(ABC):
    """Gives a decoding process the encoded images. It is pickled once to each process and opens files there."""

    @abstractmethod
    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of each image of a block, or why there are none, one at a time.

        Args:
            keys: of B images.
            locators: `[B, 3]`, see `Locator`; None where keys are paths.
        """


class ImageReader(NamedTuple):
    """Reads images of a cache by row, each from its source.

    Attributes:
        readers: the first row of each source and its reader, ascending.
    """

    readers: tuple[tuple[int, Reader], ...]

    def read(self, start: int, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """Yield the bytes of the images from row `start` on, or why an image has none."""
        ends = [min(max(first - start, 0), len(keys)) for first, _ in self.readers[1:]]
        for (_, reader), a, b in zip(self.readers, [0, *ends], [*ends, len(keys)], strict=True):
            if a < b:
                are_files = locators is None or locators[a, 0] < 0  # also beside images inside larger files
                yield from reader.read(keys[a:b], None if locators is None or are_files else locators[a:b])
