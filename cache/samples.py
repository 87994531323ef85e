"""The samples of a WebDataset tar: members of one name, told apart by what follows the first dot of their last part."""

import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from .errors import CacheError
from .tar_headers import Member, members

# As webdataset splits names, but that a hidden file is no sample: Macs put `._0001.jpg` beside `0001.jpg`.
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_NOT_DATA = re.compile(r"__[^/]*__(?:/|$)")  # as webdataset leaves out
_NOT_IN_KEYS = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class Sample(NamedTuple):
    """The members of one name, by extension in lower case."""

    key: str
    members: dict[str, Member]


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member; None if it belongs to no sample.

    >>> split_name("./cats.v2/0001.seg.PNG")
    ('cats.v2/0001', 'seg.png')
    """
    found = _NAME.fullmatch(name)
    if found is None or _NOT_DATA.match(name):
        return None
    return found[1].removeprefix("./"), found[2].lower()


def readable(key: str) -> str:
    r"""A key as Unicode of one line: what is none is written in hexadecimal digits.

    >>> readable("caf\udce9")
    'caf\\xe9'
    """
    if key.isprintable():
        return key
    return _NOT_IN_KEYS.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", key)


def samples(descriptor: int, where: str) -> Iterator[Sample]:
    """Every sample of a tar, in order.

    Args:
        descriptor: of the open file.
        where: its name, for messages.

    Raises:
        CacheError: the tar is damaged, or two samples have one name.
    """
    sample: Sample | None = None
    seen: set[str] = set()
    for member in members(descriptor, where):
        split = split_name(member.name)
        if split is None:
            continue
        key, extension = split
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            if key in seen:
                raise _twice(where, key, member)
            seen.add(key)
            sample = Sample(key, {})
        if extension in sample.members:
            raise _twice(where, member.name, member)
        sample.members[extension] = member
    if sample is not None:
        yield sample


def _twice(where: str, name: str, member: Member) -> CacheError:
    return CacheError(
        f"{where}, byte {member.start:,}: {readable(name)!r} comes a second time: the members of a sample must stand "
        "together, and its name be its own: write the tar again with `tar --sort=name`"
    )


def read_bytes(descriptor: int, start: int, size: int) -> bytes:
    """Bytes of an open file; fewer where it ends."""
    parts = []
    while size > 0 and (part := os.pread(descriptor, size, start)):
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
