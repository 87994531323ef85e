"""Errors of caches, sources and images, and faults of a cache. Messages say what is wrong, where, and what to do."""

from dataclasses import dataclass

ChunkId = tuple[str, tuple[int, ...]]
"""Name of an array, and index of one of its chunks."""


class CacheError(Exception):
    """A problem with a cache or its source that the user can solve."""


class UnwritableError(CacheError):
    """A file or folder cannot be written; the cause is the OSError."""


class AbsentObjectError(CacheError):
    """An object that a cache must have is not in its store."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a cache, as one line: `str(fault)`.

    Attributes:
        message: where it is and what is wrong; begins with the file of the chunk or array, where there is one.
        remedy: what to do about it.
        chunk: the chunk that it lies in; None if it lies in no single chunk.
        row: the first row that is wrong; None if the fault is not one of rows.
    """

    message: str
    remedy: str
    chunk: ChunkId | None = None
    row: int | None = None

    def __str__(self) -> str:
        return f"{self.message}: {self.remedy}"


class DamagedCacheError(CacheError):
    """A part of a cache is absent or damaged.

    Attributes:
        fault: that part, and what to do about it.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault
