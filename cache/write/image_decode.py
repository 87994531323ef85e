"""Image decoding: from the bytes of an image file to the pixels that a tower sees.

This runs in worker processes, so it imports only Pillow and numpy: workers start in a tenth of a second and stay small.
The geometry is that of open_clip's inference transform (`open_clip/transform.py`, `image_transform`), on Pillow images,
bit for bit; `tests/cache/write/test_image_decode.py` compares the two.
"""

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps

from ..errors import CacheError
from ..format import MAX_PIXELS, RejectedImageError, Status
from .decode_limits import Claim, claim_nothing
from .heif import START_BYTES, is_heif, open_heif
from .image_failure import failure_status
from .image_metadata import JPEG_SIGNATURE, orientation, turned, without_metadata
from .image_render import read_layout, to_rgb
from .jpeg_scans import continuations, has_every_scan, has_too_many_scans

Image.init()  # registers every format; `formats=` below fails on a name that is not registered yet
# The formats of photographs and drawings. Formats whose decoder runs other programs (EPS) are left out.
FORMATS = tuple(
    name
    for name in ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
    if name in Image.OPEN
)
SCALED_SIDES = 2  # a JPEG decoded at reduced size keeps this many times the sides that it will be resized to


class _PillowLimit:
    """Pillow's own limit of pixels (`Image.MAX_IMAGE_PIXELS`), switched off while any thread decodes.

    The limit of a pass is a setting, which `_Decoder` checks by the header alone. Pillow's is a global of the
    process, so it is switched off for no longer than necessary, and left as the process has it.
    """

    def __init__(self) -> None:
        self._lock, self._num_decoding, self._limit = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    @contextmanager
    def off(self) -> Iterator[None]:
        """Switch it off until the end of the block."""
        with self._lock:
            if not self._num_decoding:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._num_decoding += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_decoding -= 1
                if not self._num_decoding:
                    Image.MAX_IMAGE_PIXELS = self._limit


_pillow_limit = _PillowLimit()


@dataclass(frozen=True, kw_only=True)
class ResizeCrop:
    """Resize and crop to `[height, width]` pixels: the geometric half of open_clip's `preprocess_cfg`."""

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
        known = resize_mode in ("shortest", "longest", "squash") and interpolation in ("bicubic", "bilinear")
        if not known:
            raise CacheError(
                f"the tower's preprocessing asks for resize_mode={resize_mode!r}, interpolation={interpolation!r}; "
                "known are shortest, longest, squash and bicubic, bilinear"
            )
        fill = int(preprocess.get("fill_color") or 0)
        return cls(height=height, width=width, resize_mode=resize_mode, interpolation=interpolation, fill=fill)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Compute the (width, height) to resize an image to, before cropping or padding."""
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
        """Resize: the first half of `apply`."""
        # Non-square "shortest" is always bicubic upstream.
        bilinear = self.interpolation == "bilinear" and not (
            self.resize_mode == "shortest" and self.width != self.height
        )
        size = self.resized(*image.size)
        if image.size == size:
            return image
        return image.resize(size, Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC)

    def frame(self, image: Image.Image) -> Image.Image:
        """Crop or pad: the second half of `apply`."""
        pad_width, pad_height = max(0, self.width - image.width), max(0, self.height - image.height)
        if pad_width or pad_height:
            border = (pad_width // 2, pad_height // 2, (pad_width + 1) // 2, (pad_height + 1) // 2)
            image = ImageOps.expand(image, border, (self.fill,) * 3)
        if image.size == (self.width, self.height):
            return image
        left = round((image.width - self.width) / 2)
        top = round((image.height - self.height) / 2)
        return image.crop((left, top, left + self.width, top + self.height))


def decode(
    file: IO[bytes] | Path, geometry: ResizeCrop, max_pixels: int = MAX_PIXELS, *, scaled: bool = False
) -> NDArray[np.uint8]:
    """Decode one image to the pixels that the tower sees.

    Args:
        file: an open binary file or a path.
        geometry: the tower's resize and crop.
        max_pixels: larger images are rejected, by their header alone; so are images larger than this after resizing.
        scaled: decode a JPEG to half, a quarter or an eighth of its size where that is enough (`SCALED_SIDES`).

    Returns:
        `[height, width, 3] uint8`.

    Raises:
        RejectedImageError: the file is not an image, damaged, too large, or of a kind that is not rendered.
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
    claim: Claim = claim_nothing,
) -> NDArray[np.uint8]:
    """Decode one image once, and render several views of it.

    Args:
        file: as `decode` takes it.
        geometry: the tower's resize and crop.
        views: functions that make each of V views, of exactly the geometry's size, from the RGB image.
        max_pixels: as `decode` takes it.
        scaled: as `decode` takes it.
        claim: waits for the memory of the image, before it is decoded.

    Returns:
        `[V, height, width, 3] uint8`.

    Raises:
        RejectedImageError: as `decode`.
    """
    with _pillow_limit.off(), warnings.catch_warnings(), ExitStack() as claimed:
        warnings.simplefilter("ignore")  # decoders warn of odd metadata; the pixels decide
        try:
            image = _Decoder(geometry, max_pixels, scaled, claim, claimed).decode_or_repair(file)
            return np.stack([np.asarray(view(image), dtype=np.uint8) for view in views])
        except MemoryError:
            raise RejectedImageError(Status.TOO_LARGE) from None


