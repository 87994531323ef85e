"""Scans of a JPEG: their number, and whether they are complete in a file without an end marker.

Pillow's decoder tells neither: it decodes every scan of a progressive JPEG, however many there are, and fails on a file
without an end marker, whether or not any pixel is missing.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MAX_SCANS = 100  # libjpeg's own script of progressive scans has 10
FREE_SCANNED_PIXELS = 10**9  # of all scans together
_LEAST_SCAN_BYTES = 10  # of a scan's header
_START_OF_SCAN = b"\xff\xda"
_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # without restart markers, which are inside a scan
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_PROBE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Frame:
    """Header of a frame: whether it is progressive, and the numbers of its components."""

    is_progressive: bool
    components: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scan:
    """Header of a scan: components, first and last coefficient, and the lowest bit that it gives."""

    components: tuple[int, ...]
    first: int
    last: int
    low_bit: int


def has_too_many_scans(content: bytes, num_pixels: int) -> bool:
    """Whether a JPEG has more than `MAX_SCANS` scans, so that decoding it takes long.

    Small images may have more: up to `FREE_SCANNED_PIXELS` over all scans, which is ten scans of the largest image.
    """
    max_scans = max(MAX_SCANS, FREE_SCANNED_PIXELS // num_pixels)
    if len(content) // _LEAST_SCAN_BYTES <= max_scans:
        return False
    frame: Frame | None = None
    num = 0
    for part in _headers(content):
        if isinstance(part, Frame):
            frame = part
            continue
        if num == 0:
            if frame is not None and not frame.is_progressive and len(part.components) == len(frame.components):
                return False  # only this scan is decoded, as in most files
            if content.count(_START_OF_SCAN) <= max_scans:  # with those of a thumbnail
                return False
        num += 1
        if num > max_scans:
            return True
    return False


def has_every_scan(content: bytes) -> bool:
    """Whether the scans in the file give every coefficient of every component to its last bit."""
    frame: Frame | None = None
    missing: dict[int, set[int]] = {}
    for part in _headers(content):
        if isinstance(part, Frame):
            frame, missing = part, {component: set(range(64)) for component in part.components}
        elif frame is not None and part.low_bit == 0:
            complete = range(part.first, part.last + 1) if frame.is_progressive else range(64)
            for component in part.components:
                missing.get(component, set()).difference_update(complete)
    return frame is not None and not any(missing.values())


def continuations(content: bytes) -> list[bytes]:
    """Continue a JPEG without an end marker in several ways: with an end marker, or with noise and an end marker.

    If its scans are complete, a decoder ignores what follows them, and all continuations have the same pixels. If data
    are missing, it takes them from what follows: noise, or nothing, which it decodes as grey.
    """
    if content.endswith(b"\xff"):
        content = content[:-1]  # half of the end marker, or of an escaped byte
    rng = np.random.default_rng(0)
    probes = [b""]
    for _ in range(2):
        noise = [rng.integers(0, 255, _PROBE_BYTES, np.uint8).tobytes() for _ in range(17)]  # 255 would be a marker
        restarts = [bytes([0xFF, 0xD0 + i % 8]) for i in range(16)]
        probes.append(noise[0] + b"".join(mark + part for mark, part in zip(restarts, noise[1:], strict=True)))
    return [content + probe + _END for probe in probes]


def _headers(content: bytes) -> Iterator[Frame | Scan]:
    """Headers of frames and scans up to the end of the image, as far as they are inside the file."""
    at = 2
    while (match := _MARKER.search(content, at)) is not None:
        marker, at = content[match.start() + 1], match.end()
        if marker == 0xD9:
            return
        if marker in (0x01, 0xD8):
            continue
        if at + 2 > len(content):
            return
        size = struct.unpack_from(">H", content, at)[0]
        body = content[at + 2 : at + size]
        at += size
        if at > len(content):
            return
        if marker in _FRAMES and len(body) >= 6:
            yield Frame(marker in _PROGRESSIVE, tuple(body[6 : 6 + 3 * body[5] : 3]))
        elif marker == 0xDA and body and len(body) >= 4 + 2 * body[0]:
            first, last, bits = body[1 + 2 * body[0] :][:3]
            yield Scan(tuple(body[1 : 1 + 2 * body[0] : 2]), first, last, bits & 15)
