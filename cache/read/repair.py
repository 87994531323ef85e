"""What to do about what a cache has lost: which chunk marks rows to be embedded anew, or what makes the cache again."""

from collections.abc import Sequence

from ..format import (
    EMB,
    EMBEDDED_ARRAYS,
    HASH,
    NORM,
    STATUS,
    TAUGHT_ARRAYS,
    TEACHER_EMB,
    TEACHER_STATUS,
    TOKENS,
    CacheInfo,
)

REMAKE = "delete the cache and run its `clipglot cache` command again"


def remake(chunks: Sequence[tuple[str, tuple[int, ...]]], info: CacheInfo) -> str:
    """How to make lost chunks again, given as array and index; none stands for what only a plan makes."""
    if chunks and all(is_of_tokens(name) for name, _ in chunks):
        damaged = {"/".join(name.split("/")[:2]) for name, _ in chunks}
        return f"delete {' '.join(sorted(damaged))}: training writes it again"
    marks = {chunk_to_delete(name, index) for name, index in chunks}
    if info.maker is None:
        return "repair what it was made from, and make it again"
    again = f"run {info.maker} again"
    if not marks or None in marks:
        return f"delete the cache and {again}{', then those that appended to it' if info.appended else ''}"
    what = "captions" if all(name in TAUGHT_ARRAYS for name, _ in chunks) else "rows"
    return f"delete {' '.join(sorted(filter(None, marks)))} and {again} to embed these {what} anew"


def is_of_tokens(name: str) -> bool:
    """Whether it is the group of tokens, or something below it."""
    return f"{name}/".startswith(f"{TOKENS}/")


def chunk_to_delete(name: str, index: tuple[int, ...]) -> str | None:
    """The chunk without which a pass embeds anew what a chunk holds; None if no pass makes it.

    A chunk without status is not done, and a further view of one not without its norm.
    """
    if name in TAUGHT_ARRAYS:
        return f"{TEACHER_STATUS}/c/{index[1] if name == TEACHER_EMB else index[0]}"
    if name not in EMBEDDED_ARRAYS:
        return None
    if name in (EMB, NORM) and index[0]:
        return f"{NORM}/c/{index[0]}/{index[1]}"
    return f"{STATUS}/c/{index[0] if name in (STATUS, HASH) else index[1]}"
