"""A generator of odd images whose right pixels are known.

Every image is drawn as an array first; the file is written from it, and its right pixels follow from the array by the
format's own definition: bit depth, photometric tag, key, canvas, orientation. No decoder of ours has a part in it.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from io import BytesIO
from typing import Any, Literal

import numpy as np
from clipglot.cache.format import RejectedImageError, Status
from clipglot.cache.write.image_decode import ResizeCrop, decode
from numpy.typing import NDArray
from PIL import Image, features

from . import image_writers as writers

Pixels = NDArray[np.uint8]
Rng = np.random.Generator
Outcome = Literal["embedded", "refused", "either"]
LEAST_COSINE = 0.99  # of what is embedded to its right pixels
DAMAGED = frozenset({Status.DAMAGED})
UNSUPPORTED = frozenset({Status.UNSUPPORTED})
UNDO: Mapping[int, Callable[[Pixels], Pixels]] = {  # what an orientation of EXIF asks a viewer to do
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


@dataclass(frozen=True, slots=True)
class OddImage:
    """An image file and what is right for it.

    Attributes:
        kind: format and form, for counting.
        content: of the file.
        pixels: `[height, width, 3]` as it should be seen.
        levels: most difference of a pixel, of 255; None where the format is lossy.
        outcome: what must become of it; what is embedded has its right pixels in any case.
        reasons: true ones for a refusal.
        axes: what was drawn, for a message.
    """

    kind: str
    content: bytes
    pixels: Pixels
    levels: int | None = 1
    outcome: Outcome = "embedded"
    reasons: frozenset[Status] = frozenset()
    axes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture in numbers: `[H, W, 3]` colours and `[H, W]` opacity, of 0 to 1, and a region that keys mark."""

    colour: NDArray[np.float64]
    alpha: NDArray[np.float64]
    region: NDArray[np.bool_]

    @property
    def grey(self) -> NDArray[np.float64]:
        return self.colour @ [0.299, 0.587, 0.114]

    @property
    def rgb(self) -> Pixels:
        return np.rint(self.colour * 255).astype(np.uint8)


def scene(rng: Rng, least: int = 24, most: int = 80) -> Scene:
    """Smooth colours like a photograph's, with a disc and a box."""
    height, width = rng.integers(least, most, 2)
    y, x = np.mgrid[0:height, 0:width]
    y, x = y / height, x / width
    waves = [sum(np.sin(fy * y + fx * x + phase) / 3 for fy, fx, phase in rng.uniform(-6, 6, (3, 3))) for _ in range(3)]
    colour = 0.5 + 0.45 * np.stack(waves, -1) / max(1e-3, np.abs(waves).max())
    disc = np.hypot(y - rng.uniform(0.2, 0.8), x - rng.uniform(0.2, 0.8)) < rng.uniform(0.12, 0.25)
    top, left = rng.uniform(0, 0.6, 2)
    box = (y > top) & (y < top + 0.35) & (x > left) & (x < left + 0.3)
    colour[disc] = rng.uniform(0, 1, 3)
    colour[box] = rng.uniform(0, 1, 3)
    alpha = np.clip(2.2 - 4 * np.hypot(y - 0.5, x - rng.uniform(0.3, 0.7)), 0, 1)
    return Scene(np.clip(colour, 0, 1), alpha, disc)


def rgb_of(grey: NDArray[Any], top: float) -> Pixels:
    """Grey of 0 to `top` as RGB of 8 bits."""
    return np.rint(grey / top * 255).astype(np.uint8)[..., None].repeat(3, -1)


def on_white(colour: NDArray[Any], alpha: NDArray[np.float64]) -> Pixels:
    """Colours of 0 to 255 over white; `alpha` is `[H, W]`."""
    return np.rint(colour * alpha[..., None] + 255 * (1 - alpha[..., None])).astype(np.uint8)


def palette_of(rng: Rng, rgb: Pixels, num: int) -> tuple[NDArray[np.uint8], Pixels]:
    """A palette of some of an image's own colours, in any order, and each pixel's nearest entry."""
    flat = rgb.reshape(-1, 3).astype(np.int32)
    palette = flat[rng.choice(len(flat), num, replace=len(flat) < num)]
    distance = ((flat[:, None] - palette[None]) ** 2).sum(-1)
    return distance.argmin(1).reshape(rgb.shape[:2]).astype(np.uint8), palette.astype(np.uint8)


def pick(rng: Rng, *values: Any) -> Any:
    return values[rng.integers(len(values))]


# EXIF


def exif_data(rng: Rng) -> tuple[str, bytes | None, int]:
    """Name, bytes without a format's prefix, and the orientation that a viewer can read from them."""
    form = pick(rng, "none", "none", "plain", "plain", "odd types", "odd type of orientation", "no TIFF header",
                "noise", "cut", "prefix", "values out of range", "empty", "loop", "zero")  # fmt: skip
    order, turn = pick(rng, "<", ">"), int(rng.integers(1, 9))
    entries: dict[int, tuple[int, Any]] = {271: (2, b"maker\0"), 274: (3, [turn])}
    whole = writers.exif(entries, order)
    match form:
        case "none":
            return form, None, 1
        case "plain":
            return form, whole, turn
        case "odd types":
            odd = {282: (2, b"72\0"), 283: (2, b"72 dpi, about\0"), 296: (2, b"2\0"), 34665: (2, b"nowhere\0")}
            odd |= {
                305: (3, [1, 2, 3]),
                306: (12, [1.5]),
                34853: (5, [1, 0]),
                700: (99, [7]),
                36867: (7, b"\0\1\2\3\4"),
            }
            chosen = {tag: value for tag, value in odd.items() if rng.random() < 0.7}
            return form, writers.exif(entries | chosen, order), turn
        case "odd type of orientation":
            return form, writers.exif(entries | {274: (4, [turn])}, order), turn
        case "no TIFF header":
            return form, whole[8:], 1
        case "noise":
            return form, rng.bytes(int(rng.integers(1, 200))), 1
        case "cut":
            return form, whole[: int(rng.integers(1, 10))], 1
        case "prefix":
            return form, b"Exif\0\0" + whole, turn
        case "values out of range":
            far = struct.pack(order + "HHII", 282, 5, 1, 2**31)
            count = struct.pack(order + "H", 2)
            own = struct.pack(order + "HHIHH", 274, 3, 1, turn, 0)
            return form, whole[:8] + count + own + far + bytes(4), turn
        case "loop":
            return form, writers.exif(entries | {34665: (4, [8])}, order), turn
        case "zero":
            return form, writers.exif(entries | {274: (3, [pick(rng, 0, 9, 700)])}, order), 1
        case _:
            return form, b"", 1


