"""Damage to caches: a flipped byte, and wrong values under a right checksum."""

from pathlib import Path
from typing import Any

import zarr


def flip_a_byte(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rewrite(cache: Path, name: str, where: Any, value: Any) -> None:
    """Write wrong values into an array, with the right checksum."""
    with zarr.config.set({"array.write_empty_chunks": True}):
        zarr.open_group(cache, mode="r+")[name][where] = value
