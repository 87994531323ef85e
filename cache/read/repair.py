"""Repair of a cache: which commands make lost chunks again, and which chunk to delete so that they do."""

from collections.abc import Iterable, Sequence

from ..errors import ChunkId
from ..format import (
    CAPTION_SETS,
    EMB,
    EMBEDDED_ARRAYS,
    HASH,
    IMPORTED,
    NORM,
    STATUS,
    TEACHER_EMB,
    TEACHER_STATUS,
    TEXT_TARGET_ARRAYS,
    TOKENS,
    CacheInfo,
)

MAKE_AGAIN = "delete the cache and run its `clipglot cache` command again"


def repair_instructions(chunks: Sequence[ChunkId], info: CacheInfo) -> str:
    """How the user makes lost chunks again, e.g. `delete images/status/c/3 and run … again to embed these rows anew`.

    Args:
        chunks: the lost ones. None at all stands for a loss that no pass can make good, e.g. of metadata.
        info: of the cache.
    """
    if chunks and all(is_in_tokens(name) for name, _ in chunks):
        groups = {"/".join(name.split("/")[:2]) for name, _ in chunks}
        return f"delete {' '.join(sorted(groups))}: training writes it again"
    if chunks and all(name.startswith(f"{CAPTION_SETS}/") for name, _ in chunks):
        sets = sorted({name.split("/")[1].rpartition("-")[0] for name, _ in chunks})
        return " and ".join(f"run `clipglot captions CACHE FILE --name {name} --replace`" for name in sets)
    maker = maker_of(info)
    if maker is None:
        return "repair what it was made from, and make it again"
    again = f"run {maker} again"
    if not chunks or any(chunk_to_delete(*chunk) is None for chunk in chunks):
        return f"delete the cache and {again}{', then those that appended to it' if info.appended else ''}"
    rows = "captions" if all(name in TEXT_TARGET_ARRAYS for name, _ in chunks) else "rows"
    return f"delete {' '.join(chunks_to_delete(chunks))} and {again} to embed these {rows} anew"


def maker_of(info: CacheInfo) -> str | None:
    """What the user runs again to make lost chunks; None if nothing makes all of them."""
    kinds = {source.kind for source in info.sources}
    if info.merged or (info.appended and IMPORTED in kinds):
        return None
    if IMPORTED in kinds:
        return "its `clipglot import` command"
    return "your program" if own_kinds(info) else "its `clipglot cache` command"


def is_made_by_commands(info: CacheInfo) -> bool:
    """Whether `clipglot cache` commands make all chunks of a cache."""
    return not info.merged and not own_kinds(info)


def own_kinds(info: CacheInfo) -> list[str]:
    """The kinds of a cache's sources that no `clipglot cache` command reads, sorted: imports, or the user's own."""
    from ..sources.kinds import SOURCES  # here, because it loads pyarrow, which reading a cache does not need

    return sorted({source.kind for source in info.sources}.difference(SOURCES))


def is_in_tokens(name: str) -> bool:
    """Whether a name is that of the group of tokens, or of something in it."""
    return f"{name}/".startswith(f"{TOKENS}/")


def chunks_to_delete(chunks: Iterable[ChunkId]) -> list[str]:
    """The files to delete so that the next pass embeds again what chunks hold, sorted; see `chunk_to_delete`."""
    return sorted({file for chunk in chunks if (file := chunk_to_delete(*chunk))})


def chunk_to_delete(name: str, index: tuple[int, ...]) -> str | None:
    """The file to delete so that the next pass embeds again what a chunk holds; None if no pass makes that chunk.

    A pass takes a chunk without its status for missing, and a further view of a chunk without its norm.

    >>> chunk_to_delete("images/emb", (0, 3, 0)), chunk_to_delete("images/emb", (1, 3, 0))
    ('images/status/c/3', 'images/norm/c/1/3')
    """
    if name in TEXT_TARGET_ARRAYS:
        return f"{TEACHER_STATUS}/c/{index[1] if name == TEACHER_EMB else index[0]}"
    if name not in EMBEDDED_ARRAYS:
        return None
    if name in (EMB, NORM) and index[0]:
        return f"{NORM}/c/{index[0]}/{index[1]}"
    return f"{STATUS}/c/{index[0] if name in (STATUS, HASH) else index[1]}"
