"""HDF5 caches as a stranger could make them, read in a child process of bounded memory."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import h5py
import numpy as np
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify

Change = Callable[[Path], object]
STATUS, TEXT = "images/status", "captions/text/bytes"
RAW = {"fletcher32": True, "fillvalue": 0}


def _in_file(change: Callable[[h5py.File], object]) -> Change:
    def apply(path: Path) -> None:
        with h5py.File(path, "r+", locking=False) as file:
            change(file)

    return apply


def _remade(name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str, **how: Any) -> Change:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, shape, chunks=chunks, dtype=dtype, **RAW | how)

    return _in_file(change)


def _link(make: Callable[[h5py.File], object]) -> Change:
    def change(file: h5py.File) -> None:
        del file[STATUS]
        file[STATUS] = make(file)

    return _in_file(change)


def _external(file: h5py.File) -> None:
    shape, dtype = file[STATUS].shape, file[STATUS].dtype
    del file[STATUS]
    file.create_dataset(STATUS, shape, dtype, external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(file[STATUS].shape, "uint8")
    layout[...] = h5py.VirtualSource("/etc/passwd", STATUS, file[STATUS].shape)
    del file[STATUS]
    file.create_virtual_dataset(STATUS, layout)


def _huge_attribute(file: h5py.File) -> None:
    del file.attrs["clipglot"]
    space = h5py.h5s.create_simple((2**33,))
    kind = h5py.h5t.py_create(np.dtype("S1000"))
    try:
        h5py.h5a.create(file.id, b"clipglot", kind, space)
    except (OSError, RuntimeError, ValueError):
        file.attrs["clipglot"] = np.zeros(1000, "S50")


def _loop(file: h5py.File) -> None:
    file["images/again"] = file["images"]


def _deep(file: h5py.File) -> None:
    file.create_group("/".join(["deep"] * 2000))


def _planned(file: h5py.File) -> None:
    text = bytes(file.attrs["clipglot"]).replace(b'"sealed"', b'"planned"')
    file.attrs.create("clipglot", np.bytes_(text), dtype=h5py.string_dtype("utf-8", len(text)))
    file.attrs["clipglot_crc32c"] = np.uint32(google_crc32c.value(text))


def _instead(make: Callable[[Path], object]) -> Change:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def _beyond(file: h5py.File) -> None:
    file["captions/text/offsets"][-1] = 10**15


CHANGES: dict[str, Change] = {
    "fifo": _instead(os.mkfifo),
    "device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "soft link": _link(lambda file: h5py.SoftLink("/images/norm")),
    "external link": _link(lambda file: h5py.ExternalLink("/etc/passwd", "x")),
    "second name": _link(lambda file: file["images/norm"]),
    "external storage": _in_file(_external),
    "virtual dataset": _in_file(_virtual),
    "group in itself": _in_file(_loop),
    "deep groups": _in_file(_deep),
    "1e15 rows in many chunks": _remade(STATUS, (10**15,), (8,), "uint8"),
    "1e12 rows": _remade(STATUS, (10**12,), (2**24,), "uint8"),
    "4e9 bytes in a chunk": _remade(TEXT, (2**32 - 2,), (2**32 - 2,), "uint8"),
    "deflated": _remade(TEXT, (2**31,), (2**20,), "uint8", compression="gzip"),
    "shuffled": _remade(STATUS, (40,), (8,), "uint8", shuffle=True),
    "big-endian": _remade("images/norm", (1, 40), (1, 8), ">f4"),
    "texts": _remade(STATUS, (40,), (8,), "S5", fillvalue=b""),
    "huge attribute": _in_file(_huge_attribute),
    "named type": _in_file(lambda file: file.__setitem__("images/type", np.dtype("f8"))),
    "planned": _in_file(_planned),
    "offsets beyond": _in_file(_beyond),
}
"""What a stranger can do to a cache in an HDF5 file, by name."""


def read(case: list[str]) -> None:
    """Change a copy of a cache in an HDF5 file, then verify it and read all of it."""
    change, original = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copyfile(original, Path(folder, "own.h5")))
        CHANGES[change](path)
        cache = Cache(path)
        faults = verify(cache)
        cache.image_emb(), cache.norm(), cache.status(), cache.keys(), cache.captions(), cache.caption_image()
        assert not faults, faults[0]