# Damage


def damaged(rng: Rng, image: OddImage) -> OddImage:
    """The image cut off somewhere, with something behind it, or as it is."""
    how = pick(rng, *["none"] * 8, "cut anywhere", "cut near its end", "cut in its head", "garbage behind it")
    if how == "none":
        return image
    size = len(image.content)
    axes = image.axes | {"damage": how}
    # Neither a cut number nor a turn that is lost can be told from what is left.
    if how.startswith("cut") and (image.axes.get("exif place") == "after" or image.axes.get("plain")):
        return image
    if how == "garbage behind it":
        is_open = image.axes.get("plain") or image.axes.get("end") in ("no end", "half an end")
        if is_open and image.outcome == "embedded":  # what follows may be taken for data
            image = replace(image, outcome="either", reasons=DAMAGED)
        tail = pick(rng, bytes(50), rng.bytes(300), image.content[: size // 2], b"\n")
        return replace(image, content=image.content + tail, axes=axes)
    place = {
        "cut anywhere": rng.integers(1, size),
        "cut near its end": size - rng.integers(1, min(size, 40)),
        "cut in its head": rng.integers(1, min(size, 120)),
    }[how]
    reasons = DAMAGED | image.reasons | ({Status.NOT_A_PICTURE} if place < 32 else frozenset())
    outcome: Outcome = "refused" if image.outcome == "refused" else "either"
    return replace(image, content=image.content[:place], outcome=outcome, reasons=reasons, axes=axes)


# Formats


@cache
def inflating(num_bytes: int) -> bytes:
    """A few hundred bytes that inflate to so many."""
    return zlib.compress(bytes(num_bytes), 9)


def png_chunks(rng: Rng) -> tuple[str, list[writers.Chunk]]:
    """Chunks beside the pixels."""
    huge = inflating(3 * 2**20)
    some: dict[str, list[writers.Chunk]] = {
        "none": [],
        "huge zTXt": [(b"zTXt", b"parameters\0\0" + huge)],
        "huge iTXt": [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + huge)],
        "huge iCCP": [(b"iCCP", b"profile\0\0" + huge)],
        "many texts": [(b"zTXt", b"a%d\0\0" % i + inflating(2**20)) for i in range(66)],
        "a profile that is none": [(b"iCCP", b"profile\0\0" + zlib.compress(b"no profile"))],
        "a profile that does not inflate": [(b"iCCP", b"profile\0\0not deflated")],
        "unknown compression": [(b"zTXt", b"a\0\7" + huge), (b"iCCP", b"a\0\7" + huge)],
        "a text named transparency": [(b"tEXt", b"transparency\0none")],
        "a text named exif": [(b"tEXt", b"exif\0none")],
        "empty chunks": [(name, b"") for name in (b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"cHRM", b"sRGB", b"pHYs")],
        "short chunks": [(name, b"\0\1\2") for name in (b"gAMA", b"cHRM", b"pHYs", b"tIME", b"sBIT")],
        "unknown chunks": [(b"abCd", b"\0" * 99), (b"vpAg", bytes(9))],
        "latin text": [(b"tEXt", b"Titel\0f\xfcr \xff"), (b"iTXt", b"\xff\0\0\0\xff\0\xff\0\xff")],
        "gamma": [(b"gAMA", struct.pack(">I", 45455))],
        "short animation": [(b"acTL", b"\0")],
        "animation of no frames": [(b"acTL", bytes(8))],
    }
    name = pick(rng, *["none"] * 12, *some)
    return name, some[name]


def png(rng: Rng) -> OddImage:
    """Grey, colour, palette and alpha of every depth, every kind of transparency, interlaced or not."""
    kind = pick(rng, "grey", "colour", "palette", "grey alpha", "colour alpha")
    bits = int(pick(rng, *{"grey": (1, 2, 4, 8, 16), "palette": (1, 2, 4, 8)}.get(kind, (8, 16))))
    top, drawn = 2**bits - 1, scene(rng)
    trns = palette = None
    see_through = "none"
    if kind == "palette":
        num_colours = 2**bits if rng.random() < 0.6 else int(rng.integers(1, 2**bits + 1))
        indices, colours = palette_of(rng, drawn.rgb, num_colours)
        see_through = pick(rng, "none", "one index", "alpha", "short alpha")
        alphas = np.full(num_colours, 255, np.uint8)
        if see_through == "one index":
            alphas[rng.integers(num_colours)] = 0
        elif see_through != "none":
            alphas = rng.integers(0, 256, num_colours).astype(np.uint8)
        given = num_colours // 2 + 1 if see_through == "short alpha" else num_colours
        alphas[given:] = 255  # what is not given is opaque
        trns = None if see_through == "none" else alphas[:given].tobytes()
        samples, palette, colour_type = indices[..., None], colours, 3
        pixels = on_white(colours[indices].astype(float), alphas[indices] / 255)
    else:
        grey = kind.startswith("grey")
        samples = np.rint((drawn.grey[..., None] if grey else drawn.colour) * top).astype(np.uint16)
        opaque = np.ones(samples.shape[:2])
        colour_type = {"grey": 0, "colour": 2, "grey alpha": 4, "colour alpha": 6}[kind]
        if "alpha" in kind:
            see_through = "alpha"
            alpha = np.rint(drawn.alpha * top)
            samples, opaque = np.dstack([samples, alpha.astype(np.uint16)]), alpha / top
        elif rng.random() < 0.6:
            see_through = pick(rng, "key", "key beside others", "key beyond the depth")
            key = samples[tuple(np.argwhere(drawn.region)[0])].copy() if drawn.region.any() else samples[0, 0].copy()
            if see_through == "key beside others" and bits == 16:  # which differ from it in their lower bytes alone
                samples[rng.random(samples.shape[:2]) < 0.3] = key ^ 1
                samples[rng.random(samples.shape[:2]) < 0.1] = key ^ 0x80
            opaque = 1.0 - (samples == key).all(-1)
            if see_through == "key beyond the depth" and bits < 16:  # only the lower bits of a key count
                key = key | 0x4000
            trns = key.astype(">u2").tobytes()
        colours = samples[..., : 1 if grey else 3] / top * 255
        pixels = on_white(np.broadcast_to(colours, (*colours.shape[:2], 3)), opaque)
    interlaced = bool(rng.random() < 0.4)
    beside, chunks = png_chunks(rng)
    form, exif, turn = exif_data(rng)
    if beside == "a text named exif":  # which Pillow takes for EXIF data
        form, exif, turn = "none", None, 1
    has_place = "animation" in beside or "profile" in beside or beside in ("huge iCCP", "unknown compression")
    before, after = (chunks, []) if has_place or rng.random() < 0.6 else ([], chunks)
    if beside == "none" and rng.random() < 0.2:
        beside = pick(rng, "animation", "animation beside a still image")
        before, after = writers.png_animation(
            samples[::-1], bits, interlaced=interlaced, shows_first=beside == "animation"
        )  # fmt: skip
    where = pick(rng, "before", "after")
    if exif is not None and where == "before":
        before = [*before, (b"eXIf", exif)]
    elif exif is not None:
        after = [*after, (b"eXIf", exif)]
    filters = pick(rng, (0,), (0, 1, 2, 3, 4), (4,), (3, 2))
    content = writers.png(
        samples, bits, colour_type, before=before, after=after, palette=palette, trns=trns, interlaced=interlaced,
        filters=filters, idat_bytes=int(pick(rng, 100, 8192)),
    )  # fmt: skip
    axes = {"bits": bits, "transparency": see_through, "interlaced": interlaced, "exif": form, "beside": beside}
    axes |= {"exif place": where}
    return OddImage(f"PNG {kind}", content, UNDO[turn](pixels), 2, axes=axes)


def gif(rng: Rng) -> OddImage:
    """Frames of every place and size on their canvas, with and without a transparent index."""
    drawn, bits = scene(rng), int(rng.integers(1, 9))
    form = pick(rng, "whole", "part", "part", "beyond the canvas")
    indices, palette = palette_of(rng, drawn.rgb, 2**bits)
    if rng.random() < 0.2:  # Pillow reads a ramp of greys as no palette
        palette = np.arange(2**bits, dtype=np.uint8)[:, None].repeat(3, 1)
        indices = np.rint(drawn.grey * (2**bits - 1)).astype(np.uint8)
    height, width = indices.shape
    x, y = (0, 0) if form == "whole" else (int(v) for v in rng.integers(0, 30, 2))
    right, below = (0, 0) if form != "part" else (int(v) for v in rng.integers(0, 30, 2))
    screen = (max(1, width // 2), height) if form == "beyond the canvas" else (x + width + right, y + height + below)
    transparent = int(rng.integers(2**bits)) if rng.random() < 0.4 else None
    canvas = np.full((max(screen[1], y + height), max(screen[0], x + width), 3), 255, np.uint8)
    opaque = indices != (-1 if transparent is None else transparent)
    canvas[y : y + height, x : x + width][opaque] = palette[indices][opaque]
    local = bool(rng.random() < 0.5)
    disposal = int(rng.integers(0, 4))
    frame = writers.GifFrame(indices, x, y, palette if local else None, transparent, disposal, bool(rng.random() < 0.3))
    others = [writers.GifFrame(indices[::-1], 0, 0, palette, None)] if rng.random() < 0.3 else []
    other_palette = pick(rng, None, rng.integers(0, 256, (2 ** int(rng.integers(1, 9)), 3)).astype(np.uint8))
    extensions = pick(
        rng, b"", b"!\xfe\x05hello\0", b"!\xff\x0bNETSCAPE2.0\x03\1\0\0\0", b"!\x01\x0c" + bytes(12) + b"\0"
    )
    content = writers.gif(
        [frame, *others], screen, palette=other_palette if local else palette, background=int(rng.integers(2**bits)),
        version=pick(rng, b"GIF87a", b"GIF89a"), extensions=extensions,
    )  # fmt: skip
    axes = {"bits": bits, "transparent": transparent is not None, "local": local, "disposal": disposal}
    return OddImage(f"GIF {form}", content, canvas, 0, axes=axes | {"frames": 1 + len(others)})


MASKS_16 = {(0xF800, 0x7E0, 0x1F): (5, 6, 5), (0x7C00, 0x3E0, 0x1F): (5, 5, 5)}
MASKS_32 = (
    (0xFF0000, 0xFF00, 0xFF),
    (0xFF000000, 0xFF0000, 0xFF00),
    (0xFF000000, 0xFF00, 0xFF),
    (0xFF, 0xFF00, 0xFF0000),
)


def shifted(value: NDArray[Any], mask: int) -> NDArray[np.uint32]:
    return value.astype(np.uint32) << ((mask & -mask).bit_length() - 1)


def bmp(rng: Rng) -> OddImage:
    """Depths of 1 to 32 bits, masks, run lengths, palettes longer and shorter than the depth."""
    drawn, bits = scene(rng), int(pick(rng, 1, 4, 8, 16, 24, 32))
    top_down = bool(rng.random() < 0.3)
    header = int(pick(rng, 12, 40, 40, 56, 108, 124))
    if bits <= 8:
        form = pick(rng, "colours", "grey ramp", "black and white", "run lengths")
        if form == "black and white":
            indices, palette = (drawn.grey > 0.5).astype(np.uint8), np.array([[0] * 3, [255] * 3], np.uint8)
        elif form == "grey ramp":
            palette = np.rint(np.linspace(0, 255, 2**bits)).astype(np.uint8)[:, None].repeat(3, 1)
            indices = np.rint(drawn.grey * (2**bits - 1)).astype(np.uint8)
        else:
            indices, palette = palette_of(rng, drawn.rgb, 2**bits)
        if form == "run lengths" and bits > 1:
            content = writers.bmp(
                indices, bits, palette=palette, compression=3 - bits // 4, encoded=writers.bmp_rle(indices, bits),
                header_bytes=max(40, header),
            )  # fmt: skip
        else:
            if header == 12:  # has no count of colours
                palette = np.pad(palette, ((0, 2**bits - len(palette)), (0, 0)))
            content = writers.bmp(
                indices, bits, palette=palette, header_bytes=header, top_down=top_down and header > 12
            )
        return OddImage(f"BMP {bits} bits", content, palette[indices], 0, axes={"form": form, "header": header})
    rgb, outcome, reasons = drawn.rgb, "embedded", frozenset[Status]()
    if bits == 24:
        values = rgb.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
        content = writers.bmp(values, 24, header_bytes=header, top_down=top_down and header > 12)
        return OddImage("BMP 24 bits", content, rgb, 0, axes={"header": header})
    masks: tuple[int, ...]
    if bits == 16:
        masks = pick(rng, *MASKS_16, (0xF00, 0xF0, 0xF))
        depths = MASKS_16.get(masks, (4, 4, 4))
        if depths == (4, 4, 4):
            outcome, reasons = "refused", UNSUPPORTED
        parts = [np.rint(drawn.colour[..., i] * (2 ** depths[i] - 1)) for i in range(3)]
        values = sum(shifted(part, mask) for part, mask in zip(parts, masks, strict=True))
        rgb = np.stack([np.rint(part * 255 / (2**depth - 1)) for part, depth in zip(parts, depths, strict=True)], -1)
        plain = depths == (5, 5, 5) and rng.random() < 0.5
        content = writers.bmp(
            values, 16, compression=0 if plain else 3, masks=() if plain else masks, header_bytes=max(40, header)
        )  # fmt: skip
        axes = {"masks": "none" if plain else depths, "header": max(40, header)}
        return OddImage("BMP 16 bits", content, rgb.astype(np.uint8), 1, outcome, reasons, axes)
    form = pick(rng, "plain", "masks", "alpha", "alpha of zeros", "ten bits")
    masks, pixels, header = MASKS_32[0], rgb, max(40, header)
    values = sum(shifted(rgb[..., i], masks[i]) for i in range(3)) | (rng.integers(0, 256, rgb.shape[:2]) << 24)
    if form == "masks":
        masks = pick(rng, *MASKS_32[:3])
        values = sum(shifted(rgb[..., i], masks[i]) for i in range(3))
    elif form.startswith("alpha"):
        masks, header = (*pick(rng, MASKS_32[0], MASKS_32[3]), 0xFF000000), pick(rng, 56, 108, 124)
        alpha = np.zeros(rgb.shape[:2]) if form == "alpha of zeros" else np.rint(drawn.alpha * 255)
        values = sum(shifted(rgb[..., i], masks[i]) for i in range(3)) | shifted(alpha, masks[3])
        pixels = rgb if form == "alpha of zeros" else on_white(rgb, alpha / 255)
    elif form == "ten bits":
        masks, outcome, reasons = (0x3FF << 20, 0x3FF << 10, 0x3FF), "refused", UNSUPPORTED
        values = sum(shifted(np.rint(drawn.colour[..., i] * 1023), masks[i]) for i in range(3))
    content = writers.bmp(
        values, 32, compression=0 if form == "plain" else 3, masks=() if form == "plain" else masks,
        header_bytes=header, top_down=top_down,
    )  # fmt: skip
    return OddImage("BMP 32 bits", content, pixels, 1, outcome, reasons, {"form": form, "header": header})


def pnm(rng: Rng) -> OddImage:
    """Black and white, grey and colour, as text and as bytes, of any greatest value."""
    drawn, kind = scene(rng, most=48), pick(rng, "PBM", "PGM", "PPM")
    top = int(pick(rng, 1, 2, 3, 7, 15, 31, 100, 127, 254, 255, 256, 1000, 1023, 4095, 32767, 65534, 65535))
    values = drawn.colour if kind == "PPM" else drawn.grey[..., None]
    if kind == "PBM":
        samples = (values < 0.5).astype(np.uint16)
        pixels = np.where(samples == 1, 0, 255).astype(np.uint8).repeat(3, -1)
    else:
        samples = np.rint(values * top).astype(np.uint16)
        pixels = np.rint(samples / top * 255).astype(np.uint8).repeat(3 // samples.shape[-1], -1)
    plain = bool(rng.random() < 0.4)
    content = writers.pnm(
        samples, 0 if kind == "PBM" else top, plain=plain, comment=pick(rng, b"", b"# made by hand\n")
    )
    if rng.random() < 0.08:
        floats = drawn.grey.astype("<f4")
        content = pick(rng, b"Pf\n%d %d\n-1.0\n" % floats.shape[::-1] + floats[::-1].tobytes(),
                       b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\nTUPLTYPE GRAYSCALE\nENDHDR\n\0")  # fmt: skip
        reasons = UNSUPPORTED if content.startswith(b"Pf") else frozenset({Status.NOT_A_PICTURE})
        return OddImage("PFM or PAM", content, pixels, None, "refused", reasons)
    return OddImage(kind, content, pixels, 1, axes={"maxval": top, "plain": plain})


def jpeg_segments(rng: Rng) -> tuple[str, list[bytes]]:
    """Segments beside the pixels."""
    some = {
        "none": [],
        "XMP": [writers.jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")],
        "cut Photoshop": [writers.jpeg_segment(0xED, b"Photoshop 3.0\08BIM\x03\xed\0\0\0\0\0\x10\0")],
        "cut Photoshop name": [writers.jpeg_segment(0xED, b"Photoshop 3.0\08BIM\x03\xed")],
        "multi-picture noise": [writers.jpeg_segment(0xE2, b"MPF\0" + rng.bytes(60))],
        "multi-picture loop": [writers.jpeg_segment(0xE2, b"MPF\0" + writers.exif({0xB001: (4, [3])}, "<"))],
        "multi-picture of odd types": [
            writers.jpeg_segment(0xE2, b"MPF\0" + writers.exif({0xB001: (2, b"two\0"), 0xB002: (2, b"x" * 40)}, ">"))
        ],
        "half a profile": [writers.jpeg_segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(40))],
        "short profile": [writers.jpeg_segment(0xE2, b"ICC_PROFILE\0")],
        "short JFIF": [writers.jpeg_segment(0xE0, b"JFIF")],
        "empty segments": [writers.jpeg_segment(marker, b"") for marker in range(0xE0, 0xEE)],
        "comment": [writers.jpeg_segment(0xFE, b"\xff\xd8\xff\xda\xff\xd9" * 9)],
        "FlashPix": [writers.jpeg_segment(0xE2, b"FPXR\0" + rng.bytes(9))],
    }
    name = pick(rng, *["none"] * 6, *some)
    return name, some[name]


def jpeg(rng: Rng) -> OddImage:
    """Grey, colour, RGB and CMYK, baseline and progressive, without an end, cut between scans."""
    drawn, kind = scene(rng, 96, 160), pick(rng, "grey", "colour", "colour", "colour", "RGB", "CMYK")
    options: dict[str, Any] = {"quality": int(pick(rng, 90, 95, 100)), "progressive": bool(rng.random() < 0.5)}
    options |= pick(rng, {}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 2}, {"optimize": True})
    image, pixels = Image.fromarray(drawn.rgb), drawn.rgb
    if kind == "grey":
        grey = np.rint(drawn.grey * 255).astype(np.uint8)
        image, pixels = Image.fromarray(grey), grey[..., None].repeat(3, -1)
    elif kind == "RGB":
        options["keep_rgb"] = True
    elif kind == "CMYK":
        ink = np.rint(np.dstack([1 - drawn.colour, drawn.alpha * 0.3]) * 255).astype(np.uint8)
        image = Image.frombytes("CMYK", image.size, ink.tobytes())
        pixels = np.rint((255 - ink[..., :3]) * ((255.0 - ink[..., 3:]) / 255)).astype(np.uint8)
    else:
        options["subsampling"] = int(rng.integers(0, 3))
    form, exif, turn = exif_data(rng)
    beside, segments = jpeg_segments(rng)
    if exif is not None:
        segments = [writers.jpeg_segment(0xE1, b"Exif\0\0" + exif), *segments]
    file = BytesIO()
    image.save(file, "JPEG", **options)
    plain = file.getvalue()
    content = writers.jpeg_with(plain, segments)
    end = pick(rng, *["whole"] * 5, "no end", "half an end", "cut between scans")
    outcome: Outcome = "embedded"
    reasons = frozenset[Status]()
    if end == "no end":
        content = content[:-2]
    elif end == "half an end":
        content = content[:-1]
    elif end == "cut between scans" and options["progressive"]:
        scans = writers.jpeg_scans(plain)
        place = scans[int(rng.integers(1, len(scans) - 1))]
        content = content[: len(content) - len(plain) + place]
        outcome, reasons = "refused", DAMAGED
    axes = {"exif": form, "beside": beside, "end": end, **options}
    return OddImage(f"JPEG {kind}", content, UNDO[turn](pixels), None, outcome, reasons, axes)


def mpo(rng: Rng) -> OddImage:
    """Two JPEGs in a file, the first of which is shown."""
    drawn, file = scene(rng, 96, 160), BytesIO()
    Image.fromarray(drawn.rgb).save(
        file, "MPO", save_all=True, append_images=[Image.fromarray(drawn.rgb[::-1])], quality=92
    )
    return OddImage("MPO", file.getvalue(), drawn.rgb, None)


def webp(rng: Rng) -> OddImage:
    """Lossless and lossy, alpha, frames smaller than their canvas, EXIF of every sort."""
    lossless, alpha = bool(rng.random() < 0.7), bool(rng.random() < 0.4)
    drawn = scene(rng) if lossless else scene(rng, 96, 160)
    rgba = np.dstack([drawn.rgb, np.rint(drawn.alpha * 255).astype(np.uint8)])
    file = BytesIO()
    Image.fromarray(rgba if alpha else drawn.rgb).save(
        file, "WEBP", lossless=lossless, exact=True, quality=96, method=0
    )
    pixels = on_white(drawn.rgb, rgba[..., 3] / 255) if alpha else drawn.rgb
    height, width = pixels.shape[:2]
    bitstream = [chunk for chunk in writers.riff_chunks(file.getvalue()) if chunk[0] in (b"VP8 ", b"VP8L", b"ALPH")]
    form, exif, turn = exif_data(rng)
    form = "none" if exif == b"" else form
    more = [] if not exif else [(b"EXIF", exif)]
    flags = 16 * alpha | 8 * bool(more)
    frames = pick(rng, "still", "still", "frame", "part of the canvas", "part of the canvas")
    if frames == "still":
        plain = not more and bitstream[0][0] != b"ALPH"
        content = writers.riff(bitstream if plain else [writers.vp8x(width, height, flags), *bitstream, *more])
    else:
        x, y, right, below = (0, 0, 0, 0) if frames == "frame" else (2 * int(v) for v in rng.integers(0, 12, 4))
        canvas = np.full((y + height + below, x + width + right, 3), 255, np.uint8)
        canvas[y : y + height, x : x + width] = pixels
        pixels = canvas
        second = [writers.webp_frame(bitstream, 0, 0, width, height)] if rng.random() < 0.5 else []
        background = (b"ANIM", rng.bytes(4) + b"\0\0")
        content = writers.riff(
            [writers.vp8x(canvas.shape[1], canvas.shape[0], flags | 2), background,
             writers.webp_frame(bitstream, x, y, width, height), *second, *more]
        )  # fmt: skip
    axes = {"lossless": lossless, "alpha": alpha, "exif": form, "frames": frames}
    return OddImage(f"WebP {frames}", content, UNDO[turn](pixels), 2 if lossless else None, axes=axes)


def lab_of(colour: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB, for the white of D50, of sRGB of 0 to 1 (IEC 61966-2-1, with Bradford's adaptation)."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
    )
    ratio = linear @ to_xyz.T / [0.96422, 1.0, 0.82521]
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def tiff(rng: Rng) -> OddImage:
    """Depth, number format, photometric tag, extra samples, planes, tiles, compression and byte order."""
    kind = pick(rng, "grey", "grey", "grey", "signed or float", "colour", "colour", "palette", "CMYK", "YCbCr", "Lab",
                "odd")  # fmt: skip
    return {"grey": tiff_grey, "signed or float": tiff_of_numbers, "colour": tiff_colour, "palette": tiff_palette,
            "CMYK": tiff_cmyk, "YCbCr": tiff_ycbcr, "Lab": tiff_lab, "odd": tiff_odd}[kind](rng)  # fmt: skip


def tiff_layout(rng: Rng, bits: int) -> dict[str, Any]:
    """What does not change the pixels."""
    layout: dict[str, Any] = {
        "byte_order": pick(rng, "<", ">"),
        "compression": int(pick(rng, 1, 1, 5, 8, 32773, 32946)),
    }
    layout |= pick(rng, {}, {"rows_per_strip": int(rng.integers(1, 20))}, {"tile": (32, 16)}, {"tile": (16, 48)})
    layout |= {"planar": bool(rng.random() < 0.25), "big": bool(rng.random() < 0.1)}
    if layout["compression"] in (5, 8) and bits in (8, 16) and not layout["planar"]:
        layout["predictor"] = bool(rng.random() < 0.4)
    if bits <= 8 and rng.random() < 0.15:
        layout["reversed_bits"] = True
    return layout


def tiff_turn(rng: Rng) -> tuple[str, dict[int, tuple[int, Any]], int]:
    """Tags beside the pixels: orientation and what may be odd about the others."""
    form = pick(rng, "none", "none", "plain", "odd types", "odd values")
    turn = int(rng.integers(1, 9))
    if form == "none":
        return form, {}, 1
    tags: dict[int, tuple[int, Any]] = {274: (3, [turn])}
    if form == "odd types":
        tags |= {282: (2, b"72\0"), 283: (2, b"72\0"), 296: (3, [3]), 305: (3, [1, 2]), 34665: (2, b"no\0")}
    elif form == "odd values":
        tags |= {
            282: (5, [1, 0]),
            283: (5, [0, 0]),
            296: (3, [2]),
            34665: (4, [2**31]),
            34853: (4, [3]),
            700: (7, b"\0"),
        }
    return form, tags, turn


def tiff_image(
    rng: Rng, kind: str, samples: NDArray[Any], bits: int, photometric: int, pixels: Pixels, levels: int | None,
    outcome: Outcome = "either", reasons: frozenset[Status] = UNSUPPORTED, tags: Mapping[int, Any] = {}, **more: Any,
) -> OddImage:  # fmt: skip
    layout = tiff_layout(rng, bits)
    form, beside, turn = tiff_turn(rng)
    content = writers.tiff(samples, bits, photometric, tags={**beside, **tags}, **(layout | more))
    simple = layout["byte_order"] == "<" and not layout.get("reversed_bits") and not layout["planar"]
    if outcome == "either" and simple:  # what must be read; other layouts are right or refused
        outcome = "embedded"
    axes = {"bits": bits, "photometric": photometric, "exif": form, **layout, **more}
    axes = {name: value for name, value in axes.items() if not isinstance(value, np.ndarray | bytes)}
    return OddImage(f"TIFF {kind}", content, UNDO[turn](pixels), levels, outcome, reasons, axes)


def tiff_grey(rng: Rng) -> OddImage:
    drawn, bits, inverted = scene(rng), int(pick(rng, 1, 2, 4, 8, 12, 16)), bool(rng.random() < 0.4)
    top = 2**bits - 1
    samples = np.rint((1 - drawn.grey if inverted else drawn.grey) * top).astype(np.uint16)[..., None]
    seen = rgb_of(top - samples[..., 0].astype(float) if inverted else samples[..., 0], top)
    alpha = rng.random() < 0.15 and bits in (8, 16) and not inverted
    if not alpha:
        format_tag = pick(rng, None, 1)
        image = tiff_image(rng, "grey", samples, bits, 0 if inverted else 1, seen, 1, sample_format=format_tag)
        return replace(image, outcome="either") if bits == 12 and inverted else image
    opacity = np.rint(drawn.alpha * top)
    premultiplied = bool(rng.random() < 0.5)
    stored = np.rint(samples[..., 0] * (opacity / top)) if premultiplied else samples[..., 0]
    samples = np.dstack([stored, opacity]).astype(np.uint16)
    image = tiff_image(
        rng, "grey alpha", samples, bits, 1, on_white(seen, opacity / top), 3, extra_samples=[1 if premultiplied else 2]
    )
    return replace(image, outcome="either") if bits == 16 else image


def tiff_of_numbers(rng: Rng) -> OddImage:
    """Numbers without a range of their own, some with tags that give it."""
    drawn = scene(rng)
    sample_format, bits = pick(rng, (2, 8), (2, 16), (2, 32), (3, 32), (3, 16), (3, 64), (1, 32), (1, 64), (4, 8))
    kind = {1: "u", 2: "i", 3: "f", 4: "u"}[sample_format]
    low, high = {"u": (0, 2**bits - 1), "i": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1), "f": (-3.5, 40.25)}[kind]
    low, high = pick(rng, (low, high), (low // 2, high // 2), (100, 120)) if bits > 16 else (low, high)
    inverted = bool(rng.random() < 0.3)
    values = low + (1 - drawn.grey if inverted else drawn.grey) * (float(high) - low)
    if kind != "f":
        values = np.clip(np.rint(values), low, high - (1024 if bits == 64 else 0))
    seen = (values - low) / (float(high) - low)
    form = {2: "f2", 4: "f4", 8: "f8"}[bits // 8] if kind == "f" else f"{kind}{bits // 8}"
    tags: dict[int, Any] = {}
    ranged = rng.random() < 0.4
    if ranged:
        tags = {340: (12, [float(low)]), 341: (12, [float(high)])}
    elif rng.random() < 0.3:  # half a range
        tags = {341: (12, [float(high)])} if kind != "u" else {}
    image = tiff_image(
        rng, "numbers", values.astype(form)[..., None], bits, 0 if inverted else 1,
        rgb_of(1 - seen if inverted else seen, 1), 3, "either", UNSUPPORTED, tags, sample_format=sample_format,
    )  # fmt: skip
    axes = image.axes | {"ranged": ranged}
    return replace(image, outcome="either" if ranged else "refused", axes=axes)


def tiff_colour(rng: Rng) -> OddImage:
    drawn, bits = scene(rng), int(pick(rng, 8, 8, 16))
    top = 2**bits - 1
    samples = np.rint(drawn.colour * top).astype(np.uint16)
    extra = pick(rng, (), (0,), (1,), (2,), (0, 0), (2, 0), (1, 0))
    opacity = np.rint(drawn.alpha * top)
    alpha = opacity / top if extra and extra[0] else np.ones(drawn.alpha.shape)
    colours = np.rint(samples * alpha[..., None]) if extra[:1] == (1,) else samples
    stored = np.dstack([colours, *([opacity] * bool(extra)), *([top - opacity] * (len(extra) - 1))]).astype(np.uint16)
    pixels = on_white(samples / top * 255, alpha)
    image = tiff_image(rng, "colour", stored, bits, 2, pixels, 4, extra_samples=extra, sample_format=pick(rng, None, 1))
    return replace(image, outcome="either") if len(extra) > 1 and bits == 16 else image


def tiff_palette(rng: Rng) -> OddImage:
    drawn, bits = scene(rng), int(pick(rng, 1, 2, 4, 8))
    indices, palette = palette_of(rng, drawn.rgb, 2**bits)
    wide = bool(rng.random() < 0.8)  # else of 8 bits, as some programs wrote it
    colour_map = palette.astype(np.uint16) * (257 if wide else 1)
    if not wide and palette.max() < 2:
        wide = True
    samples, alpha, extra = indices[..., None], np.ones(drawn.alpha.shape), ()
    if bits == 8 and rng.random() < 0.3:
        extra = (2,)
        opacity = np.rint(drawn.alpha * 255)
        samples, alpha = np.dstack([indices, opacity]).astype(np.uint8), opacity / 255
    image = tiff_image(
        rng, "palette", samples, bits, 3, on_white(palette[indices], alpha), 2, colour_map=colour_map,
        extra_samples=extra,
    )  # fmt: skip
    return replace(image, axes=image.axes | {"wide": wide})


def tiff_cmyk(rng: Rng) -> OddImage:
    drawn, bits = scene(rng), int(pick(rng, 8, 16))
    top = 2**bits - 1
    ink = np.rint(np.dstack([1 - drawn.colour, drawn.alpha * 0.3]) * top)
    pixels = np.rint((top - ink[..., :3]) * ((top - ink[..., 3:]) / top) / top * 255).astype(np.uint8)
    extra = pick(rng, (), (), (0,))
    stored = np.dstack([ink, *([ink[..., 0]] * len(extra))]).astype(np.uint16)
    image = tiff_image(rng, "CMYK", stored, bits, 5, pixels, 3, extra_samples=extra)
    return replace(image, outcome="either") if bits == 16 else image


def tiff_ycbcr(rng: Rng) -> OddImage:
    """As JFIF defines it, or with a range of video, or packed with fewer samples of colour."""
    drawn, form = scene(rng), pick(rng, "plain", "plain", "video range", "subsampled", "JPEG")
    rgb = drawn.rgb.astype(float)
    if form == "JPEG":
        file = BytesIO()
        Image.fromarray(drawn.rgb).save(file, "TIFF", compression="jpeg", quality=95)
        return OddImage("TIFF YCbCr", file.getvalue(), drawn.rgb, None, axes={"form": form})
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    values = rgb @ matrix.T + [0, 128, 128]
    tags: dict[int, Any] = {530: (3, [1, 1])}
    more: dict[str, Any] = {}
    if form == "video range":
        values = (values - [0, 128, 128]) * [219 / 255, 224 / 255, 224 / 255] + [16, 128, 128]
        tags[532] = (5, [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1])
    samples = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    if form == "subsampled":
        height, width = (side // 2 * 2 for side in samples.shape[:2])
        samples, drawn = samples[:height, :width], replace(drawn, colour=drawn.colour[:height, :width])
        blocks = samples.reshape(height // 2, 2, width // 2, 2, 3).swapaxes(1, 2)
        luma = blocks[..., 0].reshape(height // 2, width // 2, 4)
        chroma = np.rint(blocks[..., 1:].mean((2, 3)))
        packed = np.concatenate([luma, chroma], -1).astype(np.uint8).tobytes()
        more = {"encoded": packed, "compression": 1, "planar": False, "tile": None, "rows_per_strip": None}
        more |= {"predictor": False, "reversed_bits": False}
        tags[530] = (3, [2, 2])
        if rng.random() < 0.5:
            del tags[530]  # two by two is what it is without a tag
    image = tiff_image(rng, "YCbCr", samples, 8, 6, drawn.rgb, None, "either", UNSUPPORTED, tags, **more)
    outcome = image.outcome if form == "plain" and image.axes["compression"] == 1 else "either"
    return replace(image, outcome=outcome, axes=image.axes | {"form": form})


def tiff_lab(rng: Rng) -> OddImage:
    drawn = scene(rng)
    lab = np.rint(lab_of(drawn.colour) * [255 / 100, 1, 1])
    samples = np.dstack([lab[..., 0], lab[..., 1] % 256, lab[..., 2] % 256]).astype(np.uint8)
    return tiff_image(rng, "Lab", samples, 8, 8, drawn.rgb, None, "either")


def tiff_odd(rng: Rng) -> OddImage:
    """What no program is known to show alike."""
    drawn = scene(rng)
    samples = np.rint(drawn.colour * 255).astype(np.uint16)
    form = pick(rng, "bits of a colour differ", "unknown compression", "unknown photometric tag", "ICC Lab",
                "seven bits", "two samples of grey", "nine samples")  # fmt: skip
    more: dict[str, Any] = {}
    bits, photometric = 8, 2
    if form == "bits of a colour differ":
        more["tags"] = {258: (3, [8, 8, 4])}
    elif form == "unknown compression":
        more["tags"] = {259: (3, [34712])}
    elif form == "unknown photometric tag":
        photometric = int(pick(rng, 4, 32803, 34892))
    elif form == "ICC Lab":
        photometric = 9
    elif form == "seven bits":
        samples, bits, photometric = samples[..., :1] // 2, 7, 1
    elif form == "two samples of grey":
        samples, photometric = samples[..., :2], 1
    else:
        samples = np.dstack([samples] * 3)
    content = writers.tiff(samples, bits, photometric, byte_order=pick(rng, "<", ">"), **more)
    return OddImage("TIFF odd", content, drawn.rgb, None, "refused", UNSUPPORTED, {"form": form})


def jpeg2000(rng: Rng) -> OddImage:
    """Grey of 8, 12 and 16 bits, colour and alpha, with and without boxes around the stream."""
    drawn, file = scene(rng, least=32), BytesIO()
    kind, boxes = (
        pick(rng, "grey", "12 bits", "16 bits", "colour", "grey alpha", "colour alpha"),
        bool(rng.random() < 0.5),
    )
    opacity = np.rint(drawn.alpha * 255).astype(np.uint8)
    grey = np.rint(drawn.grey * 255).astype(np.uint8)
    if kind == "12 bits":  # as 16 bits whose header is changed then, with the shift of level that this implies
        samples = np.rint(drawn.grey * 4095).astype(np.uint16)
        stored, pixels = samples + 2**15 - 2**11, rgb_of(samples, 4095)
    elif kind == "16 bits":
        stored = np.rint(drawn.grey * 65535).astype(np.uint16)
        pixels = rgb_of(stored, 65535)
    else:
        stored = {"grey": grey, "grey alpha": np.dstack([grey, opacity]), "colour": drawn.rgb}.get(
            kind, np.dstack([drawn.rgb, opacity])
        )
        pixels = grey[..., None].repeat(3, -1) if kind.startswith("grey") else drawn.rgb
        pixels = on_white(pixels, opacity / 255) if "alpha" in kind else pixels
    Image.fromarray(stored).save(file, "JPEG2000", irreversible=False, no_jp2=not boxes)
    content = bytearray(file.getvalue())
    if kind == "12 bits":
        size = content.index(b"\xff\x51")
        assert content[size + 40] == 15
        content[size + 40] = 11
        if boxes:
            header = content.index(b"ihdr")
            assert content[header + 14] == 15
            content[header + 14] = 11
    return OddImage(f"JPEG2000 {kind}", bytes(content), pixels, 2, axes={"boxes": boxes})


def avif(rng: Rng) -> OddImage:
    """Colour and alpha, turned by its own tags; EXIF that is broken."""
    drawn, file, alpha = scene(rng, least=32), BytesIO(), bool(rng.random() < 0.4)
    rgba = np.dstack([drawn.rgb, np.rint(drawn.alpha * 255).astype(np.uint8)])
    form, turn = pick(rng, "none", "plain", "broken"), int(rng.integers(1, 9))
    mark = writers.exif({271: (2, b"maker of marks\0")}, "<")
    data = writers.exif({271: (2, b"maker of marks\0"), 274: (3, [turn])}, "<") if form == "plain" else mark
    options = {} if form == "none" else {"exif": data}
    Image.fromarray(rgba if alpha else drawn.rgb).save(
        file, "AVIF", quality=95, subsampling="4:4:4", speed=10, **options
    )
    content = file.getvalue()
    if form == "broken":
        assert content.count(mark) == 1
        content = content.replace(mark, rng.bytes(len(mark)))
    pixels = on_white(drawn.rgb, rgba[..., 3] / 255) if alpha else drawn.rgb
    turn = turn if form == "plain" else 1
    return OddImage("AVIF", content, UNDO[turn](pixels), None, axes={"exif": form, "alpha": alpha, "turn": turn})


GENERATORS: dict[str, tuple[Callable[[Rng], OddImage], int]] = {  # with their shares of a sweep
    "png": (png, 8),
    "tiff": (tiff, 9),
    "jpeg": (jpeg, 5),
    "gif": (gif, 4),
    "bmp": (bmp, 4),
    "webp": (webp, 4),
    "pnm": (pnm, 3),
    "jpeg2000": (jpeg2000, 2),
    "mpo": (mpo, 1),
    "avif": (avif, 1),
}


def odd_images(num: int, seed: int = 0) -> Iterator[OddImage]:
    """So many odd images, the same ones for the same seed, of every format that Pillow reads here."""
    makers = [make for name, (make, share) in GENERATORS.items() for _ in range(share) if is_readable(name)]
    for i in range(num):
        rng = np.random.default_rng([seed, i])
        image = makers[i % len(makers)](rng)
        yield damaged(rng, image)


def is_readable(name: str) -> bool:
    feature = {"avif": "avif", "webp": "webp", "jpeg2000": "jpg_2000"}.get(name)
    return feature is None or bool(features.check(feature))


def fault_of(image: OddImage) -> str | None:
    """What is wrong with what becomes of an image when it is decoded to its own size; None if nothing is."""
    height, width = image.pixels.shape[:2]
    geometry = ResizeCrop(height=height, width=width, resize_mode="squash", interpolation="bicubic", fill=0)
    try:
        pixels = decode(BytesIO(image.content), geometry)
    except RejectedImageError as rejected:
        if image.outcome == "embedded":
            return f"{rejected.status.label}, and not embedded"
        return None if rejected.status in image.reasons else f"{rejected.status.label}, which is not why"
    if image.outcome == "refused":
        return "embedded, and not refused"
    levels, similarity = int(np.abs(pixels.astype(int) - image.pixels).max()), cosine(pixels, image.pixels)
    is_right = similarity >= LEAST_COSINE and (image.levels is None or levels <= image.levels)
    return None if is_right else f"other pixels: cosine {similarity:.3f}, up to {levels} levels"


def cosine(one: Pixels, other: Pixels, side: int = 32) -> float:
    """Of two images, each averaged to `side` by `side` RGB less its own mean over all."""
    features_ = []
    for pixels in (one, other):
        small = Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.BOX)
        values = np.asarray(small, np.float64).ravel()
        features_.append(values - values.mean())
    a, b = features_
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / scale) if scale > 1 else float(np.abs(np.subtract(one, other, dtype=float)).max(initial=0) < 3)
