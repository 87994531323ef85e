"""What stands beside the pixels of an image file: the orientation is read, and the rest may be left out.

Text, profiles and EXIF data that Pillow fails on must not cost an image its row. So its decoder is given a copy that
holds little but what the pixels need (`without_metadata`), when it fails on the file itself.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_TIFF_TYPE_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
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
    """The orientation by EXIF or XMP data of a decoded image, 1 to 8; 1 where they are unreadable.

    Args:
        image: decoded. A TIFF was turned by Pillow.
        read: gives the whole file; called for animated PNGs, of which Pillow reads no further than the first frame.
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
    """The image as an orientation asks a viewer to turn it."""
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def exif_orientation(exif: bytes) -> int:
    """The orientation in the first directory of EXIF data, 1 where it cannot be read."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
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
    """One entry of a TIFF directory; `value` is the value itself where it fits, else its offset."""

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
        entries: those that are whole.
        is_whole: whether all of them, and their values, lie in the file.
        form: `struct` letters of byte order, the number of entries, and an offset.
    """

    entries: list[TiffEntry]
    is_whole: bool
    form: tuple[str, str, str]

    @classmethod
    def read(cls, content: bytes) -> "TiffDirectory":
        """Read it; no entries where there is no header."""
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
        whole = min(count, max(0, len(content) - begin) // entry_bytes)
        entries, is_whole = [], whole == count
        for at in range(begin, begin + whole * entry_bytes, entry_bytes):
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
    """A copy of an image file with little but its pixels.

    Attributes:
        content: of the copy.
        orientation: as the metadata that were left out say; None where the copy itself tells it.
    """

    content: bytes
    orientation: int | None


def without_metadata(content: bytes) -> Stripped | None:
    """A copy without what the pixels do not need; None where the format has nothing to leave out.

    The first image of a file with several is left.
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
        copy += content[at:]  # cut off, which the decoder is to notice
    return Stripped(bytes(copy), turn)


def _jpeg(content: bytes) -> Stripped:
    """Of the segments before the pixels those that applications wrote are left out, but for the model of colours."""
    copy, at, turn = bytearray(b"\xff\xd8"), 2, 1
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            at += 1  # as decoders do
            continue
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xDA:
            break
        if marker in (0, 1) or 0xD0 <= marker <= 0xD8:
            at += 2
            continue
        size = 2 + struct.unpack_from(">H", content, at + 2)[0]
        body = content[at + 4 : at + size]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            turn = exif_orientation(body)
        is_colour_model = (marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14) or (
            marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12
        )
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or is_colour_model:
            copy += content[at : at + size]
        at += size
    return Stripped(bytes(copy) + content[at:], turn)


def _tiff(content: bytes) -> Stripped | None:
    """With a new directory at the end of the file, which repeats entries of the old one."""
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
    """With another name for the item of EXIF data, so that it is passed over; AVIF has its own way to turn."""
    at = content.find(b"infe")
    while at >= 0:
        if content[at + 12 : at + 16] == b"Exif":  # behind version, flags, the item's number and its protection
            return Stripped(content[: at + 12] + b"free" + content[at + 16 :], None)
        at = content.find(b"infe", at + 4)
    return None


def _jpeg2000(content: bytes) -> Stripped | None:
    """The boxes of header and pixels alone."""
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
