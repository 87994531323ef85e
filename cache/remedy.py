"""What to do about a chunk of a cache that is lost or damaged."""

from .format import EMB, EMBEDDED_ARRAYS, NORM, STATUS, TEACHER_EMB, TEACHER_STATUS

REMAKE = "delete the cache and run its `clipglot cache` command again"


def remedy(chunks: list[tuple[str, tuple[int, ...]]]) -> str:
    """What to do about lost chunks, given as array and index: those of the pass can be made again alone.

    A chunk without status is not done, and a further view of one not without its norm.
    """
    if chunks and all(name in (TEACHER_EMB, TEACHER_STATUS) for name, _ in chunks):
        taught = {f"{TEACHER_STATUS}/c/{index[1] if name == TEACHER_EMB else index[0]}" for name, index in chunks}
        return (
            f"delete {' '.join(sorted(taught))} and run its `clipglot cache` command again to embed these captions anew"
        )
    if not chunks or any(name not in EMBEDDED_ARRAYS for name, _ in chunks):
        return REMAKE
    files = sorted(
        {
            f"{NORM}/c/{index[0]}/{index[1]}"
            if name in (EMB, NORM) and index[0]
            else f"{STATUS}/c/{index[0] if name == STATUS else index[1]}"
            for name, index in chunks
        }
    )
    return f"delete {' '.join(files)} and run its `clipglot cache` command again to embed these rows anew"
