"""Reader of images in tars, each from its place or, where the place is not known yet, by its name."""

import os
import re
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import RejectedImageError, Status
from ..location import Location, Url
from .download import DownloadCache, SourceFiles
from .image_root import MAX_FILE_BYTES
from .reader import Reader
from .tar_index import DamagedTarError, members, read_bytes, readable, split_name

BY_NAME, NO_BYTES = -1, -2  # in place of a locator's start; the size of the latter is a status
_REASONS = frozenset(Status) - {Status.PENDING, Status.EMBEDDED}
KEPT_OPEN = 4  # tars, with their indices
Places = dict[str, tuple[int, int]]  # of the images of a tar by key: start and size, or NO_BYTES and a status


class TarReader(Reader):
    """Reads byte ranges of tars below a root.

    A tar at a URL is downloaded once for all processes, and the next one ahead.
    """

    def __init__(self, root: Location, files: Sequence[str], extensions: Sequence[str]) -> None:
        """Open nothing yet.

        Args:
            root: the image root.
            files: the tars, below it.
            extensions: of images; of several in one sample, the first in this order.
        """
        self._files = SourceFiles(root, files, DownloadCache.create() if isinstance(root, Url) else None)
        self._extensions = list(extensions)
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
                start, size = tar.place(keys_in(key, self._files.names[number]), self._extensions)
            yield tar.image(start, size)

    def _tar(self, number: int) -> "_Tar | Status":
        if number not in self._open:
            if not 0 <= number < len(self._files.names):
                raise CacheError(f"an image lies in file {number} of {len(self._files.names)}: run `clipglot verify`")
            self._open[number] = self._open_tar(number)
            while len(self._open) > KEPT_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]

    def _open_tar(self, number: int) -> "_Tar | Status":
        where = f"{self._files.root}/{self._files.names[number]}"
        try:
            return _Tar(self._files.open(number, buffering=0), where)
        except RejectedImageError as rejected:
            if rejected.status == Status.OUTSIDE_ROOT:
                return rejected.status
            reason = getattr(rejected.__cause__, "strerror", None) or rejected.status.label
            raise CacheError(
                f"{where} cannot be read ({reason}): put it back, or pass the --image-root that it is below now, and "
                "run the same command again"
            ) from rejected


class _Tar:
    """An open tar, closed when nothing refers to it any more."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self.descriptor, self.where = file.fileno(), where
        self.places: Places | None = None  # until one is asked for
        self.otherwise = Status.MISSING  # of a key that has no place
        weakref.finalize(self, file.close)

    def place(self, keys: Sequence[str], extensions: Sequence[str]) -> tuple[int, int]:
        """The place of an image, by the first of its possible keys that the tar has."""
        if self.places is None:
            self.places = {}
            self._index(self.places, {extension: i for i, extension in enumerate(extensions)})
        places = (self.places[key] for key in keys if key in self.places)
        return next(places, (NO_BYTES, int(self.otherwise)))

    def _index(self, places: Places, rank: dict[str, int]) -> None:
        """Note the places of the images of a tar; of a damaged one, those before the damage."""
        best: dict[str, int] = {}
        try:
            for member in members(self.descriptor, self.where):
                key, extension = split_name(member.name, rank) or ("", "")
                if rank.get(extension, len(rank)) < best.get(key, len(rank)):
                    best[key] = rank[extension]
                    place = (member.start, member.size) if member.is_file else (NO_BYTES, int(Status.UNREADABLE))
                    places[readable(key)] = place
        except DamagedTarError:
            self.otherwise = Status.DAMAGED

    def image(self, start: int, size: int) -> bytes | Status:
        """The bytes at a place."""
        if start == NO_BYTES:
            return Status(size) if size in _REASONS else Status.UNREADABLE
        if size > MAX_FILE_BYTES:
            return Status.TOO_LARGE
        try:
            data = read_bytes(self.descriptor, start, size)
        except OSError:
            return Status.UNREADABLE
        if len(data) < size:
            raise CacheError(
                f"{self.where} has {os.fstat(self.descriptor).st_size:,} bytes, but an image of {size:,} lies at byte "
                f"{start:,}: it has changed since the cache was planned: put the old one back, or choose another -o"
            )
        return data


def keys_in(key: str, tar: str) -> list[str]:
    """What an image's key can be in its tar: merged caches have prefixes, and it may hold the tar's name itself.

    >>> keys_in("00000.tar/12", "00000.tar"), keys_in("news/00000.tar/12", "00000.tar")
    (['12'], ['12'])
    >>> keys_in("0.tar/a/0.tar/12", "0.tar")  # without a prefix first
    ['a/0.tar/12', '12']
    """
    names = re.finditer(rf"(?:^|(?<=/))(?={re.escape(tar)}/)", key)
    return [key[name.end() + len(tar) + 1 :] for name in names]
