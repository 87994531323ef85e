"""Index of a tar: where the bytes of each member lie, and which members form a sample of WebDataset.

Headers are read by hand, with bounded memory: of what is forged, cut short or enormous, nothing is believed. Python's
`tarfile` is slower on ordinary headers (benchmarks/tars_cpu_2026-11.md), takes as much memory as a header asks for, and
of Python 3.11.7 takes PAX records that are cut short.
"""

import os
import re
import tarfile
from collections.abc import Collection, Iterator
from typing import NamedTuple

from ..errors import CacheError

BLOCK = 512
MAX_EXTENDED_BYTES = 2**20  # of a long name or a PAX header; real ones have some hundred
MAX_EXTENDED_HEADERS = 8  # before one member
AGAIN = "fetch or write it again"
_ZEROS = bytes(BLOCK)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"BZh": "bzip2"}
_FILES = b"0\x007"
_LINKS_AND_DEVICES = b"123456"  # their size, if any, is that of no bytes in the tar
_LONG_NAME, _LONG_LINK, _PAX, _GLOBAL = b"L", b"K", b"xX", b"g"
_POSIX, _GNU = b"ustar\0", b"ustar "
_RECORD = re.compile(rb"(\d{1,8}) ([^=\n]+)=")
_OCTAL = re.compile(rb"\s*([0-7]+)[\s\0]*")
# A hidden file is no sample: Macs put `._0001.jpg` beside `0001.jpg`.
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_NOT_DATA = re.compile(r"__[^/]*__(?:/|$)")  # left out by webdataset, too
_NOT_IN_KEYS = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


class Sample(NamedTuple):
    """The members of one name, by extension in lower case."""

    key: str
    members: "dict[str, Member]"


class Member(NamedTuple):
    """A member of a tar.

    Attributes:
        name: as stored; bytes that are not UTF-8 are surrogates.
        start: of its bytes.
        size: of them.
        is_file: whether those bytes are a file's; links, devices and files stored with holes have none of their own.
    """

    name: str
    start: int
    size: int
    is_file: bool


class DamagedTarError(CacheError):
    """A tar that ends early, or holds something that is not a header."""


def samples(descriptor: int, where: str, extensions: Collection[str] = ()) -> Iterator[Sample]:
    """Every sample of a tar, in order.

    Args:
        descriptor: of the open file.
        where: its name, for messages.
        extensions: that are asked for, see `split_name`.

    Raises:
        CacheError: the tar is damaged, or two samples have one name.
    """
    sample: Sample | None = None
    seen: set[str] = set()
    for member in members(descriptor, where):
        split = split_name(member.name, extensions)
        if split is None:
            continue
        key, extension = split
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            if key in seen:
                raise _repeated(where, key, member)
            seen.add(key)
            sample = Sample(key, {})
        if extension in sample.members:
            raise _repeated(where, member.name, member)
        sample.members[extension] = member
    if sample is not None:
        yield sample


def _repeated(where: str, name: str, member: Member) -> CacheError:
    return CacheError(
        f"{where}, byte {member.start:,}: {readable(name)!r} comes a second time: the members of a sample must stand "
        "together, and each name must be unique: write the tar again with `tar --sort=name`"
    )


def split_name(name: str, extensions: Collection[str] = ()) -> tuple[str, str] | None:
    """Key and extension of a member; None if it belongs to no sample.

    As in webdataset the extension begins at the first dot, but for dots within a name: every extension begins with a
    letter, unless it is one that is asked for.

    >>> split_name("./cats.v2/0001.seg.PNG"), split_name("photo 2.0 (clean).jpg"), split_name("1.0.jpg", ["0.jpg"])
    (('cats.v2/0001', 'seg.png'), ('photo 2.0 (clean)', 'jpg'), ('1', '0.jpg'))
    """
    match = _NAME.fullmatch(name)
    if match is None or _NOT_DATA.match(name):
        return None
    key, extension = match[1], match[2]
    while not extension[:1].isalpha() and extension.lower() not in extensions and "." in extension:
        part, _, extension = extension.partition(".")
        key = f"{key}.{part}"
    return key.removeprefix("./"), extension.lower()


