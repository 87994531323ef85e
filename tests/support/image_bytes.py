"""Images in memory: drawn, encoded in some format, and decoded or rejected."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from clipglot.cache.format import RejectedImageError, Status
from clipglot.cache.write.image_decode import ResizeCrop, decode
from PIL import Image, ImageDraw

from .image_writers import jpeg_scans

SQUARE = ResizeCrop(height=16, width=16, resize_mode="shortest", interpolation="bicubic", fill=0)
PLAIN = ResizeCrop(
    height=20, width=30, resize_mode="squash", interpolation="bicubic", fill=0
)  # of `drawing()`: as it is


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8))


def drawing(mode: str = "RGB") -> Image.Image:
    """A red disc on blue, 30 by 20, off the centre so that turning it shows."""
    image = Image.new("RGB", (30, 20), (0, 0, 255))
    ImageDraw.Draw(image).ellipse((2, 2, 12, 12), fill=(255, 0, 0))
    return image.convert(mode)


def stored(image: Image.Image, kind: str, **options: Any) -> BytesIO:
    file = BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def rejection(file: BytesIO, geometry: ResizeCrop = SQUARE, **limits: int) -> Status:
    with pytest.raises(RejectedImageError) as rejected:
        decode(file, geometry, **limits)
    return rejected.value.status


def of_many_scans(side: int, num: int) -> bytes:
    """A progressive JPEG whose first scan, which is of the means of blocks, comes again and again."""
    content = stored(noise(2, 2).resize((side, side), Image.Resampling.BOX), "JPEG", progressive=True).getvalue()
    start, end, *_ = jpeg_scans(content)
    return content[:end] + content[start:end] * num + content[end:]
