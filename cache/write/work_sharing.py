"""Work sharing: several workers take the chunks of one pass, without talking to each other.

Each worker takes the missing chunks of its own number, one by one (`next_chunk`), and then those of workers that died
or are slow. It writes a heartbeat to the store (`workers/<i>.json`) with the chunks that it is working on; the others
read it (`Liveness`, `read_signs`). A worker waits for others only at the end, when they hold all the chunks that are
left. `sharing` is what a pass uses.
"""

import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from time import monotonic, sleep
from typing import Literal, TypeVar

from ..errors import CacheError
from ..storage.open import CacheStore
from ..typed import require_types

WORKERS = "workers"
BEAT_S = 10.0  # between two heartbeats; there is one more when a chunk is begun
LOOK_S = 30.0  # between two readings of the other workers' heartbeats
POLL_S = 1.0  # the same once only chunks of others are left, and between two checks whether these are done
BEGUN = 1  # unfinished chunks that a worker may have when it takes over one of another worker
OTHERS = "other workers"  # the bottleneck of a worker when others hold all the chunks that are left
Stage = Literal["teach", "embed"]
T = TypeVar("T")
SILENT_S = 60.0  # a worker without a new heartbeat for so long counts as dead; there is one about every ten seconds


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
class Liveness:
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


@dataclass(kw_only=True)
class Heartbeat:
    """What a worker says of itself.

    Attributes:
        worker: its index.
        of: how many share the pass.
        host: of the machine.
        pid: of the process.
        stage: `teach` (captions) or `embed` (images).
        chunks: that it is at: being decoded, embedded or written.
        chunks_done: in this run of it.
        pictures_done: likewise; captions while it teaches.
        pictures_per_s: since it began.
        bottleneck: what it waited for.
        counter: grows with each sign, so that others see that it lives.
        token: of this run of it, unlike that of any other.
    """

    worker: int
    of: int
    host: str
    pid: int
    stage: Stage
    chunks: list[int] = field(default_factory=list)
    chunks_done: int = 0
    pictures_done: int = 0
    pictures_per_s: float = 0.0
    bottleneck: str = ""
    counter: int = 0
    token: str = ""

    @classmethod
    def read(cls, store: CacheStore, name: str) -> "Heartbeat | None":
        """The sign of a worker, by its file; None if it has left.

        Raises:
            CacheError: what stands there is none, or the store refuses.
        """
        try:
            content = store.read(f"{WORKERS}/{name}")
            if content is None:
                return None
            sign = cls(**json.loads(content))
            require_types(sign)
            return sign
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CacheError(f"{WORKERS}/{name} is no sign of a worker ({error}): delete it") from error


def read_signs(store: CacheStore) -> dict[str, Heartbeat]:
    """The signs of all workers that have not left, by name, ascending.

    Raises:
        CacheError: what stands there is none, or the store refuses.
    """
    signs = {}
    for name in sorted(store.names(WORKERS)):
        if not name.endswith(".json") or name.startswith("."):
            continue  # half of one, by a killed worker
        if sign := Heartbeat.read(store, name):
            signs[name] = sign
    return dict(sorted(signs.items(), key=lambda item: item[1].worker))


