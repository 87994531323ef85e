"""Metadata of image files: the orientation, and copies of files without metadata.

Text, profiles and EXIF data on which Pillow fails must not cost an image its row. When it fails on a file, it gets a
copy that contains little besides what the pixels need (`without_metadata`).
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
_EXIF_PREFIX = b"Exif\0\0"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_TIFF_TYPE_BYTES = {
    **dict.fromkeys((1, 2, 6, 7), 1),
    **dict.fromkeys((3, 8), 2),
    **dict.fromkeys((4, 9, 11, 13), 4),
    **dict.fromkeys((5, 10, 12, 16, 17, 18), 8),
}
_MAX_TIFF_ENTRIES = 65_535  # a BigTIFF could have more, but does not
# TIFF's tags that say how pixels are stored and shown; 274 is the orientation.
_PIXEL_TAGS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325}
    | {332, 338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532}
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation(image: Image.Image, read: Callable[[], bytes]) -> int:
    """Orientation of a decoded image by its EXIF or XMP data, 1 to 8; 1 where they cannot be read.

    Args:
        image: decoded. TIFFs are turned by Pillow already.
        read: returns the whole file; called for animated PNGs, of which Pillow reads only the first frame.
    """
    if image.format == "TIFF":
        return 1
    if image.format == "PNG" and "exif" not in image.info and getattr(image, "is_animated", False):
        return next((exif_orientation(body) for name, body in png_chunks(read()) if name == b"eXIf"), 1)
    try:
        value: Any = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises nearly anything on damaged EXIF data
        exif = image.info.get("exif")
        value = exif_orientation(exif) if isinstance(exif, bytes) else 1
    return value if value in _TURNS else 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image upright."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def exif_orientation(exif: bytes) -> int:
    """Orientation in the first directory of EXIF data, 1 where it cannot be read."""
    exif = exif.removeprefix(_EXIF_PREFIX).removeprefix(_EXIF_PREFIX)  # some programs write it twice
    for entry in TiffDirectory.read(exif).entries:
        if entry.tag == ExifTags.Base.Orientation and entry.type in (3, 4) and entry.count == 1:
            value = int.from_bytes(entry.value[: _TIFF_TYPE_BYTES[entry.type]], entry.byte_order)
            return value if value in _TURNS else 1
    return 1


def png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and bodies of a PNG's chunks, up to the first that is cut off."""
    at = len(PNG_SIGNATURE)
    while at + 8 <= len(content):
        size, name = struct.unpack_from(">I4s", content, at)
        if at + 8 + size > len(content):
            return
        yield name, content[at + 8 : at + 8 + size]
        at += 12 + size


@dataclass(frozen=True, slots=True)
class TiffEntry:
    """One entry of a TIFF directory; `value` is the value itself if it fits into the entry, else its offset."""

    tag: int
    type: int
    count: int
    value: bytes
    byte_order: Any
    raw: bytes