@dataclass(frozen=True, slots=True)
class _Decoder:
    """Decoding of one image to upright RGB; the fields are arguments of `decode_views`.

    Attributes:
        claimed: keeps the claim of memory until the views are made.
    """

    geometry: ResizeCrop
    max_pixels: int
    scaled: bool
    claim: Claim
    claimed: ExitStack

    def decode_or_repair(self, file: IO[bytes] | Path) -> Image.Image:
        """Decode; if Pillow fails, decode a repaired copy (docs/decisions/004)."""
        try:
            return self._decode(file)
        except (RejectedImageError, MemoryError):
            raise
        except Exception as error:
            # Decoders raise nearly any exception on damaged input (OSError, SyntaxError, struct.error, IndexError, …).
            # The block holds little besides their calls, and the row keeps its reason.
            failure = error.with_traceback(None)  # which would keep the pixels in memory
        content = _content(file)
        image = self._repair(content)
        if image is None:
            raise RejectedImageError(failure_status(failure, content, FORMATS))
        return image

    def _decode(self, file: IO[bytes] | Path, turn: int | None = None) -> Image.Image:
        """Open, decode, render and turn an image; `turn` is an orientation already known."""
        read = partial(_content, file)
        image = open_heif(read()) if is_heif(_start(file)) else Image.open(file, formats=FORMATS)
        self._require_size(image)
        num_pixels = image.width * image.height
        if image.format in ("JPEG", "MPO") and has_too_many_scans(read(), num_pixels):
            raise RejectedImageError(Status.TOO_SLOW)
        self.claimed.close()  # that of a copy on which Pillow failed
        self.claimed.enter_context(self.claim(num_pixels))
        layout = read_layout(image, read)
        if self.scaled and image.format in ("JPEG", "MPO"):  # of a HEIC it would be the thumbnail
            image.draft(None, self._least_size(image))
        image.load()  # the first frame of an animation
        image = turned(to_rgb(image, layout), orientation(image, read) if turn is None else turn)
        self._require_size(image)
        return image

    def _repair(self, content: bytes) -> Image.Image | None:
        """Decode an image on which Pillow failed; None if pixels are missing."""
        stripped, turn = without_metadata(content), None
        if stripped is not None:
            content, turn = stripped.content, stripped.orientation
            image = self._attempt(content, turn)
            if image is not None:
                return image
        if not content.startswith(JPEG_SIGNATURE) or not has_every_scan(content):
            return None
        first: Image.Image | None = None
        for copy in continuations(content):
            image = self._attempt(copy, turn)
            if image is None or (first is not None and ImageChops.difference(first, image).getbbox() is not None):
                return None
            first = image
        return first

    def _attempt(self, content: bytes, turn: int | None) -> Image.Image | None:
        try:
            return self._decode(BytesIO(content), turn)
        except (RejectedImageError, MemoryError):
            raise
        except Exception:  # as in `decode_or_repair`
            return None

    def _require_size(self, image: Image.Image) -> None:
        """Reject an image that would take too much memory now or once resized, or would be resized to nothing."""
        width, height = self.geometry.resized(*image.size)
        if max(image.width * image.height, width * height) > self.max_pixels or min(width, height) < 1:
            raise RejectedImageError(Status.TOO_LARGE)

    def _least_size(self, image: Image.Image) -> tuple[int, int]:
        """The least (width, height) of an image decoded at reduced size, whichever way EXIF turns it."""
        width, height = self.geometry.resized(*image.size)
        turned_height, turned_width = self.geometry.resized(image.height, image.width)
        return SCALED_SIDES * max(width, turned_width), SCALED_SIDES * max(height, turned_height)


def _start(file: IO[bytes] | Path) -> bytes:
    if isinstance(file, Path):
        with open(file, "rb") as opened:
            return opened.read(START_BYTES)
    file.seek(0)
    return file.read(START_BYTES)


def _content(file: IO[bytes] | Path) -> bytes:
    """The whole file. Its position changes; Pillow's decoders seek before they read."""
    if isinstance(file, Path):
        return file.read_bytes()
    if isinstance(file, BytesIO):
        return file.getvalue()
    file.seek(0)
    return file.read()
