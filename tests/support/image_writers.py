"""Writers of image files, byte by byte, for forms that Pillow cannot write.

Each takes samples as the format stores them, so that a test knows the right pixels by the format's own definition:
H rows, W columns, S samples a pixel.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Chunk = tuple[bytes, bytes]
Samples = NDArray[Any]
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def packed_rows(samples: Samples, bits: int, byte_order: str = ">") -> list[bytes]:
    """Rows of samples, the first in the highest bits, each row padded to whole bytes."""
    rows = samples.reshape(len(samples), -1)
    if bits in (8, 16, 32, 64):
        form = f"{byte_order}{rows.dtype.kind}{bits // 8}"
        return [row.astype(form).tobytes() for row in rows]
    digits = (rows[..., None].astype(np.int64) >> np.arange(bits - 1, -1, -1)) & 1
    return [np.packbits(row).tobytes() for row in digits.reshape(len(rows), -1).astype(np.uint8)]


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    samples: Samples,
    bits: int,
    colour_type: int,
    *,
    before: Sequence[Chunk] = (),
    after: Sequence[Chunk] = (),
    palette: NDArray[np.uint8] | None = None,
    trns: bytes | None = None,
    interlaced: bool = False,
    filters: Sequence[int] = (0, 1, 2, 3, 4),
    idat_bytes: int = 1 << 20,
) -> bytes:
    """A PNG of `[H, W, S]` samples; `before` and `after` are chunks beside the pixels."""
    height, width, _ = samples.shape
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(interlaced))
    chunks = [(b"IHDR", header)]
    chunks += [chunk for chunk in before if chunk[0] == b"iCCP"]
    chunks += [(b"PLTE", palette.tobytes())] if palette is not None else []
    chunks += [(b"tRNS", trns)] if trns is not None else []
    chunks += [chunk for chunk in before if chunk[0] != b"iCCP"]
    encoded = png_stream(samples, bits, interlaced=interlaced, filters=filters)
    chunks += [(b"IDAT", encoded[start : start + idat_bytes]) for start in range(0, len(encoded), idat_bytes)]
    chunks += [*after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_stream(samples: Samples, bits: int, *, interlaced: bool = False, filters: Sequence[int] = (0,)) -> bytes:
    """Filtered rows, compressed, as the IDAT chunks of a PNG or the fdAT chunks of an animation hold them."""
    pixel_bytes = max(1, bits * samples.shape[-1] // 8)
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in ADAM7] if interlaced else [samples]
    stream = b"".join(_filtered(packed_rows(part, bits), pixel_bytes, filters) for part in passes if part.size)
    return zlib.compress(stream, 1)


def png_animation(
    samples: Samples, bits: int, *, interlaced: bool, shows_first: bool
) -> tuple[list[Chunk], list[Chunk]]:
    """Chunks before and after the pixels that make a PNG an animation, whose second frame is `samples`.

    Args:
        samples: as `png` takes them.
        bits: as `png` takes them.
        interlaced: as `png` takes it.
        shows_first: whether the still image is the first frame.
    """
    height, width, _ = samples.shape

    def control(number: int) -> Chunk:
        return b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, 0, 0, 1, 10, 0, 0)

    before = [(b"acTL", struct.pack(">II", 1 + shows_first, 0)), *([control(0)] * shows_first)]
    data = struct.pack(">I", 1 + shows_first) + png_stream(samples, bits, interlaced=interlaced)
    return before, [control(int(shows_first)), (b"fdAT", data)]


def _filtered(rows: Sequence[bytes], pixel_bytes: int, filters: Sequence[int]) -> bytes:
    above, stream = np.zeros(len(rows[0]), np.int32), bytearray()
    for i, row in enumerate(rows):
        here = np.frombuffer(row, np.uint8).astype(np.int32)
        left, corner = (np.concatenate([np.zeros(pixel_bytes, np.int32), a])[: len(here)] for a in (here, above))
        kind = filters[i % len(filters)]
        guess = left + above - corner
        distances = np.abs(guess - np.stack([left, above, corner]))
        paeth = np.choose(distances.argmin(0), [left, above, corner])
        prediction = (0, left, above, (left + above) // 2, paeth)[kind]
        stream += bytes([kind]) + ((here - prediction) & 255).astype(np.uint8).tobytes()
        above = here
    return bytes(stream)


class GifFrame(NamedTuple):
    """One frame of a GIF: `[h, w]` palette indices at (x, y) of the canvas."""

    indices: NDArray[np.uint8]
    x: int = 0
    y: int = 0
    palette: NDArray[np.uint8] | None = None
    transparent: int | None = None
    disposal: int = 0
    interlaced: bool = False


def gif(
    frames: Sequence[GifFrame],
    screen: tuple[int, int],
    *,
    palette: NDArray[np.uint8] | None = None,
    background: int = 0,
    version: bytes = b"GIF89a",
    extensions: bytes = b"",
) -> bytes:
    """A GIF with the given (width, height) of its canvas; palettes are `[2**n, 3]`."""
    flags = 0 if palette is None else 0xF0 | (len(palette).bit_length() - 2)
    content = version + struct.pack("<HHBBB", *screen, flags, background, 0)
    content += (b"" if palette is None else palette.tobytes()) + extensions
    for frame in frames:
        if frame.transparent is not None or frame.disposal:
            has_key = frame.transparent is not None
            content += b"!\xf9\x04" + struct.pack("<BHBB", frame.disposal << 2 | has_key, 5, frame.transparent or 0, 0)
        height, width = frame.indices.shape
        flags = 0x40 * frame.interlaced
        flags |= 0 if frame.palette is None else 0x80 | (len(frame.palette).bit_length() - 2)
        content += b"," + struct.pack("<HHHHB", frame.x, frame.y, width, height, flags)
        content += b"" if frame.palette is None else frame.palette.tobytes()
        rows = [*range(0, height, 8), *range(4, height, 8), *range(2, height, 4), *range(1, height, 2)]
        stored = frame.indices[rows] if frame.interlaced else frame.indices
        content += _gif_lzw(stored.ravel(), max(2, int(frame.indices.max()).bit_length()))
    return content + b";"


def _gif_lzw(indices: NDArray[np.uint8], code_bits: int) -> bytes:
    """Literal codes alone, with a clear code before the table would need wider ones."""
    clear, width = 1 << code_bits, code_bits + 1
    codes: list[int] = []
    for start in range(0, len(indices), clear - 2):
        codes += [clear, *indices[start : start + clear - 2].tolist()]
    codes.append(clear + 1)
    digits = (np.asarray(codes)[:, None] >> np.arange(width)) & 1
    stream = np.packbits(digits.ravel().astype(np.uint8), bitorder="little").tobytes()
    blocks = (stream[start : start + 255] for start in range(0, len(stream), 255))
    return bytes([code_bits]) + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def bmp(
    samples: Samples,
    bits: int,
    *,
    palette: NDArray[np.uint8] | None = None,
    compression: int = 0,
    masks: Sequence[int] = (),
    header_bytes: int = 40,
    top_down: bool = False,
    colours_used: int | None = None,
    encoded: bytes | None = None,
) -> bytes:
    """A BMP of `[H, W]` values of a pixel (palette indices, or the packed integer of 16, 24, 32 bits)."""
    height, width = samples.shape
    entries = b"" if palette is None else b"".join(
        bytes([blue, green, red, *([0] if header_bytes > 12 else [])]) for red, green, blue in palette.tolist()
    )  # fmt: skip
    if header_bytes == 12:
        header = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        used = (len(palette) if palette is not None else 0) if colours_used is None else colours_used
        header = struct.pack(
            "<IiiHHIIiiII", header_bytes, width, -height if top_down else height, 1, bits, compression,
            len(encoded or b""), 2835, 2835, used, 0,
        )  # fmt: skip
        inside = b"".join(struct.pack("<I", mask) for mask in masks)
        header = (header + inside).ljust(header_bytes, b"\0") if header_bytes > 40 else header + inside
    if encoded is None:
        order = samples if top_down else samples[::-1]
        if bits < 16:
            rows = packed_rows(order, bits)
        else:
            rows = [row.astype("<u4").view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes() for row in order]
        encoded = b"".join(row + bytes(-len(row) % 4) for row in rows)
    offset = 14 + len(header) + len(entries)
    return struct.pack("<2sIHHI", b"BM", offset + len(encoded), 0, 0, offset) + header + entries + encoded


def bmp_rle(indices: NDArray[np.uint8], bits: int) -> bytes:
    """Run lengths of 8 or 4 bits, from the lowest row on; every third run in absolute mode."""
    content = bytearray()
    for row in indices[::-1].tolist():
        x = 0
        for turn in range(len(row)):
            if x >= len(row):
                break
            part = row[x : x + 5]
            if turn % 3 == 2 and len(part) >= 3:
                content += bytes([0, len(part)])
                body = bytes(part) if bits == 8 else _nibbles(part)
                content += body + bytes(len(body) % 2)
                x += len(part)
                continue
            run = 1
            while x + run < len(row) and row[x + run] == row[x] and run < 255:
                run += 1
            content += bytes([run, row[x] if bits == 8 else row[x] * 17])
            x += run
        content += b"\0\0"
    return bytes(content) + b"\0\1"


def _nibbles(values: Sequence[int]) -> bytes:
    padded = [*values, *([0] * (len(values) % 2))]
    return bytes(high << 4 | low for high, low in zip(padded[::2], padded[1::2], strict=True))


def pnm(samples: Samples, maxval: int, *, plain: bool = False, comment: bytes = b"") -> bytes:
    """PBM, PGM or PPM of `[H, W, S]` samples; PBM, where 1 is black, if `maxval` is 0."""
    height, width, channels = samples.shape
    magic = {(True, 1): 1, (False, 1): 2, (False, 3): 3}[(maxval == 0, channels)] + (0 if plain else 3)
    head = b"P%d\n%s%d %d\n" % (magic, comment, width, height) + (b"%d\n" % maxval if maxval else b"")
    if plain:
        return head + b"\n".join(b" ".join(b"%d" % value for value in row) for row in samples.reshape(height, -1))
    return head + b"".join(packed_rows(samples, 1 if maxval == 0 else 8 if maxval < 256 else 16))


def tiff(
    samples: Samples,
    bits: int,
    photometric: int,
    *,
    byte_order: str = "<",
    sample_format: int | None = None,
    planar: bool = False,
    tile: tuple[int, int] | None = None,
    rows_per_strip: int | None = None,
    compression: int = 1,
    predictor: bool = False,
    reversed_bits: bool = False,
    extra_samples: Sequence[int] = (),
    colour_map: NDArray[np.uint16] | None = None,
    tags: Mapping[int, tuple[int, Any]] = {},
    encoded: bytes | None = None,
    big: bool = False,
) -> bytes:
    """A TIFF of `[H, W, S]` samples.

    Args:
        tile: (rows, columns) of a tile; strips where None.
        tags: further ones, as (type, values); they replace those made here.
        encoded: the one strip, in place of the samples.
        big: BigTIFF.
    """
    height, width, channels = samples.shape
    planes = [samples[..., i : i + 1] for i in range(channels)] if planar else [samples]
    step, across = tile or (rows_per_strip or height, width)
    parts: list[bytes] = []
    for plane in planes:
        for top in range(0, height, step):
            for left in range(0, width, across):
                part = plane[top : top + step, left : left + across]
                if tile:
                    part = np.pad(part, ((0, step - part.shape[0]), (0, across - part.shape[1]), (0, 0)))
                parts.append(_tiff_part(part, bits, byte_order, compression, predictor))
    if encoded is not None:
        parts = [encoded]
    if reversed_bits:
        parts = [part.translate(REVERSED) for part in parts]
    known: dict[int, tuple[int, Any]] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * channels), 259: (3, [compression]),
        262: (3, [photometric]), 277: (3, [channels]), 284: (3, [2 if planar else 1]),
    }  # fmt: skip
    if tile:
        known |= {322: (4, [across]), 323: (4, [step])}
    else:
        known |= {278: (4, [step])}
    if reversed_bits:
        known[266] = (3, [2])
    if predictor:
        known[317] = (3, [2])
    if colour_map is not None:
        known[320] = (3, colour_map.T.ravel().tolist())
    if extra_samples:
        known[338] = (3, list(extra_samples))
    if sample_format is not None:
        known[339] = (3, [sample_format] * channels)
    return tiff_file(known | dict(tags), parts, byte_order, tiled=tile is not None, big=big)


def _tiff_part(part: Samples, bits: int, byte_order: str, compression: int, predictor: bool) -> bytes:
    if predictor:
        part = part.copy()
        part[:, 1:] -= part[:, :-1].copy()
    raw = b"".join(packed_rows(part, bits, byte_order))
    if compression in (8, 32946):
        return zlib.compress(raw, 1)
    if compression == 5:
        return _tiff_lzw(raw)
    if compression == 32773:
        rows = packed_rows(part, bits, byte_order)
        pieces = (row[start : start + 100] for row in rows for start in range(0, len(row), 100))
        return b"".join(bytes([len(piece) - 1]) + piece for piece in pieces)
    return raw


def _tiff_lzw(raw: bytes) -> bytes:
    codes: list[int] = []
    for start in range(0, len(raw), 250):
        codes += [256, *raw[start : start + 250]]
    codes.append(257)
    digits = (np.asarray(codes)[:, None] >> np.arange(8, -1, -1)) & 1
    return np.packbits(digits.ravel().astype(np.uint8)).tobytes()


TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 16: "Q"}


def ifd(entries: Mapping[int, tuple[int, Any]], byte_order: str, start: int, *, big: bool = False) -> bytes:
    """A directory of tags that begins at `start` of its file, with its values behind it. Unknown types are 4 bytes."""
    inline, entry_bytes = (8, 20) if big else (4, 12)
    body, values = b"", b""
    behind = start + (8 if big else 2) + entry_bytes * len(entries) + inline
    for tag, (kind, value) in sorted(entries.items()):
        form = TYPES.get(kind, "I")
        if form == "s":
            content, count = bytes(value), len(value)
        else:
            flat = list(value)
            content, count = struct.pack(byte_order + form[0] * len(flat), *flat), len(flat) // len(form)
        if len(content) > inline:
            place = struct.pack(byte_order + ("Q" if big else "I"), behind + len(values))
            values += content + bytes(len(content) % 2)
        else:
            place = content.ljust(inline, b"\0")
        body += struct.pack(byte_order + ("HHQ" if big else "HHI"), tag, kind, count) + place
    return struct.pack(byte_order + ("Q" if big else "H"), len(entries)) + body + bytes(inline) + values


def tiff_header(byte_order: str, start: int, *, big: bool = False) -> bytes:
    mark = b"II" if byte_order == "<" else b"MM"
    if big:
        return mark + struct.pack(byte_order + "HHHQ", 43, 8, 0, start)
    return mark + struct.pack(byte_order + "HI", 42, start)


def tiff_file(
    entries: Mapping[int, tuple[int, Any]], parts: Sequence[bytes], byte_order: str, *, tiled: bool, big: bool = False
) -> bytes:
    """A TIFF whose strips or tiles stand before its directory."""
    start = 16 if big else 8
    offsets = np.cumsum([start, *(len(part) for part in parts)])
    end = int(offsets[-1]) + int(offsets[-1]) % 2
    offset_tag, size_tag = (324, 325) if tiled else (273, 279)
    placed = {offset_tag: (16 if big else 4, offsets[:-1].tolist()), size_tag: (4, [len(part) for part in parts])}
    pixels = b"".join(parts).ljust(end - start, b"\0")
    return tiff_header(byte_order, end, big=big) + pixels + ifd(placed | dict(entries), byte_order, end, big=big)


def exif(entries: Mapping[int, tuple[int, Any]], byte_order: str) -> bytes:
    """EXIF data: a TIFF header and one directory."""
    return tiff_header(byte_order, 8) + ifd(entries, byte_order, 8)


def riff(chunks: Iterable[Chunk]) -> bytes:
    """A WebP of chunks."""
    body = b"".join(name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def riff_chunks(content: bytes) -> list[Chunk]:
    """The chunks of a WebP."""
    chunks, at = [], 12
    while at + 8 <= len(content):
        size = struct.unpack_from("<I", content, at + 4)[0]
        chunks.append((content[at : at + 4], content[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return chunks


def vp8x(width: int, height: int, flags: int) -> Chunk:
    """The header of an extended WebP; flags are 32 profile, 16 alpha, 8 EXIF, 4 XMP, 2 animation."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X", struct.pack("<I", flags) + sides


def webp_frame(bitstream: Iterable[Chunk], x: int, y: int, width: int, height: int) -> Chunk:
    """A frame of an animation; x and y are even."""
    sides = b"".join(side.to_bytes(3, "little") for side in (x // 2, y // 2, width - 1, height - 1, 100))
    data = b"".join(name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2) for name, body in bitstream)
    return b"ANMF", sides + b"\2" + data


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_with(content: bytes, segments: Iterable[bytes]) -> bytes:
    """A JPEG with segments right after its first marker."""
    return content[:2] + b"".join(segments) + content[2:]


def jpeg_scans(content: bytes) -> list[int]:
    """Where each scan of a JPEG begins, and where the last ends; the file has no thumbnail."""
    starts = [at for at in range(len(content) - 1) if content[at : at + 2] == b"\xff\xda"]
    return [*starts, content.rindex(b"\xff\xd9")]