@dataclass(frozen=True, slots=True)
class TiffDirectory:
    """The first directory of a TIFF.

    Attributes:
        entries: those inside the file.
        is_whole: whether all entries are inside the file, and the values of those that the pixels need.
        form: `struct` letters of the byte order, the number of entries, and an offset.
    """

    entries: list[TiffEntry]
    is_whole: bool
    form: tuple[str, str, str]

    @classmethod
    def read(cls, content: bytes) -> "TiffDirectory":
        """Read the first directory; it has no entries if the file is not a TIFF."""
        order = {b"II": "<", b"MM": ">"}.get(content[:2])
        is_big = 43 in content[2:4]
        form = (order or "<", "Q" if is_big else "H", "Q" if is_big else "I")
        if order is None or (42 not in content[2:4] and not is_big) or len(content) < 16:
            return cls([], False, form)
        offset_bytes, entry_bytes, head_bytes = (8, 20, 8) if is_big else (4, 12, 2)
        start = struct.unpack_from(order + form[2], content, 8 if is_big else 4)[0]
        if start + head_bytes > len(content):
            return cls([], False, form)
        count = struct.unpack_from(order + form[1], content, start)[0]
        begin = start + head_bytes
        num_inside = min(count, max(0, len(content) - begin) // entry_bytes, _MAX_TIFF_ENTRIES)
        entries, is_whole = [], num_inside == count
        for at in range(begin, begin + num_inside * entry_bytes, entry_bytes):
            tag, type_, num = struct.unpack_from(order + "HH" + form[2], content, at)
            value = content[at + entry_bytes - offset_bytes : at + entry_bytes]
            entries.append(
                TiffEntry(tag, type_, num, value, "little" if order == "<" else "big", content[at : at + entry_bytes])
            )
            size = _TIFF_TYPE_BYTES.get(type_, 1) * num
            offset = struct.unpack(order + form[2], value)[0]
            if tag in _PIXEL_TAGS and size > offset_bytes and offset + size > len(content):
                is_whole = False
        return cls(entries, is_whole, form)


@dataclass(frozen=True, slots=True)
class Stripped:
    """Copy of an image file without most of its metadata.

    Attributes:
        content: the copy.
        orientation: from the metadata left out; None if the copy still has it.
    """

    content: bytes
    orientation: int | None


def without_metadata(content: bytes) -> Stripped | None:
    """Copy a file without what the pixels do not need; None if there is nothing to leave out.

    Of a file with several images the copy has at least the first.
    """
    if content.startswith(PNG_SIGNATURE):
        return _png(content)
    if content.startswith(JPEG_SIGNATURE):
        return _jpeg(content)
    if content[:2] in (b"II", b"MM"):
        return _tiff(content)
    if content[4:8] == b"ftyp":
        return _avif(content)
    if content[4:8] == b"jP  ":
        return _jpeg2000(content)
    return None


def _png(content: bytes) -> Stripped:
    copy, at, turn = bytearray(PNG_SIGNATURE), len(PNG_SIGNATURE), 1
    for name, body in png_chunks(content):
        if name in _PIXEL_CHUNKS:
            copy += content[at : at + 12 + len(body)]
        elif name == b"eXIf":
            turn = exif_orientation(body)
        at += 12 + len(body)
    if at < len(content) and content[at + 4 : at + 8] in _PIXEL_CHUNKS:
        copy += content[at:]  # cut off, so that the decoder fails on it
    return Stripped(bytes(copy), turn)


def _jpeg(content: bytes) -> Stripped | None:
    """Without the application segments before the pixels, except those that tell the colour model."""
    copy, at, turn = bytearray(b"\xff\xd8"), 2, 1
    while at + 4 <= len(content):
        at = content.find(b"\xff", at)  # decoders skip other bytes
        if at < 0 or at + 4 > len(content):
            return None
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in (0xD9, 0xDA):
            break
        if marker in (0, 1) or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        size = 2 + struct.unpack_from(">H", content, at + 2)[0]
        body = content[at + 4 : at + size]
        if marker == 0xE1 and body.startswith(_EXIF_PREFIX):
            turn = exif_orientation(body)
        is_colour_model = (marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14) or (
            marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
        )
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or is_colour_model:
            copy += content[at : at + size]
        at += size
    return Stripped(bytes(copy) + content[at:], turn)


def _tiff(content: bytes) -> Stripped | None:
    """With a new directory at the end of the file, which has some entries of the old one."""
    directory = TiffDirectory.read(content)
    order, count_form, offset_form = directory.form
    kept = [entry.raw for entry in directory.entries if entry.tag in _PIXEL_TAGS]
    if not kept or not directory.is_whole:
        return None
    start = len(content) + len(content) % 2
    if offset_form == "I" and start >= 2**32:
        return None
    at = 8 if offset_form == "Q" else 4
    offset = struct.pack(order + offset_form, start)
    table = struct.pack(order + count_form, len(kept)) + b"".join(kept) + bytes(len(offset))
    return Stripped(
        content[:at] + offset + content[at + len(offset) :].ljust(start - at - len(offset), b"\0") + table, None
    )


def _avif(content: bytes) -> Stripped | None:
    """With the item of EXIF data renamed, so that the decoder ignores it; the orientation is a property of its own."""
    at = content.find(b"infe")
    while at >= 0:
        name = at + (14 if content[at + 4 : at + 5] == b"\3" else 12)  # after version, flags, number and protection
        if content[name : name + 4] == b"Exif":
            return Stripped(content[:name] + b"free" + content[name + 4 :], None)
        at = content.find(b"infe", at + 4)
    return None


def _jpeg2000(content: bytes) -> Stripped | None:
    """Only the boxes of the header and the pixels."""
    copy, at = b"", 0
    while at + 8 <= len(content):
        size, name = struct.unpack_from(">I4s", content, at)
        if size == 1 and at + 16 <= len(content):
            size = struct.unpack_from(">Q", content, at + 8)[0]
        end = at + size if size else len(content)
        if end < at + 8:
            return None
        if name in (b"jP  ", b"ftyp", b"jp2h", b"jp2c"):
            copy += content[at:end]
        if name == b"jp2c":
            return Stripped(copy, None)
        at = end
    return None
