"""Sealing: the last step of a pass counts images by status and exact duplicates, and marks the cache complete."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import HASH, NORM, STATUS, TOKENS, Status
from ..read.cache import Cache
from ..storage.local import SHARDS
from .absent_images import ABSENT, tried
from .shard import WHOLE, Shard
from .text_targets import missing_text_target_chunks
from .views import missing_views

HASHES_PER_ROUND = 2**24  # of 16 bytes, sorted in memory at once; more are counted in several rounds


def num_missing(cache: Cache, num_views: int = 1, shards: Collection[Shard] = (WHOLE,)) -> int:
    """Number of chunks of images and of text targets in some shards that are still to be made."""
    images = missing_views(cache, max(num_views, cache.info.num_views))
    captions = missing_text_target_chunks(cache) if cache.info.source.has_teacher else []
    return sum(chunk in shard for chunk in (*images, *captions) for shard in shards)


def seal_if_whole(cache: Cache, num_views: int, shard: Shard, *, changed: bool) -> int:
    """Seal a cache, unless other shards have still to make some of its chunks: the last of them seals.

    Returns:
        The number of these chunks.

    Raises:
        CacheError: as `seal`.
    """
    cache.arrays.refresh()  # another shard may have sealed it
    num_left = 0 if shard.is_whole else num_missing(cache, num_views)
    if not num_left:
        seal(cache, num_views, changed=changed, sweep=shard.is_whole)
    return num_left


def seal(cache: Cache, num_views: int = 1, *, changed: bool = True, sweep: bool = True) -> None:
    """Count images by status and mark the cache complete.

    Several processes may seal at once: they write the same.

    Args:
        cache: without missing chunks.
        num_views: views that it shall have; never fewer than it has.
        changed: whether chunks were missing, so that the counts may differ.
        sweep: partial files of killed processes; shards sweep when the last of them leaves.

    Raises:
        CacheError: not one image could be embedded, or not one for a further view; the next pass tries again.
    """
    num_views = max(num_views, cache.info.num_views)
    if missing_views(cache, num_views):
        raise CacheError(f"{cache.path}: chunks vanished while it was sealed: run the same command again")
    if sweep:
        cache.arrays.store.sweep(keep=TOKENS)  # while views are added, runs may be writing there
    cache.arrays.store.delete_below(SHARDS)
    if not changed and cache.info.state == "sealed" and cache.info.num_views == num_views:
        return
    counts = {status.label: count for status, count in cache.count_status().items()}
    if Status.EMBEDDED.label not in counts:
        cache.arrays.store.delete_below(f"{STATUS}/c")
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        hint = tried(cache, [0]) if set(counts) <= {status.label for status in ABSENT} else ": check --image-root"
        raise CacheError(
            f"{cache.path}: not one image could be embedded ({reasons}){hint} (links that lead out of it are not "
            "followed), and run it again"
        )
    norm = cache.arrays.array(NORM)
    empty = [view for view in range(cache.info.num_views, num_views) if not np.any(norm[view])]
    for view in empty:
        cache.arrays.store.delete_below(f"{NORM}/c/{view}")
    if empty:
        raise CacheError(
            f"{cache.path}: not one image could be read again: check --image-root and run the command again"
        )
    num_duplicates = count_duplicates(cache)
    sealed = replace(cache.info, state="sealed", counts=counts, num_views=num_views, num_duplicates=num_duplicates)
    if sealed != cache.info:
        cache.arrays.write_info(sealed)


def count_duplicates(cache: Cache) -> int | None:
    """Count embedded images with the bytes of an earlier one; None for a cache without hashes.

    Memory does not grow with the cache: a round takes the hashes of one residue class, and hashes spread evenly.
    """
    if not cache.arrays.has(HASH):
        return None
    num_rounds = -(-len(cache) // HASHES_PER_ROUND)
    return sum(_count_of_round(cache, number, num_rounds) for number in range(num_rounds))


def _count_of_round(cache: Cache, number: int, num_rounds: int) -> int:
    parts: list[NDArray[np.uint64]] = []
    for chunk in range(cache.num_chunks):
        hashes = cache.hashes(chunk)
        of_round = (hashes[:, 0] % num_rounds == number) & (cache.status(chunk) == Status.EMBEDDED)
        parts.append(hashes[of_round & hashes.any(axis=1)])
    # Both halves as one value of 16 bytes: only equality counts, so byte order does not matter.
    values = np.ascontiguousarray(np.concatenate(parts)).view("V16").ravel()
    return len(values) - len(np.unique(values))
