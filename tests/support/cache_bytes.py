"""What tests of the pass share: the bytes of a cache, and chunks that no pass seems to have come to."""

from pathlib import Path


def files(folder: Path) -> dict[str, bytes]:
    """All of a cache but tokens, which a run on it may have added."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith("tokens/")}


def undo(cache: Path, *chunks: int) -> None:
    """Make chunks look as if no pass had come to them."""
    for chunk in chunks:
        for name in (f"emb/c/0/{chunk}/0", f"norm/c/0/{chunk}", f"status/c/{chunk}"):
            (cache / "images" / name).unlink()
