"""A cache's metadata in the attributes of its group: one object, and its checksum beside it.

Both go into one write of zarr.json, so whoever opens a cache while others write it finds a pair that fits.
"""

import json
from collections.abc import Mapping
from typing import Any

import google_crc32c
import zarr

from .errors import CacheError
from .format import ATTRIBUTE, CHECKSUM, CacheInfo

RESTORE = "put back what it held, or delete the cache and make it again"


def checksum_of(metadata: Any) -> int:
    """crc32c of the metadata as JSON text: keys sorted, no spaces, nothing but ASCII.

    >>> checksum_of({"b": 1, "a": "é"}) == checksum_of({"a": "é", "b": 1})
    True
    """
    return int(google_crc32c.value(json.dumps(metadata, sort_keys=True, separators=(",", ":")).encode()))


def with_checksum(metadata: Any) -> dict[str, Any]:
    """The attributes of a cache's group."""
    return {ATTRIBUTE: metadata, CHECKSUM: checksum_of(metadata)}


def write_metadata(root: zarr.Group, info: CacheInfo) -> None:
    """Replace the metadata of a group that is open for writing."""
    root.update_attributes(with_checksum(info.to_attributes()))  # one write; `attrs.update` would be one for each


def read_metadata(attributes: Mapping[str, Any], where: str, restore: str = RESTORE) -> CacheInfo:
    """Check the metadata against their checksum and read them. Older caches have none, nor the names of their arrays.

    Args:
        attributes: of the group.
        where: it lies.
        restore: what to do about a zarr.json that holds something else than was written.

    Raises:
        CacheError: no clipglot cache, one of another format, or damaged.
    """
    metadata = attributes.get(ATTRIBUTE)
    is_older = CHECKSUM not in attributes and not (isinstance(metadata, dict) and metadata.get("arrays"))
    if ATTRIBUTE in attributes and not is_older:
        found, expected = checksum_of(metadata), attributes.get(CHECKSUM)
        if found != expected:
            raise CacheError(
                f"{where} has damaged metadata: zarr.json, {ATTRIBUTE!r} has crc32c {found}, expected {expected} "
                f"({CHECKSUM!r}); the file was damaged, or edited by hand: {restore}"
            )
    return CacheInfo.from_attributes(attributes, where)
