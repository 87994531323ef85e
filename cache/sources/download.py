"""Downloads of larger files from URLs: each once a machine, for all processes of a pass, into a temporary folder.

The files used last are kept. The folder goes with the process that made it; what a killed process left is removed when
the next folder is made.
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
from ..format import RejectedImageError, Status
from ..location import Location, Url, to_location
from ..storage.atomic import NO_SPACE, PARTIAL, lock_new
from ..store_errors import NOT_FOUND, explain_store_error
from .image_root import open_below, path_below

PREFIX = "clipglot-spool-"
KEPT_BYTES = 4 * 2**30  # of the files used last, and at least KEPT_FILES
KEPT_FILES = 3  # one being read, one that slower processes still read, one on its way


class DownloadCache:
    """A folder of downloaded files. Pickled, it names the same folder, which the process that made it removes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def create(cls) -> "DownloadCache":
        """Make a new folder, in the temporary folder (`TMPDIR`)."""
        _sweep(Path(tempfile.gettempdir()))
        lock = None
        while lock is None:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            lock = lock_new(folder)
        downloads = cls(folder)
        downloads._remove = weakref.finalize(downloads, _remove, folder, lock)
        return downloads

    _remove: Any = None

    def __reduce__(self) -> Any:
        return DownloadCache, (self._folder,)

    def close(self) -> None:
        """Remove the folder, if this process made it."""
        if self._remove:
            self._remove()

    def open(self, url: Url, state: str = "") -> BinaryIO:
        """Open a file, downloaded if it is not there yet.

        Args:
            url: of the file.
            state: tells the file from an earlier one at this URL, see `Url.state`.

        Raises:
            CacheError: it is absent, the store cannot be read, or there is no room.
        """
        path = self.path(url, state)
        while True:
            with suppress(FileNotFoundError):  # not downloaded yet, or already removed again
                os.utime(path)
                return open(path, "rb")
            with _locked(path, wait=True):
                if not path.exists():
                    self._download(url, path)

    def prefetch(self, url: Url, state: str = "") -> None:
        """Begin to download the file that is read next, unless another process does."""
        path = self.path(url, state)
        if not path.exists():
            threading.Thread(target=self._try_download, args=(url, path), daemon=True).start()

    def path(self, url: Url, state: str = "") -> Path:
        """The path of a file once it is downloaded."""
        return self._folder / (hashlib.sha256(f"{url} {state}".encode()).hexdigest()[:32] + Path(url).suffix)

    def _try_download(self, url: Url, path: Path) -> None:
        # Who needs the file will see the error; the folder may be gone when the pass has ended meanwhile.
        with suppress(CacheError, OSError), _locked(path, wait=False):
            if not path.exists():
                self._download(url, path)

    def _download(self, url: Url, path: Path) -> None:
        fs, remote = url.filesystem()
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
                f"{url}: received {partial.stat().st_size:,} of {size:,} bytes: run the same command again to resume"
            )
        partial.rename(path)
        self._evict()

    def _evict(self) -> None:
        """Remove the files used longest ago; a process that has one open reads on."""
        files = []
        for entry in os.scandir(self._folder):
            if not entry.name.endswith((".lock", PARTIAL)):
                with suppress(FileNotFoundError):
                    files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files)[:-KEPT_FILES]:
            if total <= KEPT_BYTES:
                return
            Path(path).unlink(missing_ok=True)
            total -= size


@cache
def _downloads_of_process() -> DownloadCache:
    return DownloadCache.create()


def local_file(name: str) -> Path:
    """A file on the disk: itself, or the download of a URL, made once a process unless the file changes.

    Raises:
        CacheError: a URL at which there is nothing, or that cannot be read.
    """
    location = to_location(name)
    if not isinstance(location, Url):
        return location
    downloads, state = _downloads_of_process(), _state(location)
    downloads.open(location, state).close()
    return downloads.path(location, state)


class SourceFiles:
    """The larger files of a source, by number: on the disk, or downloaded from URLs. Pickled to each process."""

    def __init__(self, root: Location, names: Sequence[str], downloads: DownloadCache | None = None) -> None:
        """Open nothing yet.

        Args:
            root: the image root.
            names: of the files, below it.
            downloads: where files at URLs go; by default where planning has put them.
        """
        self.root = root if isinstance(root, Url) else root.resolve()
        self.names = list(names)
        self._downloads = downloads or (_downloads_of_process() if isinstance(root, Url) else None)
        self._states: dict[int, str] = {}

    def open(self, number: int, buffering: int = -1) -> BinaryIO:
        """Open a file, and begin to download the next one.

        Args:
            number: of the file.
            buffering: as of `open`, on the disk.

        Raises:
            RejectedImageError: it is not below the root, or on the disk cannot be opened.
            CacheError: there is nothing at its URL, or it cannot be read.
        """
        if isinstance(self.root, Path):
            return open_below(self.root, self.names[number], max_bytes=None, buffering=buffering)
        url = self._url(number)
        if url is None:
            raise RejectedImageError(Status.OUTSIDE_ROOT)
        assert self._downloads is not None
        file = self._downloads.open(url, self._state(number, url))
        following = self._url(number + 1) if number + 1 < len(self.names) else None
        if following and (state := self._state(number + 1, following)):  # of merged caches it may be another source's
            self._downloads.prefetch(following, state)
        return file

    def _url(self, number: int) -> Url | None:
        path = path_below(str(self.root), self.names[number])
        return None if path is None else Url(path)

    def _state(self, number: int, url: Url) -> str:
        if number not in self._states:
            self._states[number] = _state(url)
        return self._states[number]


def _state(url: Url) -> str:
    """The state of a file now; "" if there is none."""
    url.refresh()
    return url.state() or ""


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
    """Remove the folders that killed processes of this user left: nobody holds their locks."""
    for folder in temporary.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or just gone
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.getuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
