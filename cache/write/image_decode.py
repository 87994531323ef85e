"""From the bytes of an image file to the pixels that a tower sees.

Runs in worker processes, so it imports Pillow and numpy alone: workers start in a tenth of a second and stay small.
The geometry repeats open_clip's inference transform (`open_clip/transform.py`, `image_transform`) on Pillow images,
bit for bit; `tests/cache/write/test_image_decode.py` holds the two together.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import CacheError
from ..format import MAX_PIXELS, Status
from ..sources.source import RejectedImageError

Image.init()  # registers every format; `formats=` below fails on a name that is not registered yet
# What photographs and drawings come in. Formats whose decoder runs other programs (EPS) stay out.
FORMATS = tuple(
    name
    for name in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
    if name in Image.OPEN
)
BACKGROUND = (255, 255, 255)  # behind transparent pixels (docs/decisions/004)
BAND_PIXELS = 2**22  # converted at a time, where that takes several times the memory of the image itself
SCALED_SIDES = 2  # a JPEG that is decoded to a part of its size keeps so many times the sides it will be resized to
Image.MAX_IMAGE_PIXELS = None  # the limit is checked here, before decoding, and is a setting


@dataclass(frozen=True, kw_only=True)
class ResizeCrop:
    """How an image becomes `[height, width]` pixels: the geometric half of open_clip's `preprocess_cfg`."""

    height: int
    width: int
    resize_mode: Literal["shortest", "longest", "squash"]
    interpolation: Literal["bicubic", "bilinear"]
    fill: int

    @classmethod
    def from_preprocess(cls, preprocess: Mapping[str, Any]) -> "ResizeCrop":
        """Read open_clip's `preprocess_cfg`.

        Raises:
            CacheError: a resize mode or interpolation that open_clip does not have.
        """
        size = preprocess["size"]
        height, width = (size, size) if isinstance(size, int) else size[-2:]
        resize_mode: Any = preprocess.get("resize_mode") or "shortest"
        interpolation: Any = preprocess.get("interpolation") or "bicubic"
        if interpolation == "random":  # open_clip's name for "any in training"; at inference it means bicubic
            interpolation = "bicubic"
        if resize_mode not in ("shortest", "longest", "squash") or interpolation not in (
            "bicubic",
            "bilinear",
        ):
            raise CacheError(
                f"the tower's preprocessing asks for resize_mode={resize_mode!r}, interpolation={interpolation!r}; "
                "known are shortest, longest, squash and bicubic, bilinear"
            )
        fill = int(preprocess.get("fill_color") or 0)
        return cls(height=height, width=width, resize_mode=resize_mode, interpolation=interpolation, fill=fill)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) to resize an image to, before cropping or padding."""
        if self.resize_mode == "squash":
            return self.width, self.height
        if self.resize_mode == "shortest" and self.width == self.height:  # torchvision's Resize(int) truncates
            if width <= height:
                return self.width, int(self.width * height / width)
            return int(self.height * width / height), self.height
        choose = max if self.resize_mode == "longest" else min
        ratio = choose(height / self.height, width / self.width)
        return round(width / ratio), round(height / ratio)

    def apply(self, image: Image.Image) -> Image.Image:
        """Resize, then crop or pad around the centre to exactly `[height, width]`."""
        return self.frame(self.resize(image))

    def resize(self, image: Image.Image) -> Image.Image:
        """The first half of `apply`."""
        # Non-square "shortest" is always bicubic upstream.
        bilinear = self.interpolation == "bilinear" and not (
            self.resize_mode == "shortest" and self.width != self.height
        )
        size = self.resized(*image.size)
        if image.size == size:
            return image
        return image.resize(size, Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC)

    def frame(self, image: Image.Image) -> Image.Image:
        """The second half of `apply`: crop or pad."""
        pad_width, pad_height = max(0, self.width - image.width), max(0, self.height - image.height)
        if pad_width or pad_height:
            border = (pad_width // 2, pad_height // 2, (pad_width + 1) // 2, (pad_height + 1) // 2)
            image = ImageOps.expand(image, border, (self.fill,) * 3)
        if image.size == (self.width, self.height):
            return image
        left = round((image.width - self.width) / 2)
        top = round((image.height - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB as a viewer would show it: transparency on white, 16 bits scaled to 8."""
    if image.mode == "F":
        raise RejectedImageError(Status.NOT_A_PICTURE)  # float TIFFs hold measurements, of unknown range
    if image.mode.startswith("I"):
        return _by_bands(image, _scaled_grey)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _by_bands(image, _on_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def _by_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image of any size with the memory of some rows, besides the image and the result."""
    rows = max(1, BAND_PIXELS // image.width)
    if rows >= image.height:
        return convert(image)
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        rgb.paste(convert(image.crop(box)), box)
    return rgb


def _scaled_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, which `convert` would clip to white."""
    values = np.asarray(image).astype(np.float32)
    return Image.fromarray(np.clip(np.rint(values / 257), 0, 255).astype(np.uint8)).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def decode(
    file: IO[bytes] | Path, geometry: ResizeCrop, max_pixels: int = MAX_PIXELS, *, scaled: bool = False
) -> NDArray[np.uint8]:
    """Decode one image to what the tower sees.

    Args:
        file: an open binary file or a path.
        geometry: the tower's resize and crop.
        max_pixels: refuse images larger than this, by their header alone, also after resizing.
        scaled: decode a JPEG to half, a quarter or an eighth of its size where that is enough (`SCALED_SIDES`).

    Returns:
        `[height, width, 3] uint8`.

    Raises:
        RejectedImageError: it is no image, damaged or too large.
    """
    pixels: NDArray[np.uint8] = decode_views(file, geometry, [geometry.apply], max_pixels, scaled=scaled)[0]
    return pixels


def decode_views(
    file: IO[bytes] | Path,
    geometry: ResizeCrop,
    views: Sequence[Callable[[Image.Image], Image.Image]],
    max_pixels: int = MAX_PIXELS,
    *,
    scaled: bool = False,
) -> NDArray[np.uint8]:
    """Decode one image once, and render several views of it.

    Args:
        file: as `decode` takes it.
        geometry: the tower's resize and crop.
        views: what makes each of V views, of exactly the geometry's size, from the RGB image.
        max_pixels: as `decode` takes it.
        scaled: as `decode` takes it.

    Returns:
        `[V, height, width, 3] uint8`.

    Raises:
        RejectedImageError: as `decode`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders warn of odd metadata; the pixels decide
            image: Image.Image = Image.open(file, formats=FORMATS)
            _require_size(image, geometry, max_pixels)
            if scaled:
                image.draft(None, _least_size(image, geometry))  # only JPEG can
            image.load()  # the first frame of an animation
            ImageOps.exif_transpose(image, in_place=True)
            _require_size(image, geometry, max_pixels)
            image = to_rgb(image)
            return np.stack([np.asarray(view(image), dtype=np.uint8) for view in views])
    except RejectedImageError:
        raise
    except UnidentifiedImageError:
        raise RejectedImageError(Status.NOT_A_PICTURE) from None
    except MemoryError:
        raise RejectedImageError(Status.TOO_LARGE) from None
    except Exception:
        # Decoders raise nearly anything on damaged input (OSError, SyntaxError, struct.error, IndexError, …).
        # Little but their calls stands in this block, and the row keeps its reason.
        raise RejectedImageError(Status.DAMAGED) from None


def _require_size(image: Image.Image, geometry: ResizeCrop, max_pixels: int) -> None:
    """Refuse what would take too much memory now or once resized, and what would be resized to nothing."""
    width, height = geometry.resized(*image.size)
    if max(image.width * image.height, width * height) > max_pixels or min(width, height) < 1:
        raise RejectedImageError(Status.TOO_LARGE)


def _least_size(image: Image.Image, geometry: ResizeCrop) -> tuple[int, int]:
    """The (width, height) that a scaled image keeps, whichever way EXIF turns it."""
    width, height = geometry.resized(*image.size)
    turned_height, turned_width = geometry.resized(image.height, image.width)
    return SCALED_SIDES * max(width, turned_width), SCALED_SIDES * max(height, turned_height)
