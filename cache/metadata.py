"""Storage of a cache's metadata in the attributes of its Zarr group: one JSON object and its checksum.

Both go into one write of zarr.json, so a reader always finds a matching pair, even while others write the cache.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import google_crc32c
import zarr

from .errors import CacheError, DamagedCacheError, Fault
from .format import ATTRIBUTE, CHECKSUM, SETS_ATTRIBUTE, SETS_CHECKSUM, CacheInfo, CaptionSetInfo

RESTORE = "put back what it held, or delete the cache and make it again"


def checksum_of(metadata: Any) -> int:
    """crc32c of metadata as JSON text with sorted keys, no spaces and only ASCII.

    >>> checksum_of({"b": 1, "a": "é"}) == checksum_of({"a": "é", "b": 1})
    True
    """
    return int(google_crc32c.value(json.dumps(metadata, sort_keys=True, separators=(",", ":")).encode()))


def with_checksum(metadata: Any) -> dict[str, Any]:
    """The attributes of a cache's group: metadata and their checksum."""
    return {ATTRIBUTE: metadata, CHECKSUM: checksum_of(metadata)}


def write_metadata(root: zarr.Group, info: CacheInfo) -> None:
    """Replace the metadata in a group that is open for writing."""
    root.update_attributes(with_checksum(info.to_attributes()))  # one write; `attrs.update` would write twice


def read_metadata(attributes: Mapping[str, Any], where: str, restore: str = RESTORE) -> CacheInfo:
    """Read metadata after a check against their checksum. Older caches have neither a checksum nor `CacheInfo.arrays`.

    Args:
        attributes: of the group.
        where: the path or URL of the cache, for messages.
        restore: what to do about a damaged zarr.json.

    Raises:
        CacheError: no clipglot cache, one of another format, or damaged metadata.
    """
    metadata = attributes.get(ATTRIBUTE)
    is_older = CHECKSUM not in attributes and not (isinstance(metadata, dict) and metadata.get("arrays"))
    if ATTRIBUTE in attributes and not is_older:
        actual, expected = checksum_of(metadata), attributes.get(CHECKSUM)
        if actual != expected:
            raise CacheError(
                f"{where} has damaged metadata: zarr.json, {ATTRIBUTE!r} has crc32c {actual}, expected {expected} "
                f"({CHECKSUM!r}); the file was damaged, or edited by hand: {restore}"
            )
    return CacheInfo.from_attributes(attributes, where)


def sets_attributes(sets: Sequence[CaptionSetInfo]) -> dict[str, Any]:
    """The attributes that name the caption sets of a cache, and their checksum; none without a set."""
    stored = [info.to_plain() for info in sets]
    return {SETS_ATTRIBUTE: stored, SETS_CHECKSUM: checksum_of(stored)} if sets else {}


def write_caption_sets(root: zarr.Group, sets: Sequence[CaptionSetInfo]) -> None:
    """Replace what a group that is open for writing says of its caption sets, in one write.

    This write decides which sets there are: before it a new set is not read, after it an old one.
    """
    root.update_attributes({SETS_ATTRIBUTE: [], SETS_CHECKSUM: checksum_of([])} | sets_attributes(sets))


def read_caption_sets(attributes: Mapping[str, Any], where: str) -> list[CaptionSetInfo]:
    """The caption sets that attributes name, after a check against their checksum; none in older caches.

    Args:
        attributes: of the root group.
        where: the path or URL of the cache, for messages.

    Raises:
        DamagedCacheError: they were damaged, or edited by hand.
    """
    stored = attributes.get(SETS_ATTRIBUTE)
    if stored is None and SETS_CHECKSUM not in attributes:
        return []
    try:
        actual, expected = checksum_of(stored), attributes.get(SETS_CHECKSUM)
        if actual != expected:
            raise ValueError(f"crc32c {actual}, expected {expected}")
        sets = [CaptionSetInfo.of_plain(each) for each in stored or ()]
        if len({info.name for info in sets}) < len(sets) or len({info.group for info in sets}) < len(sets):
            raise ValueError("two sets of one name")
    except (KeyError, TypeError, ValueError) as error:
        message = f"{where} has damaged metadata of caption sets: zarr.json, {SETS_ATTRIBUTE!r}: {error}"
        raise DamagedCacheError(Fault(message, RESTORE)) from error
    return sets
