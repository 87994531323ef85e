"""Regular files, read within bounds: nothing waits for a FIFO, reads a device, or takes memory beyond a stated size."""

import os
import stat
from pathlib import Path

MAX_METADATA_BYTES = 64 * 2**20  # of a JSON file; those of 100 million rows have kilobytes


def open_regular(path: Path) -> int:
    """Open a regular file for reading; return its descriptor. Links are followed: download tools store files as links.

    Raises:
        OSError: it is absent, cannot be opened, or is a FIFO, a device or a folder.
    """
    if stat.S_ISREG(path.stat().st_mode):  # merely to open a device can have an effect
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
    raise OSError("not a regular file")


def read_regular(path: Path, max_bytes: int = MAX_METADATA_BYTES) -> bytes:
    """Read a whole regular file.

    Raises:
        OSError: as `open_regular`, or the file has more than `max_bytes`.
    """
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(f"{size:,} bytes, expected at most {max_bytes:,}")
        return file.read(size)
