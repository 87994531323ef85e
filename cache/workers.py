"""Which worker of a pass takes which chunk, and which workers live. Plans only: what is stored comes in.

Worker i of N has the missing chunks whose number is i modulo N. When these are done, it takes over from the others:
from the end of their lists, which they come to last. What to do follows from what is missing, so N may change from one
run to the next. Two workers that take the same chunk write the same bytes.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

SILENT_S = 60.0  # without a new sign for so long a worker is taken for dead; it gives one about every ten seconds


@dataclass(frozen=True, slots=True)
class Worker:
    """One of the workers that share a pass.

    Attributes:
        index: from 0.
        num: of all.
    """

    index: int = 0
    num: int = 1

    @property
    def is_alone(self) -> bool:
        """Whether nobody else shares the pass."""
        return self.num == 1

    def __str__(self) -> str:
        return f"worker {self.index} of {self.num}"


ALONE = Worker()


def next_chunk(missing: Collection[int], worker: Worker, busy: Collection[int] = ()) -> int | None:
    """The chunk that a worker should embed next, None while there is none for it.

    Args:
        missing: chunks that nobody has finished.
        worker: who asks.
        busy: chunks that this worker or another living one is at.

    >>> next_chunk(range(8), Worker(1, 4))
    1
    >>> next_chunk({0, 4, 8}, Worker(1, 4), busy={0})
    8
    """
    free = sorted(set(missing).difference(busy))
    own = [chunk for chunk in free if chunk % worker.num == worker.index]
    if own:
        return own[0]
    # Its neighbour first: those who are done early then do not all come to the same one.
    for step in range(1, worker.num):
        theirs = [chunk for chunk in free if chunk % worker.num == (worker.index + step) % worker.num]
        if theirs:
            return theirs[-1]
    return None


@dataclass(slots=True)
class Watch:
    """When each worker last gave a new sign, by the watcher's own clock: no clock of another machine is ever read.

    A worker that was never seen to change counts as living until it was watched for `silent_s`.

    Attributes:
        silent_s: seconds without a new sign after which a worker is taken for dead.
    """

    silent_s: float = SILENT_S
    _seen: dict[str, tuple[object, float]] = field(default_factory=dict)
    _changed: set[str] = field(default_factory=set)

    def look(self, signs: Mapping[str, object], now: float) -> None:
        """Take in what the workers' signs are now.

        Args:
            signs: by worker; what matters is only whether one differs from the last look.
            now: seconds of a clock that never goes back.
        """
        for name in self._seen.keys() - signs.keys():  # it left
            del self._seen[name]
            self._changed.discard(name)
        for name, sign in signs.items():
            if name not in self._seen:
                self._seen[name] = sign, now
            elif self._seen[name][0] != sign:
                self._seen[name] = sign, now
                self._changed.add(name)

    def silence_s(self, name: str, now: float) -> float:
        """Seconds since a worker's last new sign, or since the first look at it."""
        return now - self._seen[name][1]

    def was_seen_to_change(self, name: str) -> bool:
        """Whether a worker gave a new sign while it was watched: only then it certainly lived."""
        return name in self._changed

    def living(self, now: float) -> set[str]:
        """The workers that are not taken for dead."""
        return {name for name in self._seen if self.silence_s(name, now) < self.silent_s}
