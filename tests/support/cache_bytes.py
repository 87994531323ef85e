"""Bytes of the files of a folder or cache, and chunks made missing again."""

from pathlib import Path


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cache_files(cache: Path) -> dict[str, bytes]:
    """Every file of a cache except tokens, which a run on it may have added."""
    return {name: content for name, content in files(cache).items() if not name.startswith("tokens/")}


def delete_chunks(cache: Path, *chunks: int) -> None:
    """Delete chunks of embeddings, so that they are missing again."""
    for chunk in chunks:
        for name in (f"emb/c/0/{chunk}/0", f"norm/c/0/{chunk}", f"status/c/{chunk}"):
            (cache / "images" / name).unlink()
