"""Thumbnails on disk, within a limit, and the threads that make them."""

import asyncio
import os
import re
import stat
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue

from ..cache.errors import CacheError
from ..cache.location import to_location
from ..inference.thumbnails import ThumbnailReader
from .batcher import BusyError
from .catalog import Catalog

MEMORY_BYTES = 32 * 2**20
SIDES = (128, 256, 512, 1024)
NUM_THREADS = 2  # for each cache: a source that hangs takes away only its own images
MOST_WAITING = 2_000  # requests
MADE_S = 20.0  # to make one
FAST = 1  # effort of compressing: a third larger files in a fifth of the time
SWEPT_AFTER = 200  # new files
MOST_FILE = 2**20  # bytes of a file in the folder; a picture of noise of the largest side has half of it
_NAME = re.compile(r"[0-9a-f]{64}\.webp(\.[0-9a-f]{32}\.partial)?")


class ThumbnailStore:
    """WebP files by digest, the least recently used of which are deleted. Several servers may share a folder."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Use a folder, which is made.

        Args:
            folder: for the files; nothing else in it is touched.
            limit: bytes of all files, within those of some new ones.

        Raises:
            OSError: it cannot be made or written.
        """
        self.folder, self._limit, self._num_new = folder, limit, 0
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._sweep()

    def get(self, digest: str) -> bytes | None:
        """A file that is there, which is marked as used."""
        path = self._path(digest)
        try:
            # What else may stand there must not be waited for, nor shown: a FIFO, a link to another picture.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                state = os.fstat(descriptor)
                if not stat.S_ISREG(state.st_mode) or state.st_size > MOST_FILE:
                    return None
                content = file.read(MOST_FILE)
                os.utime(descriptor)
        except OSError:
            return None
        return (
            content if content[:4] == b"RIFF" and len(content) == 8 + int.from_bytes(content[4:8], "little") else None
        )

    def put(self, digest: str, content: bytes) -> None:
        """Keep a file; a disk that is full keeps none."""
        path = self._path(digest)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # also where the folder was deleted meanwhile
            partial.write_bytes(content)  # not synced: `get` refuses one that is cut
            partial.replace(path)
        except OSError:
            with suppress(OSError):
                partial.unlink()
            return
        with self._lock:
            self._num_new += 1
            is_due = self._num_new % SWEPT_AFTER == 0
        if is_due:
            self._sweep()

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.webp"

    def _sweep(self) -> None:
        """Delete files until the rest is within the limit, and what a killed server left."""
        found = []
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(OSError):
                if _NAME.fullmatch(path.name):
                    state = path.lstat()
                    found.append((state.st_mtime, state.st_size, path))
        size = sum(each for _, each, _ in found)
        for _, each, path in sorted(found):
            if size <= self._limit:
                break
            with suppress(OSError):
                path.unlink()
            size -= each


class _Threads:
    """Daemon threads: one that waits for a web server does not keep the process from ending, as an executor's would."""

    def __init__(self, num: int, name: str) -> None:
        self._tasks: SimpleQueue[tuple[Callable[[], bytes], asyncio.Future[bytes]]] = SimpleQueue()
        for _ in range(num):
            threading.Thread(target=self._run, name=name, daemon=True).start()

    async def __call__(self, function: Callable[[], bytes]) -> bytes:
        """What a function gives or raises; it is not called if nobody waits for it any more.

        Raises:
            BusyError: too many wait.
        """
        if self._tasks.qsize() >= MOST_WAITING:
            raise BusyError
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._tasks.put((function, future))
        return await future

    def _run(self) -> None:
        while True:
            function, future = self._tasks.get()
            if future.done():
                continue
            answer: bytes | Exception
            try:
                answer = function()
            except Exception as error:  # it must reach who waits, whatever it is
                answer = error
            with suppress(RuntimeError):  # the server has ended meanwhile
                future.get_loop().call_soon_threadsafe(_tell, future, answer)


def _tell(future: asyncio.Future[bytes], answer: bytes | Exception) -> None:
    if future.done():  # given up
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


class Thumbnails:
    """Thumbnails of the images of a catalog.

    Attributes:
        version: changes when any row may show another image.
    """

    def __init__(self, catalog: Catalog, store: ThumbnailStore, image_root: str | None) -> None:
        """Make thumbnails.

        Args:
            catalog: of the images.
            store: that keeps them.
            image_root: folder or URL that has the images of all caches now; None for where the caches read them.
        """
        self._catalog, self._store, self._image_root = catalog, store, image_root
        self._root = image_root and str(to_location(image_root).absolute())
        self._threads = [_Threads(NUM_THREADS, f"thumbnails-{number}") for number in range(len(catalog.caches))]
        self._local = threading.local()  # readers are of one thread
        self._memory: OrderedDict[str, bytes] = OrderedDict()  # of the event loop's thread
        self._memory_bytes = 0
        told = [self._root, *(cache.stamp for cache in catalog.caches)]
        self.version = sha256(repr(told).encode()).hexdigest()[:16]

    def digest(self, row: int, side: int, *, whole: bool) -> str:
        """What names a thumbnail: another image, cache or size has another one."""
        number, own = self._catalog.place(row)
        cache = self._catalog.caches[number]
        told = (cache.stamp, self._root, own, side, whole)
        return sha256(repr(told).encode()).hexdigest()

    async def webp(self, row: int, side: int, *, whole: bool) -> bytes:
        """A thumbnail.

        Args:
            row: of the catalog.
            side: one of `SIDES`.
            whole: as of `ThumbnailReader.webp`.

        Raises:
            RejectedImageError, CacheError: as of `ThumbnailReader.webp`; or the source does not answer.
            IndexError: no such row.
            BusyError: too many wait.
        """
        number, own = self._catalog.place(row)
        digest = self.digest(row, side, whole=whole)
        if (known := self._memory.get(digest)) is not None:
            self._memory.move_to_end(digest)
            return known
        if (content := await asyncio.to_thread(self._store.get, digest)) is None:
            try:
                async with asyncio.timeout(MADE_S):
                    content = await self._threads[number](lambda: self._made(number, own, digest, side, whole=whole))
            except TimeoutError:
                raise CacheError(f"the source of the image did not answer within {MADE_S:.0f} s: try again") from None
        if digest not in self._memory:
            self._memory[digest] = content
            self._memory_bytes += len(content)
        while self._memory_bytes > MEMORY_BYTES:
            self._memory_bytes -= len(self._memory.popitem(last=False)[1])
        return content

    def _made(self, number: int, own: int, digest: str, side: int, *, whole: bool) -> bytes:
        cache = self._catalog.caches[number]
        readers: dict[int, ThumbnailReader] = self._local.__dict__.setdefault("readers", {})
        if number not in readers:
            readers[number] = ThumbnailReader(cache.cache, self._image_root, effort=FAST)
        content = readers[number].webp(own, cache.key(own), side, whole=whole)
        self._store.put(digest, content)
        return content
