"""Files written again and again, as by fuzz tests."""

from pathlib import Path


def write_fresh(path: Path, data: bytes) -> Path:
    """Write a file after unlinking the old one. To truncate it makes some file systems wait for the disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path
