"""Shards: N jobs that know only their numbers divide the chunks of one pass."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """The chunks of a pass whose number is `index` modulo `num`.

    Attributes:
        index: from 0.
        num: of all shards.

    >>> [chunk for chunk in range(8) if chunk in Shard(1, 3)]
    [1, 4, 7]
    """

    index: int = 0
    num: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether it has all chunks."""
        return self.num == 1

    def __contains__(self, chunk: int) -> bool:
        return chunk % self.num == self.index

    def __str__(self) -> str:
        return f"shard {self.index}/{self.num}"


WHOLE = Shard()
