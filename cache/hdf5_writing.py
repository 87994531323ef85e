"""Writing the HDF5 file of a cache; `convert` gives it its name when it is whole."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import h5py
import numpy as np
from numpy.typing import NDArray

from .format import ATTRIBUTE, CHECKSUM

# From HDF5 1.10 on every piece of metadata has a checksum, and a file that was not closed is known by its mark.
LIBVER = ("v110", "v110")


class Hdf5Writer:
    """A new file, made by `new_file`."""

    def __init__(self, file: h5py.File, disk: "_Disk") -> None:
        self._file, self._disk = file, disk

    def create_group(self, name: str) -> None:
        """Create a group."""
        self._file.create_group(name)

    def create_array(self, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> "Hdf5Array":
        """A dataset in the one encoding of the format, as `ragged.create_array` makes an array."""
        room = tuple(map(max, shape, chunks))  # a chunk may be larger than what it holds, as in Zarr
        little_endian = np.dtype(dtype).newbyteorder("<")
        dataset = self._file.create_dataset(
            name, shape, dtype=little_endian, chunks=chunks, maxshape=room, fletcher32=True, fillvalue=0
        )
        return Hdf5Array(dataset, self._disk)


class Hdf5Array:
    """A dataset that is written by assigning to its regions."""

    def __init__(self, dataset: h5py.Dataset, disk: "_Disk") -> None:
        self._dataset, self._disk = dataset, disk

    def __setitem__(self, where: tuple[slice, ...], values: NDArray[Any]) -> None:
        self._dataset[where] = values
        self._disk.raise_failure()


@contextmanager
def new_file(path: Path, metadata: Any) -> Iterator[Hdf5Writer]:
    """Write a file anew; the metadata is what a Zarr group has as its attribute.

    Raises:
        OSError: it could not be written.
    """
    text = json.dumps(metadata, ensure_ascii=False).encode()
    with _Disk(path, "w+") as disk:
        with h5py.File(disk, "w", libver=LIBVER) as file:
            file.attrs.create(ATTRIBUTE, np.bytes_(text), dtype=h5py.string_dtype("utf-8", len(text)))
            # Attributes above 64 KB carry no checksum of HDF5's own.
            file.attrs[CHECKSUM] = np.uint32(google_crc32c.value(text))
            yield Hdf5Writer(file, disk)
        disk.raise_failure()


class _Disk(io.FileIO):
    """What HDF5 writes through. The process dies where HDF5 cannot close a file, so a failure is kept, to be raised."""

    _failure: OSError | None = None

    def raise_failure(self) -> None:
        """Raise what went wrong first, if anything did."""
        if self._failure:
            raise self._failure

    def write(self, data: Any) -> int:
        """Write all of it."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest):
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._failure = self._failure or error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Cut or extend the file."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._failure = self._failure or error
            return size or 0
