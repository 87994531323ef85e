"""Token ids of a cache's captions on disk: groups `tokens/<key>` of `ids` and `offsets`, so that tokenizing runs once.

The caller passes the key, a sha256 over all that determines the ids. This module writes, maps and checks the groups.
The folder `tokens` is in the cache; if the cache is not writable, the caller chooses another place.
"""

import errno
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import DamagedCacheError, Fault
from .atomic import atomic_directory, explain_os_error, lock_folder
from .encoding import UNREADABLE_METADATA, open_array
from .local import DurableLocalStore
from .mmap import MmapRows
from .ragged import StreamedArray

OFFSETS_AT_A_TIME = 2**21
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
TOKEN_GROUP = re.compile("[0-9a-f]{64}")
ALREADY_EXISTS = (errno.EEXIST, errno.ENOTEMPTY)


@dataclass(frozen=True, slots=True)
class StoredTokens:
    """Memory-mapped group of tokens: caption i of M is `ids[offsets[i]:offsets[i + 1]]`.

    Attributes:
        ids: `[T] uint16 | uint32`.
        offsets: `[M + 1] int64`.
    """

    ids: MmapRows
    offsets: MmapRows


def can_write(folder: Path) -> bool:
    """Whether a folder is writable, tried with a temporary file; file modes do not show read-only mounts.

    Creates the folder if it is absent.

    Raises:
        CacheError: another error, e.g. a full disk.
    """
    with explain_os_error(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return True
        except OSError as error:
            if error.errno in READ_ONLY:
                return False
            raise


def write_tokens(group: Path, dtype: str, blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> None:
    """Write a group of tokens atomically, unless it exists. Waits while another process writes there.

    Args:
        group: folder `tokens/<key>`.
        dtype: of the ids.
        blocks: ids `[T']` and lengths `[M']` of successive captions; not iterated over if the group exists.

    Raises:
        CacheError: the group cannot be written, e.g. on a full disk.
    """
    with lock_folder(group.parent, wait=True) as is_locked, explain_os_error(group):
        if group.exists():
            return
        zarr.open_group(DurableLocalStore(group.parent), mode="a", zarr_format=3)
        try:
            partial_folder = atomic_directory(group, alone=is_locked)
            with partial_folder as partial, (store := DurableLocalStore(partial)).written_by_block():
                root = zarr.create_group(store, zarr_format=3)
                ids, offsets = StreamedArray(root, "ids", dtype), StreamedArray(root, "offsets", "int64")
                offsets.append(np.zeros(1, np.int64))
                end = 0
                for block, lengths in blocks:
                    ids.append(block.astype(dtype))
                    offsets.append(end + np.cumsum(lengths, dtype=np.int64))
                    end += len(block)
                ids.close()
                offsets.close()
        except OSError as error:
            if error.errno not in ALREADY_EXISTS:  # without locks, another process may have been first
                raise


def map_tokens(group: Path, num_captions: int, *, check: bool = True) -> StoredTokens:
    """Memory-map a group of tokens.

    Args:
        group: folder `tokens/<key>`.
        num_captions: M.
        check: read all chunks once and compare their checksums.

    Raises:
        CacheError: the group is damaged, or holds another number of captions. The message says what to delete.
    """
    remedy = _remedy(group)
    try:
        root = zarr.open_group(DurableLocalStore(group, read_only=True), mode="r")
        arrays = {name: open_array(root, name) for name in ("ids", "offsets")}
        types = (arrays["ids"].dtype.name, arrays["offsets"].dtype.name, arrays["ids"].ndim, arrays["offsets"].ndim)
        if types not in (("uint16", "int64", 1, 1), ("uint32", "int64", 1, 1)):
            raise ValueError(f"types and axes are {types}")
    except UNREADABLE_METADATA as error:
        raise DamagedCacheError(Fault(f"{group} is no whole group of tokens ({error})", remedy)) from error
    ids, offsets = (MmapRows(array, group / name, remedy=lambda _: remedy) for name, array in arrays.items())
    if len(offsets) != num_captions + 1:
        message = f"{group} holds {len(offsets) - 1:,} captions, expected {num_captions:,}"
        raise DamagedCacheError(Fault(message, remedy))
    if check:
        ids.check()
        offsets.check()
        if not _ascends(StoredTokens(ids, offsets)):
            raise DamagedCacheError(Fault(f"{group}/offsets: not ascending to {len(ids):,}", remedy))
    return StoredTokens(ids, offsets)


def require_ids_below(tokens: StoredTokens, vocab_size: int, context_length: int, group: Path) -> None:
    """Raise unless all ids are those of a vocabulary, and no caption is longer than the context.

    Args:
        tokens: with offsets that ascend.
        vocab_size: number of ids.
        context_length: most ids of a caption.
        group: that the tokens were mapped from, for the message.

    Raises:
        DamagedCacheError: they are not, so that the group was not made by its tokenizer.
    """
    size = OFFSETS_AT_A_TIME
    ids = (tokens.ids.read(start, start + size) for start in range(0, len(tokens.ids), size))
    ends = (tokens.offsets.read(start, start + size + 1) for start in range(0, len(tokens.offsets) - 1, size))
    largest = max((int(block.max()) for block in ids), default=0)
    longest = max((int(np.diff(block).max()) for block in ends), default=0)
    if largest >= vocab_size or longest > context_length:
        message = (
            f"{group}: ids up to {largest:,}, up to {longest:,} of a caption, expected ids below {vocab_size:,}, at "
            f"most {context_length:,} of a caption"
        )
        raise DamagedCacheError(Fault(message, _remedy(group)))


def find_token_faults(tokens: Path, num_captions: int) -> Iterator[Fault]:
    """Yield the faults of all groups in a folder `tokens`."""
    for group in sorted(tokens.iterdir()) if tokens.is_dir() else ():
        if not TOKEN_GROUP.fullmatch(group.name):
            continue  # partial folder of a killed writer
        try:
            stored = map_tokens(group, num_captions, check=False)
        except DamagedCacheError as error:
            yield error.fault
            continue
        faults = [*stored.ids.faults(), *stored.offsets.faults()]
        yield from faults
        if not faults and not _ascends(stored):
            yield Fault(f"{group}/offsets: not ascending to {len(stored.ids):,}", _remedy(group))


def _remedy(group: Path) -> str:
    return f"delete {group}: training writes it again"


def _ascends(stored: StoredTokens) -> bool:
    last = 0
    for start in range(0, len(stored.offsets), OFFSETS_AT_A_TIME):
        block = stored.offsets.read(start, start + OFFSETS_AT_A_TIME)
        if (np.diff(block, prepend=last) < 0).any():
            return False
        last = int(block[-1])
    return int(stored.offsets.read(0, 1)[0]) == 0 and last == len(stored.ids)
