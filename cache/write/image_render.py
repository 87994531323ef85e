"""Rendering of an image as RGB, by its bit depth, photometric tag, transparent colour and canvas.

Pillow's mode alone does not determine the colours: 12-bit grey has the mode of 16-bit grey, a transparent colour can
have more bits than Pillow's pixels, and a frame of an animation can be smaller than its canvas. So `read_layout` reads
the header before the pixels are decoded, and `to_rgb` follows it. An image whose numbers have no known range is
unsupported (docs/decisions/004).
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImagePalette

from ..format import RejectedImageError, Status
from .image_metadata import TiffDirectory, png_chunks

BACKGROUND = (255, 255, 255)  # behind transparent pixels (docs/decisions/004)
BAND_PIXELS = 2**22  # converted at a time, where that takes several times the memory of the image itself
UINT, INT = 1, 2  # TIFF's SampleFormat; 3 is floating point
MIN_IS_WHITE, RGB, CMYK, YCBCR = 0, 2, 5, 6  # TIFF's PhotometricInterpretation
FULL_RANGE_YCBCR = (0, 255, 128, 255, 128, 255)  # TIFF's ReferenceBlackWhite, as JFIF defines YCbCr
_BITS, _PHOTOMETRIC, _PLANAR, _COLOUR_MAP = 258, 262, 284, 320  # TIFF's tags
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _MIN_VALUE, _MAX_VALUE, _SUBSAMPLING, _REFERENCE = 338, 339, 340, 341, 530, 532


@dataclass(frozen=True, slots=True)
class Layout:
    """Meaning of an image's numbers, as far as Pillow's mode does not tell it.

    Attributes:
        black: the number for black, where a pixel has more than 8 bits a sample.
        white: the number for white.
        top: the number for full intensity, in grey and RGB of 8 bits.
        signed_bytes: whether values of 8 bits are signed.
        unsigned: whether Pillow's signed integers of 32 bits are unsigned in the file.
        key: the transparent colour, as many bits deep as the file's pixels.
        key_bits: how many of its bits count.
        low_bytes: RGB of the lower bytes, where Pillow keeps the higher bytes of 16 bits alone and both are needed.
        frame: (left, top, right, bottom) of the first frame, where it does not cover its canvas.
        alpha_may_be_unused: whether alpha that is zero everywhere means that there is none.
    """

    black: float = 0
    white: float = 65535
    top: int = 255
    signed_bytes: bool = False
    unsigned: bool = False
    key: tuple[int, ...] | None = None
    key_bits: int = 8
    low_bytes: Image.Image | None = None
    frame: tuple[int, int, int, int] | None = None
    alpha_may_be_unused: bool = False


def read_layout(image: Image.Image, read: Callable[[], bytes]) -> Layout:
    """Read the layout of an image from its header, and correct what Pillow misreads in some headers.

    Args:
        image: opened, not decoded yet.
        read: returns the whole file; called only for kinds of which Pillow does not keep the header.

    Raises:
        RejectedImageError: the numbers have no known range, or Pillow misreads this layout.
    """
    kinds = {
        "PNG": _png_layout,
        "GIF": _gif_layout,
        "WEBP": _webp_layout,
        "BMP": _bmp_layout,
        "TIFF": _tiff_layout,
        "PPM": _ppm_layout,
    }
    reader = kinds.get(image.format or "")
    return Layout() if reader is None else reader(image, read)


def to_rgb(image: Image.Image, layout: Layout = Layout()) -> Image.Image:
    """Convert to RGB as a viewer would show it: on white, scaled to 8 bits, the frame on its canvas.

    Args:
        image: decoded.
        layout: from `read_layout`, before the image was decoded.
    """
    if layout.frame is not None:
        canvas = Image.new("RGB", image.size, BACKGROUND)
        canvas.paste(to_rgb(image.crop(layout.frame), replace(layout, frame=None)), layout.frame)
        return canvas
    if image.mode == "F" or image.mode.startswith("I"):
        return _by_bands(image, lambda band, box: _scaled_grey(band, layout))
    if layout.signed_bytes:
        return _by_bands(image, lambda band, box: _signed_grey(band, layout))
    if layout.key is not None:
        return _by_bands(image, lambda band, box: _without_key(band, box, layout))
    if layout.low_bytes is not None:
        return _by_bands(image, lambda band, box: _scaled_colour(band, box, layout))
    if layout.top != 255:
        levels = [min(255, round(i * 255 / layout.top)) for i in range(256)]
        return image.point(levels * len(image.getbands())).convert("RGB")
    if image.mode == "La":
        return _by_bands(image, lambda band, box: _on_white(band.convert("LA")))
    if layout.alpha_may_be_unused and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        return _by_bands(image, lambda band, box: _on_white(band))
    return image if image.mode == "RGB" else image.convert("RGB")


Box = tuple[int, int, int, int]


def _by_bands(image: Image.Image, convert: Callable[[Image.Image, Box], Image.Image]) -> Image.Image:
    """Convert an image of any size, with memory for some of its rows besides the image and the result."""
    rows = max(1, BAND_PIXELS // image.width)
    if rows >= image.height:
        return convert(image, (0, 0, *image.size))
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(convert(image.crop(box), box), box)
    return rgb


def _scaled_grey(image: Image.Image, layout: Layout) -> Image.Image:
    """Grey of more than 8 bits as RGB; `convert` would clip it to white."""
    values: NDArray[Any] = np.asarray(image)
    if layout.unsigned:
        values = values.view(np.uint32)
    grey = _eight_bits(values, layout)
    if layout.key is not None:
        grey = np.where(values == layout.key[0], np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def _signed_grey(image: Image.Image, layout: Layout) -> Image.Image:
    """Grey of signed bytes, which Pillow takes for unsigned, as RGB."""
    return Image.fromarray(_eight_bits(np.asarray(image).view(np.int8), layout)).convert("RGB")


def _eight_bits(values: NDArray[Any], layout: Layout) -> NDArray[np.uint8]:
    """Scale numbers from the range of the layout to 0 to 255."""
    scaled = (values.astype(np.float64) - layout.black) * (255 / (layout.white - layout.black))
    return np.clip(np.rint(np.nan_to_num(scaled)), 0, 255).astype(np.uint8)


def _without_key(image: Image.Image, box: Box, layout: Layout) -> Image.Image:
    """Grey of up to 8 bits, or RGB, as RGB with the transparent colour in white."""
    assert layout.key is not None
    rgb = image.convert("RGB")
    if layout.low_bytes is not None:
        low_bytes = _part(layout.low_bytes, box)
        mask = _equals(rgb, [value >> 8 for value in layout.key])
        mask = ImageChops.multiply(mask, _equals(low_bytes, [value & 255 for value in layout.key]))
    else:
        top = 2**layout.key_bits - 1
        key = [(value & top) * 255 // top for value in layout.key]
        mask = _equals(rgb, key * (3 // len(key)))
    rgb.paste(BACKGROUND, mask=mask)
    return rgb


def _scaled_colour(image: Image.Image, box: Box, layout: Layout) -> Image.Image:
    """RGB of 16 bits, whose higher bytes are in `image`, scaled to 8."""
    values = np.asarray(image).astype(np.uint16) << 8 | np.asarray(_part(layout.low_bytes, box))
    return Image.fromarray(_eight_bits(values, layout))


def _part(image: Image.Image | None, box: Box) -> Image.Image:
    assert image is not None
    return image if box == (0, 0, *image.size) else image.crop(box)


def _equals(rgb: Image.Image, colour: list[int]) -> Image.Image:
    """A mask, 255 where an RGB image has a colour."""
    masks = [
        band.point([255 * (i == value) for i in range(256)]) for band, value in zip(rgb.split(), colour, strict=True)
    ]
    return ImageChops.multiply(ImageChops.multiply(masks[0], masks[1]), masks[2])


def _on_white(image: Image.Image) -> Image.Image:
    """An image with transparency as RGB, on white."""
    white = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


# Headers, by format


def _first_tile(image: Any) -> Any:
    """The first part that Pillow will decode: codec, extents, offset and arguments."""
    return image.tile[0]


def _partial_frame(image: Image.Image) -> Box | None:
    extents: Box = tuple(_first_tile(image).extents)
    return None if extents == (0, 0, *image.size) else extents


def _png_layout(image: Image.Image, read: Callable[[], bytes]) -> Layout:
    frame = _partial_frame(image)  # an animation's
    mode = image.mode
    if "transparency" not in image.info or mode not in ("1", "L", "I;16", "RGB"):
        return Layout(frame=frame)
    content = read()
    bits = content[24]  # of the first chunk, IHDR
    trns = next((body for name, body in png_chunks(content) if name == b"tRNS"), b"")
    key = struct.unpack(">HHH" if mode == "RGB" else ">H", trns[: 6 if mode == "RGB" else 2])
    low_bytes = None
    if bits == 16 and mode == "RGB":
        low_bytes = _low_bytes(content, _first_tile(image)._replace(args="RGB;16L"))
    del image.info["transparency"]  # Pillow would compare it with other numbers
    return Layout(frame=frame, key=key, key_bits=bits, low_bytes=low_bytes)


def _low_bytes(content: bytes, tile: Any) -> Image.Image:
    """Decode the lower bytes of 16-bit RGB; Pillow keeps them when it reads the file as little-endian."""
    image = Image.open(BytesIO(content), formats=("PNG", "PPM"))
    image.tile = [tile]
    image.load()
    return image


def _ppm_layout(image: Any, read: Callable[[], bytes]) -> Layout:
    """Layout of a PPM of any maximal value, which Pillow itself scales in Python: minutes for a large image."""
    if image.mode == "F":  # a PFM holds measurements
        raise RejectedImageError(Status.UNSUPPORTED)
    tile = _first_tile(image)
    if tile.codec_name != "ppm":
        return Layout()
    mode, top = tile.args
    if top < 256:
        image.tile = [tile._replace(codec_name="raw", args=mode)]
        return Layout(top=top)
    if mode == "L":
        image.tile = [tile._replace(codec_name="raw", args="I;16B")]
        return Layout(white=top)
    image.tile = [tile._replace(codec_name="raw", args="RGB;16B")]
    return Layout(white=top, low_bytes=_low_bytes(read(), tile._replace(codec_name="raw", args="RGB;16L")))


def _gif_layout(image: Any, read: Callable[[], bytes]) -> Layout:
    if image.mode == "L":
        image.palette = None  # a frame of greys; Pillow would apply the palette of the other frames
    return Layout(frame=_partial_frame(image))


def _webp_layout(image: Any, read: Callable[[], bytes]) -> Layout:
    header = read()[:21]
    is_animation = header[12:16] == b"VP8X" and header[20] & 2
    if is_animation and image.mode == "RGB":  # around its first frame the canvas is transparent
        image.rawmode = image._mode = "RGBA"
    return Layout()


def _bmp_layout(image: Any, read: Callable[[], bytes]) -> Layout:
    header = read()[:30]
    bits = struct.unpack_from("<H", header, 24 if header[14] == 12 else 28)[0]
    if image.mode in ("1", "L") and bits != {"1": 1, "L": 8}[image.mode]:
        # Pillow takes the bits a pixel from the palette if that is black and white, or a ramp of greys.
        levels = [0, 255] if image.mode == "1" else range(256)
        image.palette = ImagePalette.raw("RGB", bytes(level for level in levels for _ in range(3)))
        image._mode = "P"
        tile = _first_tile(image)
        image.tile = [tile._replace(args=({1: "P;1", 4: "P;4", 8: "P"}[bits], *tile.args[1:]))]
    return Layout(alpha_may_be_unused=image.mode == "RGBA")


def _tiff_layout(image: Any, read: Callable[[], bytes]) -> Layout:
    if not TiffDirectory.read(read()).is_whole:  # Pillow would go on without the tags that are cut off
        raise RejectedImageError(Status.DAMAGED)
    tags = image.tag_v2
    if tags.get(_PLANAR, 1) == 2 and len(tags.get(_BITS, (1,))) == 1:
        tags[_PLANAR] = 1  # of one plane; Pillow would decode it as the first of several
        image._setup()
    photometric = tags.get(_PHOTOMETRIC, 0)
    bits, sample_format = _first(tags, _BITS, 1), _first(tags, _SAMPLE_FORMAT, UINT)
    is_raw = _first_tile(image).codec_name == "raw"
    if not _is_readable_tiff(tags, photometric, bits, is_raw):
        raise RejectedImageError(Status.UNSUPPORTED)
    if image.mode in ("P", "PA") and max(tags[_COLOUR_MAP]) < 256:  # of 8 bits, against the definition
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[_COLOUR_MAP]))
    signed_bytes = sample_format == INT and bits == 8
    if not signed_bytes and image.mode != "F" and not image.mode.startswith("I"):
        return Layout()
    if sample_format == UINT and bits <= 16:
        black, white = 0.0, float(2**bits - 1)
    else:
        black, white = _tiff_range(tags, is_raw)
    if photometric == MIN_IS_WHITE:
        black, white = white, black
    return Layout(black=black, white=white, signed_bytes=signed_bytes, unsigned=sample_format == UINT and bits == 32)


def _tiff_range(tags: Any, is_raw: bool) -> tuple[float, float]:
    """Range of signed, floating-point and 32-bit samples, which only tags define.

    Raises:
        RejectedImageError: no tags define it.
    """
    low, high = _first(tags, _MIN_VALUE, None), _first(tags, _MAX_VALUE, None)
    if not is_raw or low is None or high is None or not np.isfinite([low, high]).all() or not low < high:
        raise RejectedImageError(Status.UNSUPPORTED)
    return float(low), float(high)


def _is_readable_tiff(tags: Any, photometric: int, bits: int, is_raw: bool) -> bool:
    """Whether Pillow reads samples of this layout correctly."""
    if tags.get(_PLANAR, 1) == 2:
        extra = tags.get(_EXTRA_SAMPLES, ())
        return bits == 8 and photometric in (RGB, CMYK) and extra in ((), (0,), (2,))
    if photometric == YCBCR and is_raw:
        reference = tuple(float(value) for value in tags.get(_REFERENCE, FULL_RANGE_YCBCR))
        return tags.get(_SUBSAMPLING, (2, 2)) == (1, 1) and reference == FULL_RANGE_YCBCR
    return True


def _first(tags: Any, tag: int, default: Any) -> Any:
    value = tags.get(tag, default)
    return value[0] if isinstance(value, tuple) and value else value
