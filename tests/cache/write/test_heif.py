"""HEIC images are decoded to the pixels that were drawn, within the limits of every image."""

import sys
from io import BytesIO

import numpy as np
import pytest
from clipglot.cache.format import RejectedImageError, Status
from clipglot.cache.write.heif import is_heif
from clipglot.cache.write.image_decode import ResizeCrop, decode
from numpy.typing import NDArray
from PIL import Image, features

heif = pytest.importorskip("pillow_heif")
WIDTH, HEIGHT = 96, 64
GEOMETRY = ResizeCrop(height=HEIGHT, width=WIDTH, resize_mode="squash", interpolation="bicubic", fill=0)


def drawn(mode: str = "RGB") -> NDArray[np.uint8]:
    """Four rectangles of different colours; with alpha the left half is transparent."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[: HEIGHT // 2, : WIDTH // 2], pixels[: HEIGHT // 2, WIDTH // 2 :] = (200, 30, 30), (30, 180, 60)
    pixels[HEIGHT // 2 :, : WIDTH // 2], pixels[HEIGHT // 2 :, WIDTH // 2 :] = (40, 60, 200), (220, 220, 60)
    if mode == "L":
        return pixels.mean(axis=2).astype(np.uint8)
    if mode == "RGBA":
        alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
        alpha[:, : WIDTH // 2] = 0
        return np.concatenate([pixels, alpha], axis=2)
    return pixels


def encoded(pixels: NDArray[np.uint8], orientation: int = 1) -> bytes:
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    heif.from_pillow(image).save(file := BytesIO(), quality=95, exif=exif.tobytes())
    return file.getvalue()


def difference(pixels: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    return float(np.abs(pixels.astype(int) - expected.astype(int)).mean())


@pytest.mark.parametrize("scaled", [False, True])
def test_the_pixels_are_those_that_were_drawn(scaled: bool) -> None:
    assert difference(decode(BytesIO(encoded(drawn())), GEOMETRY, scaled=scaled), drawn()) < 3
    grey = np.repeat(drawn("L")[:, :, None], 3, axis=2)
    assert difference(decode(BytesIO(encoded(drawn("L"))), GEOMETRY, scaled=scaled), grey) < 3


def test_transparency_is_on_white() -> None:
    expected = drawn()
    expected[:, : WIDTH // 2] = 255
    assert difference(decode(BytesIO(encoded(drawn("RGBA"))), GEOMETRY), expected) < 3


def test_a_turned_image_is_upright() -> None:
    turned = ResizeCrop(height=WIDTH, width=HEIGHT, resize_mode="squash", interpolation="bicubic", fill=0)
    assert difference(decode(BytesIO(encoded(drawn(), 6)), turned), np.rot90(drawn(), -1)) < 3


def test_limits_and_damage() -> None:
    content = encoded(drawn())
    for given, status, max_pixels in (
        (content, Status.TOO_LARGE, WIDTH * HEIGHT - 1),
        (content[: len(content) // 2], Status.DAMAGED, 10**6),
        (content[:60], Status.DAMAGED, 10**6),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), Status.DAMAGED, 10**6),
    ):
        with pytest.raises(RejectedImageError) as rejected:
            decode(BytesIO(given), GEOMETRY, max_pixels)
        assert rejected.value.status == status


def test_without_pillow_heif_it_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(drawn())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(RejectedImageError) as rejected:
        decode(BytesIO(content), GEOMETRY)
    assert rejected.value.status == Status.UNSUPPORTED


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif_is_left_to_pillow() -> None:
    Image.fromarray(drawn()).save(file := BytesIO(), "AVIF", quality=95)
    assert not is_heif(file.getvalue())
    assert difference(decode(file, GEOMETRY), drawn()) < 4
