"""What a worker process of a test runs: its module imports nothing else, as a worker of a pass does."""

from collections.abc import Sequence
from typing import Any

from clipglot.cache.format import Status
from clipglot.cache.sources.reader import Reader
from numpy.typing import NDArray


def read_rows(reader: Reader, keys: Sequence[str], locators: NDArray[Any] | None) -> list[bytes | Status]:
    """The images that a reader gives."""
    return list(reader.read(keys, locators))