def readable(key: str) -> str:
    r"""A key as one line of Unicode: control characters and bytes that are not UTF-8 become hexadecimal digits.

    >>> readable("caf\udce9")
    'caf\\xe9'
    """
    if key.isprintable():
        return key
    return _NOT_IN_KEYS.sub(lambda match: f"\\x{ord(match[0]) & 0xFF:02x}", key)


def members(descriptor: int, where: str) -> Iterator[Member]:
    """Every member but folders, in order, also of several tars that were joined.

    Args:
        descriptor: of the open file.
        where: its name, for messages.

    Raises:
        DamagedTarError: the members yielded until then are sound.
    """
    scan = _Scan(descriptor, where)
    while (block := scan.header()) is not None:
        yield from scan.member(block)


def read_bytes(descriptor: int, start: int, size: int) -> bytes:
    """Bytes of an open file; fewer where it ends."""
    parts = []
    while size > 0 and (part := os.pread(descriptor, size, start)):
        parts.append(part)
        start, size = start + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class _Scan:
    """Goes from header to header."""

    def __init__(self, descriptor: int, where: str) -> None:
        self._descriptor, self._where = descriptor, where
        self._end = os.fstat(descriptor).st_size
        self._offset = 0

    def header(self) -> bytes | None:
        """The next block that is not all zeros; None at the end of the tar."""
        block = os.pread(self._descriptor, BLOCK, self._offset)
        if block == _ZEROS:
            self._offset = self._after_zeros(self._offset + BLOCK)
            block = os.pread(self._descriptor, BLOCK, self._offset)
            if len(block) < BLOCK or (_ordinary(block) is None and _unusual(block) is None):
                return None  # what follows the end is no part of the tar
        if len(block) < BLOCK:
            raise self._damaged(
                f"ends at byte {self._end:,} without the mark of a tar's end",
                f"{AGAIN}; if it is known to be whole, close it with `head -c 1024 /dev/zero >> FILE`",
            )
        return block

    def member(self, block: bytes) -> Iterator[Member]:
        """The member whose headers begin with a block, if it is not a folder. Moves behind it."""
        name, pax = None, dict[bytes, bytes]()
        for _ in range(MAX_EXTENDED_HEADERS):
            start = self._offset + BLOCK
            if ordinary := _ordinary(block):
                yield self._placed(pax, name or ordinary[0], start, ordinary[1], True)
                return
            header = _unusual(block)
            if header is None:
                raise self._no_header(block)
            kind = header.type
            if kind == tarfile.GNUTYPE_SPARSE:
                start = self._after_map_of_holes(block)
            if kind not in (_LONG_NAME, _LONG_LINK, _GLOBAL) and kind not in _PAX:
                size = 0 if kind in _LINKS_AND_DEVICES else header.size
                member = self._placed(pax, name or header.name, start, size, kind in _FILES)
                if not header.isdir():
                    yield member
                return
            extended = self._extended(start, header.size)
            if kind == _LONG_NAME:
                name = extended.partition(b"\0")[0].decode("utf-8", "surrogateescape")
            elif kind in _PAX:
                pax |= self._records(extended)
            self._offset = start + _padded(header.size)
            block = os.pread(self._descriptor, BLOCK, self._offset)
            if len(block) < BLOCK:
                raise self._damaged(f"ends at byte {self._end:,}, after an extended header")
        raise self._damaged(f"more than {MAX_EXTENDED_HEADERS} extended headers before a member")

    def _placed(self, pax: dict[bytes, bytes], name: str, start: int, size: int, is_file: bool) -> Member:
        """The member that a header and its PAX records describe, checked to lie within the file. Moves behind it."""
        if pax:
            if b"size" in pax:
                if not pax[b"size"].isdigit() or len(pax[b"size"]) > 20:
                    raise self._damaged("a PAX header whose size is not a number")
                size = int(pax[b"size"])
            name = pax.get(b"GNU.sparse.name", pax.get(b"path", name.encode("utf-8", "surrogateescape"))).decode(
                "utf-8", "surrogateescape"
            )
            is_file = is_file and not any(key.startswith(b"GNU.sparse.") for key in pax)
        if size < 0 or start + size > self._end:
            raise self._damaged(f"ends at byte {self._end:,}, within the {size:,} bytes of {name[:200]!r}")
        self._offset = start + _padded(size)
        return Member(name, start, size, is_file)

    def _extended(self, start: int, size: int) -> bytes:
        """The content of an extended header."""
        if not 0 <= size <= MAX_EXTENDED_BYTES:
            raise self._damaged(f"an extended header of {size:,} bytes, at most {MAX_EXTENDED_BYTES:,} are read")
        data = os.pread(self._descriptor, size, start)
        if len(data) < size:
            raise self._damaged(f"ends at byte {self._end:,}, within an extended header")
        return data

    def _records(self, data: bytes) -> dict[bytes, bytes]:
        r"""The records of a PAX header, each `LENGTH KEY=VALUE\n`, where the length is that of the whole record."""
        records, start = {}, 0
        while start < len(data) and data[start]:
            match = _RECORD.match(data, start)
            end = start + int(match[1]) if match else 0
            if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
                raise self._damaged("a damaged PAX header")
            records[match[2]] = data[match.end() : end - 1]
            start = end
        return records

    def _after_map_of_holes(self, block: bytes) -> int:
        """Where the bytes of a file with holes begin: GNU's header may go on in further blocks."""
        start, goes_on = self._offset + BLOCK, block[482]
        while goes_on:
            block = os.pread(self._descriptor, BLOCK, start)
            if len(block) < BLOCK:
                raise self._damaged(f"ends at byte {self._end:,}, within a header")
            start, goes_on = start + BLOCK, block[504]
        return start

    def _after_zeros(self, offset: int) -> int:
        """The first block from an offset on that is not all zeros, or the end of the file."""
        while chunk := os.pread(self._descriptor, 2**20, offset):
            if zeros := len(chunk) - len(chunk.lstrip(b"\0")):
                offset += zeros // BLOCK * BLOCK
            if zeros < len(chunk):
                return offset
            if len(chunk) % BLOCK:
                return self._end
        return offset

    def _no_header(self, block: bytes) -> DamagedTarError:
        for magic, name in _COMPRESSED.items():
            if self._offset == 0 and block.startswith(magic):
                return self._damaged(
                    f"compressed with {name}, but images are read from their place in the file",
                    "unpack the tar itself (`gunzip`, `unzstd`, …): images do not compress anyway",
                )
        return self._damaged("no header of a tar there")

    def _damaged(self, problem: str, remedy: str = AGAIN) -> DamagedTarError:
        return DamagedTarError(f"{self._where}, byte {self._offset:,}: {problem}: {remedy}")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _ordinary(block: bytes) -> tuple[str, int] | None:
    """Name and size of a file with an ordinary header; None for any other block."""
    magic = block[257:263]
    if block[156] not in b"0\0" or magic not in (_POSIX, _GNU):
        return None
    size, checksum = _OCTAL.fullmatch(block, 124, 136), _OCTAL.fullmatch(block, 148, 156)
    if size is None or checksum is None or sum(block) - sum(block[148:156]) + 8 * 32 != int(checksum[1], 8):
        return None
    name = block[:100].partition(b"\0")[0]
    if magic == _POSIX and (prefix := block[345:500].partition(b"\0")[0]):  # GNU keeps dates there
        name = prefix + b"/" + name
    return None if name.endswith(b"/") else (name.decode("utf-8", "surrogateescape"), int(size[1], 8))


def _unusual(block: bytes) -> tarfile.TarInfo | None:
    """Any header, as `tarfile` reads a single block; None if it is not a header."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
