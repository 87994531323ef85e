"""Images of any form that Python code has, to the pixels that an image tower sees."""

import io
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..cache.format import MAX_PIXELS, RejectedImageError, Status
from ..cache.sources.image_root import open_below
from ..cache.write.image_decode import ResizeCrop, decode
from .errors import InputError


def is_image(value: Any) -> bool:
    """Whether a value is an image for `to_pixels`, if it is no text: a path, encoded bytes, PIL or an array."""
    return isinstance(value, os.PathLike | bytes | bytearray | Image.Image) or _is_pixel_array(value)


def describe(value: Any) -> str:
    """A value as a message shows it."""
    return str(value) if isinstance(value, str | os.PathLike) else type(value).__name__


def to_pixels(value: Any, geometry: ResizeCrop) -> NDArray[np.uint8]:
    """Pixels `[height, width, 3] uint8` of one image.

    A file is rendered exactly as a pass renders it.

    Args:
        value: path of a file (text or `Path`), encoded bytes, a PIL image, or an array `[h, w]`, `[h, w, 3]` or
            `[h, w, 4] uint8`.
        geometry: resize and crop of the tower.

    Raises:
        InputError: none of these, or an image that cannot be embedded.
    """
    try:
        if isinstance(value, str | os.PathLike):
            try:
                path = Path(value).resolve()
            except (ValueError, OSError, RuntimeError) as error:  # NUL, or links in a circle
                raise InputError(f"{describe(value)}: no path ({error})") from error
            if path.is_dir():
                raise InputError(f"{describe(value)} is a folder: pass the files in it")
            return decode_file(path, geometry)
        if isinstance(value, bytes | bytearray):
            return decode(io.BytesIO(value), geometry)
        if _is_pixel_array(value):
            value = Image.fromarray(np.asarray(value))
        if isinstance(value, Image.Image):
            return _of_pil(value, geometry)
    except RejectedImageError as rejected:
        raise InputError(f"{describe(value)}: {reason(rejected)}") from rejected
    shape = f" of shape {value.shape} and type {value.dtype}" if isinstance(value, np.ndarray) else ""
    raise InputError(
        f"{describe(value)}{shape} is no image: pass a path, bytes, a PIL image or an array [h, w, 3] uint8"
    )


def decode_file(file: Path, geometry: ResizeCrop) -> NDArray[np.uint8]:
    """Pixels `[height, width, 3] uint8` of a file; a link may lead anywhere, since the user named it.

    Raises:
        RejectedImageError: it is absent, or cannot be embedded.
    """
    path = file.resolve()
    with open_below(path.parent, path.name) as opened:
        return decode(opened, geometry)


def reason(rejected: RejectedImageError) -> str:
    """Why an image that the user named cannot be embedded."""
    return "no such file" if rejected.status == Status.MISSING else rejected.status.label


def _of_pil(image: Image.Image, geometry: ResizeCrop) -> NDArray[np.uint8]:
    """As open_clip does: what is opened already is taken as it is, neither turned nor rendered anew."""
    width, height = geometry.resized(*image.size) if min(image.size) else (0, 0)
    if min(width, height) < 1 or max(image.width * image.height, width * height) > MAX_PIXELS:
        raise RejectedImageError(Status.TOO_LARGE)
    try:
        rgb = image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # a file that is decoded only now
        raise RejectedImageError(Status.DAMAGED) from error
    return np.asarray(geometry.apply(rgb), np.uint8)


def _is_pixel_array(value: Any) -> bool:
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        return False
    return value.ndim == 2 or (value.ndim == 3 and value.shape[-1] in (3, 4))


def is_single(value: Any) -> bool:
    """Whether a value is one input, not several."""
    return isinstance(value, str) or is_image(value) or not isinstance(value, Sequence | np.ndarray | Generator)
