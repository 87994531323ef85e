"""Larger files from URLs, each fetched once a machine, for all processes of a pass, into a temporary folder.

A few are kept. The folder goes with the process that made it; what a killed one left goes when the next is made.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CacheError
from ..format import Status
from ..location import Location, Url, to_location
from ..storage.atomic import NO_SPACE, PARTIAL, lock_new
from ..storage.urls import NOT_FOUND, below, explain_store_error, open_filesystem, state_of
from .image_root import resolve_below
from .source import RejectedImageError

PREFIX = "clipglot-spool-"
KEPT_BYTES = 4 * 2**30  # of files that were used last, and at least KEPT_FILES
KEPT_FILES = 3  # one being read, one that slower processes still read, one on its way


class DownloadCache:
    """A folder of fetched files. Pickled, it names the same folder, which the first process keeps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def create(cls) -> "DownloadCache":
        """A new one, in the temporary folder (`TMPDIR`)."""
        _sweep(Path(tempfile.gettempdir()))
        held = None
        while held is None:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            held = lock_new(folder)
        spool = cls(folder)
        spool._remove = weakref.finalize(spool, _remove, folder, held)
        return spool

    _remove: Any = None

    def __reduce__(self) -> Any:
        return DownloadCache, (self._folder,)

    def close(self) -> None:
        """Remove the folder, if this process made it."""
        if self._remove:
            self._remove()

    def open(self, url: Url, state: str = "") -> BinaryIO:
        """A file, fetched unless it is there.

        Args:
            url: of it.
            state: what tells it from what was at this URL before.

        Raises:
            CacheError: it is absent, the store cannot be read, or there is no room.
        """
        path = self.path(url, state)
        while True:
            with suppress(FileNotFoundError):  # not fetched yet, or already gone again
                os.utime(path)
                return open(path, "rb")
            with _locked(path, wait=True):
                if not path.exists():
                    self._fetch(url, path)

    def fetch_ahead(self, url: Url, state: str = "") -> None:
        """Begin to fetch a file that will be wanted next, unless another process does."""
        path = self.path(url, state)
        if not path.exists():
            threading.Thread(target=self._try_ahead, args=(url, path), daemon=True).start()

    def path(self, url: Url, state: str = "") -> Path:
        """Where a file is once it is fetched."""
        return self._folder / (hashlib.sha256(f"{url} {state}".encode()).hexdigest()[:32] + Path(url).suffix)

    def _try_ahead(self, url: Url, path: Path) -> None:
        # Who needs it will see the error; the folder may be gone when the pass has ended meanwhile.
        with suppress(CacheError, OSError), _locked(path, wait=False):
            if not path.exists():
                self._fetch(url, path)

    def _fetch(self, url: Url, path: Path) -> None:
        fs, remote = open_filesystem(url)
        partial = path.with_suffix(PARTIAL)
        try:
            with explain_store_error(url, ""):
                fs.get_file(remote, str(partial))
                size = fs.info(remote)["size"]
        except NOT_FOUND as error:
            raise CacheError(f"{url}: no such object: check the URL, or upload it again") from error
        except CacheError as error:
            partial.unlink(missing_ok=True)
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_SPACE:
                raise CacheError(
                    f"{url} does not fit into {self._folder.parent}: free some space, or set TMPDIR to a larger folder"
                ) from error
            raise
        if size is not None and partial.stat().st_size != size:
            raise CacheError(
                f"{url}: {partial.stat().st_size:,} bytes came of {size:,}: run the same command again to resume"
            )
        partial.rename(path)
        self._evict()

    def _evict(self) -> None:
        """Take away what was used longest ago; who has it open reads on."""
        found = []
        for entry in os.scandir(self._folder):
            if not entry.name.endswith((".lock", PARTIAL)):
                with suppress(FileNotFoundError):
                    found.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found)[:-KEPT_FILES]:
            if total <= KEPT_BYTES:
                return
            Path(path).unlink(missing_ok=True)
            total -= size


@cache
def _for_this_process() -> DownloadCache:
    return DownloadCache.create()


def local_file(named: str) -> Path:
    """A file that is read by its path: itself, or what was fetched of a URL, once a process unless it changes.

    Raises:
        CacheError: a URL at which there is nothing, or that cannot be read.
    """
    location = to_location(named)
    if not isinstance(location, Url):
        return location
    spool, state = _for_this_process(), state_of(location) or ""
    spool.open(location, state).close()
    return spool.path(location, state)


class Files:
    """The larger files of a source, by their numbers: on the disk, or fetched from URLs. Pickled to each process."""

    def __init__(self, root: Location, names: Sequence[str]) -> None:
        """Open nothing yet.

        Args:
            root: the image root.
            names: of the files, below it.
        """
        self.root = root if isinstance(root, Url) else root.resolve()
        self._names = list(names)
        self._spool = _for_this_process() if isinstance(root, Url) else None  # where planning has fetched them to
        self._states: dict[int, str] = {}

    def open(self, number: int) -> BinaryIO:
        """A file.

        Raises:
            RejectedImageError: it is not below the root; of a local one, it is absent.
            CacheError: at its URL there is nothing, or it cannot be read.
        """
        if self._spool is None:
            assert isinstance(self.root, Path)
            return open(resolve_below(self.root, self._names[number]), "rb")
        url = self._url(number)
        if url is None:
            raise RejectedImageError(Status.OUTSIDE_ROOT)
        file = self._spool.open(url, self._state(number, url))
        following = self._url(number + 1) if number + 1 < len(self._names) else None
        if following and (state := self._state(number + 1, following)):  # of merged caches it may be another source's
            self._spool.fetch_ahead(following, state)
        return file

    def _url(self, number: int) -> Url | None:
        return Url(f"{self.root}/{name}") if below(str(self.root), name := self._names[number]) else None

    def _state(self, number: int, url: Url) -> str:
        if number not in self._states:
            self._states[number] = state_of(url) or ""
        return self._states[number]


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[None]:
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _remove(folder: Path, descriptor: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)


def _sweep(temporary: Path) -> None:
    """Remove what killed processes of this user left: nobody holds it."""
    for folder in temporary.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or just gone
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.getuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