class WorkerLease:
    """What one worker does of a pass."""

    def __init__(self, store: CacheStore, worker: Worker, stage: Stage) -> None:
        self._store, self._worker, self._watch = store, worker, Liveness()
        host, pid, token = socket.gethostname(), os.getpid(), uuid.uuid4().hex
        self._sign = Heartbeat(worker=worker.index, of=worker.num, host=host, pid=pid, stage=stage, token=token)
        self._name = f"{worker.index}.json"
        self._others: dict[str, Heartbeat] = {}
        self._written: set[int] = set()  # of those in the sign, until the store is asked what is missing
        self._looked_at: float | None = None
        self._lock, self._left = threading.Lock(), threading.Event()
        self._failure: CacheError | None = None

    def chunks(self, missing: Callable[[], Mapping[int, T]]) -> Iterator[tuple[int, T]]:
        """Chunks to embed, with what is missing of each, until none is left for this worker for now.

        Args:
            missing: asks the store, before each chunk.
        """
        while (found := self._find(missing())) is not None:
            chunk, left = found
            self._sign.chunks.append(chunk)
            self.beat()
            yield chunk, left

    def has_more(
        self,
        missing: Callable[[], Mapping[int, T]],
        on_wait: Callable[[float], None] = lambda waited_s: None,
    ) -> bool:
        """Whether something is left to embed; while living workers are at all of it, wait for them.

        What a dead one was at is then taken over. To be asked when all that `chunks` gave is written.

        Args:
            missing: asks the store.
            on_wait: called again and again while it waits, with the seconds since the last time.
        """
        left = missing()
        self._settle(left)
        self._sign.chunks.clear()
        self._written.clear()
        said, looked_at = self._sign.bottleneck, monotonic()
        while left and self._find(left) is None:
            self._sign.bottleneck = OTHERS
            sleep(POLL_S)
            left, before, looked_at = missing(), looked_at, monotonic()
            on_wait(looked_at - before)
        self._sign.bottleneck = said
        return bool(left)

    def wrote(self, chunk: int) -> None:
        """Say with the next sign that a chunk is done; may be called from any thread.

        It is still one that was taken: what is missing may have been asked before it was written.
        """
        self._written.add(chunk)

    def note(self, num_pictures: int, wall_s: float, bottleneck: str) -> None:
        """Keep what the next sign says.

        Raises:
            CacheError: what kept the last one from being given.
        """
        if self._failure:
            raise self._failure
        sign = self._sign
        sign.pictures_done, sign.bottleneck = num_pictures, bottleneck
        sign.pictures_per_s = round(num_pictures / max(wall_s, 1e-9), 1)

    def beat(self) -> None:
        """Give a sign of life.

        Raises:
            CacheError: another process has since given signs as the same worker; it goes on, and this one ends.
        """
        with self._lock:
            if not self._left.is_set():
                sign = self._sign
                if sign.counter:
                    self._require_to_be_the_only_one()
                sign.counter += 1
                at = [chunk for chunk in sign.chunks if chunk not in self._written]
                says = replace(sign, chunks=at, chunks_done=sign.chunks_done + len(sign.chunks) - len(at))
                self._store.write(f"{WORKERS}/{self._name}", json.dumps(asdict(says)).encode())

    def _require_to_be_the_only_one(self) -> None:
        """Of two processes that are the same worker, the one that began first finds the other's sign over its own."""
        found, own = Heartbeat.read(self._store, self._name), self._sign
        if found and found.of == own.of and found.token != own.token:
            self._left.set()  # the sign is not this one's to take away
            raise CacheError(
                f"{found.host} ({found.pid}) has begun as worker {own.worker} of {own.of}, too, and goes on: give each "
                "process its own --shard I/N"
            )

    def _find(self, left: Mapping[int, T]) -> tuple[int, T] | None:
        if self._failure:
            raise self._failure
        self._settle(left)
        own, worker = set(self._sign.chunks), self._worker
        chunk = next_chunk(left.keys(), worker, own | self._others_busy(LOOK_S))
        if not worker.is_alone and (chunk is None or chunk % worker.num != worker.index):
            if len(own) > BEGUN:
                return None  # images are read far ahead, and who owns the chunk may be about to begin it
            chunk = next_chunk(left.keys(), worker, own | self._others_busy(POLL_S))
        return None if chunk is None else (chunk, left[chunk])

    def _settle(self, left: Mapping[int, T]) -> None:
        """Forget the chunks that are stored by now."""
        still = [chunk for chunk in self._sign.chunks if chunk in left]
        self._sign.chunks_done += len(self._sign.chunks) - len(still)
        self._sign.chunks[:] = still

    def _others_busy(self, look_s: float) -> set[int]:
        """What living workers say that they are at, as known for no longer than `look_s`."""
        if self._worker.is_alone:
            return set()
        now = monotonic()
        if self._looked_at is None or now - self._looked_at >= look_s:
            signs = read_signs(self._store)
            self._others = {name: sign for name, sign in signs.items() if name != self._name}
            self._watch.look({name: (s.host, s.pid, s.counter) for name, s in self._others.items()}, now)
            self._looked_at = now
        living = self._watch.living(now)
        signs_at = (s for name, s in self._others.items() if name in living and s.stage == self._sign.stage)
        return {chunk for sign in signs_at for chunk in sign.chunks}

    def _keep_beating(self) -> None:
        while not self._left.wait(BEAT_S):
            try:
                self.beat()
            except CacheError as error:
                self._failure = error
                return

    def _leave(self) -> None:
        with self._lock:
            if not self._left.is_set():
                self._left.set()
                self._store.delete_file(f"{WORKERS}/{self._name}")


@contextmanager
def sharing(store: CacheStore, worker: Worker, stage: Stage) -> Iterator[WorkerLease]:
    """A `WorkerLease` that gives signs of life until the end of the block, from a thread of its own."""
    share = WorkerLease(store, worker, stage)
    thread = threading.Thread(target=share._keep_beating, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield share
    except BaseException:
        with suppress(CacheError):  # the error that is on its way says more
            share._leave()
        raise
    else:
        share._leave()
    finally:
        share._left.set()
        thread.join()
