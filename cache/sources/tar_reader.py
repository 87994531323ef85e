"""Reads images out of tars, each from its place or, where that is not known yet, by its name."""

import os
import re
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import Status
from ..location import Location, Url
from ..storage.urls import below
from .download import DownloadCache
from .image_root import MAX_FILE_BYTES, resolve_below
from .source import Reader, RejectedImageError
from .tar_index import DamagedTarError, members, read_bytes, readable, split_name

BY_NAME, NO_BYTES = -1, -2  # in place of a locator's start; the size of the latter is a status
_REASONS = frozenset(Status) - {Status.PENDING, Status.EMBEDDED}
KEPT_OPEN = 4  # tars, with their indices
Places = dict[str, tuple[int, int]]  # of the images of a tar by key: start and size, or NO_BYTES and a status


class _Tar:
    """An open tar; closed when nobody has it any more."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self.descriptor, self.where = file.fileno(), where
        self.places: Places | None = None  # until one is asked for
        self.otherwise = Status.MISSING  # of a key that has no place
        weakref.finalize(self, file.close)

    def place(self, keys: Sequence[str], extensions: Sequence[str]) -> tuple[int, int]:
        """Where an image lies, by the first of its keys that is there."""
        if self.places is None:
            self.places = {}
            self._index(self.places, {extension: i for i, extension in enumerate(extensions)})
        places = (self.places[key] for key in keys if key in self.places)
        return next(places, (NO_BYTES, int(self.otherwise)))

    def _index(self, places: Places, rank: dict[str, int]) -> None:
        """Note where the images of a tar lie. Of a damaged one, those before the damage."""
        best: dict[str, int] = {}
        try:
            for member in members(self.descriptor, self.where):
                key, extension = split_name(member.name) or ("", "")
                if rank.get(extension, len(rank)) < best.get(key, len(rank)):
                    best[key] = rank[extension]
                    known = (member.start, member.size) if member.is_file else (NO_BYTES, int(Status.UNREADABLE))
                    places[readable(key)] = known
        except DamagedTarError:
            self.otherwise = Status.DAMAGED

    def image(self, start: int, size: int) -> bytes | Status:
        """The bytes at a place."""
        if start == NO_BYTES:
            return Status(size) if size in _REASONS else Status.UNREADABLE
        if size > MAX_FILE_BYTES:
            return Status.TOO_LARGE
        try:
            found = read_bytes(self.descriptor, start, size)
        except OSError:
            return Status.UNREADABLE
        if len(found) < size:
            raise CacheError(
                f"{self.where} has {os.fstat(self.descriptor).st_size:,} bytes, but an image of {size:,} lies at byte "
                f"{start:,}: it has changed since the cache was planned: put the old one back, or choose another -o"
            )
        return found


def keys_in(key: str, tar: str) -> list[str]:
    """What an image's key can be in its tar: merged caches have prefixes, and it may hold the tar's name itself.

    >>> keys_in("00000.tar/12", "00000.tar"), keys_in("news/00000.tar/12", "00000.tar")
    (['12'], ['12'])
    >>> keys_in("0.tar/a/0.tar/12", "0.tar")  # without a prefix first
    ['a/0.tar/12', '12']
    """
    names = re.finditer(rf"(?:^|(?<=/))(?={re.escape(tar)}/)", key)
    return [key[name.end() + len(tar) + 1 :] for name in names]


class TarReader(Reader):
    """Gives byte ranges of tars below a root. At a URL a tar is fetched once for all processes, the next one ahead."""

    def __init__(self, root: Location, files: Sequence[str], extensions: Sequence[str]) -> None:
        """Open nothing yet.

        Args:
            root: the image root.
            files: the tars, below it.
            extensions: of images; of several in one sample, the first in this order.
        """
        self._root, self._files, self._extensions = root, list(files), list(extensions)
        self._spool = DownloadCache.create() if isinstance(root, Url) else None
        self._open: OrderedDict[int, _Tar | Status] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_open": OrderedDict()}

    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of each image.

        Raises:
            CacheError: a tar is absent, or shorter than when it was planned.
        """
        assert locators is not None
        for key, (number, start, size) in zip(keys, locators.tolist(), strict=True):
            tar = self._tar(number)
            if isinstance(tar, Status):
                yield tar
                continue
            if start == BY_NAME:
                start, size = tar.place(keys_in(key, self._files[number]), self._extensions)
            yield tar.image(start, size)

    def _tar(self, number: int) -> _Tar | Status:
        if number not in self._open:
            if not 0 <= number < len(self._files):
                raise CacheError(f"an image lies in file {number} of {len(self._files)}: run `clipglot verify`")
            self._open[number] = self._opened(number)
            while len(self._open) > KEPT_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def _opened(self, number: int) -> _Tar | Status:
        name = self._files[number]
        if isinstance(self._root, Url):
            assert self._spool is not None
            if below(self._root, name) is None:
                return Status.OUTSIDE_ROOT
            file = self._spool.open(Url(f"{self._root}/{name}"))
            if number + 1 < len(self._files):
                self._spool.fetch_ahead(Url(f"{self._root}/{self._files[number + 1]}"))
            return _Tar(file, f"{self._root}/{name}")
        try:
            path = resolve_below(Path(self._root).resolve(), name)
            return _Tar(open(path, "rb", buffering=0), str(path))
        except RejectedImageError as rejected:
            if rejected.status == Status.OUTSIDE_ROOT:
                return rejected.status
            raise self._absent(name, rejected.status.label) from rejected
        except OSError as error:
            raise self._absent(name, error.strerror or str(error)) from error

    def _absent(self, name: str, reason: str) -> CacheError:
        return CacheError(
            f"{self._root}/{name} cannot be read ({reason}): put it back, or pass the --image-root that it is below "
            "now, and run the same command again"
        )
