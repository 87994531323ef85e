"""The metadata of a cache as tests change them: with the checksum that fits, or as an older version wrote them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipglot.cache.format import ATTRIBUTE, CHECKSUM
from clipglot.cache.metadata import with_checksum


def edited(zarr_json: bytes, **fields: Any) -> bytes:
    """A zarr.json with other values of some fields."""
    return _changed(zarr_json, lambda attributes: attributes[ATTRIBUTE].update(fields))


def edit(cache: Path, **fields: Any) -> None:
    """Give some fields of a cache other values."""
    edit_attributes(cache, lambda attributes: attributes[ATTRIBUTE].update(fields))


def edit_attributes(cache: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the attributes of a cache."""
    (cache / "zarr.json").write_bytes(_changed((cache / "zarr.json").read_bytes(), change))


def make_older(cache: Path, *without: str) -> None:
    """As a version wrote it that kept neither a checksum nor the names of arrays, nor some further fields."""
    document = json.loads((cache / "zarr.json").read_text())
    del document["attributes"][CHECKSUM]
    for name in ("arrays", *without):
        del document["attributes"][ATTRIBUTE][name]
    (cache / "zarr.json").write_text(json.dumps(document))


def _changed(zarr_json: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(zarr_json)
    attributes = document["attributes"]
    change(attributes)
    if ATTRIBUTE in attributes:
        attributes.update(with_checksum(attributes[ATTRIBUTE]))
    return json.dumps(document).encode()
