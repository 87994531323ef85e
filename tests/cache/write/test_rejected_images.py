"""Rejected images: too large, damaged, not images at all, or not a readable file below the root."""

import os
import struct
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from clipglot.cache.format import RejectedImageError, Status
from clipglot.cache.sources.image_root import MAX_FILE_BYTES, open_below
from clipglot.cache.write.image_decode import ResizeCrop, decode, decode_views
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.image_bytes import SQUARE, drawing, noise, rejection, stored


def huge_png(width: int, height: int) -> BytesIO:
    """The header of an image without its pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return BytesIO(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )  # fmt: skip


@pytest.mark.parametrize("size", [(40_000, 40_000), (2**31 - 1, 2**31 - 1), (60_000_000, 1), (1, 60_000_000)])
def test_a_huge_image_is_refused_by_its_header(size: tuple[int, int]) -> None:
    assert rejection(huge_png(*size)) is Status.TOO_LARGE


def test_the_limit_of_pixels_is_exact_and_also_holds_after_resizing() -> None:
    assert decode(stored(drawing(), "PNG"), SQUARE, max_pixels=600).shape == (16, 16, 3)
    assert rejection(stored(drawing(), "PNG"), max_pixels=599) is Status.TOO_LARGE
    thin = stored(Image.new("RGB", (300, 1)), "PNG")  # 4,800 by 16 once its shorter side is 16
    assert rejection(thin, max_pixels=10_000) is Status.TOO_LARGE


def test_a_thin_line_that_would_vanish_is_rejected_also_when_turned() -> None:
    letterbox = ResizeCrop(height=10, width=400, resize_mode="longest", interpolation="bicubic", fill=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    line = Image.new("RGB", (300, 1))
    assert decode(stored(line, "PNG"), letterbox).shape == (10, 400, 3)
    assert rejection(stored(line, "PNG", exif=exif), letterbox) is Status.TOO_LARGE


def test_pillows_limit_is_left_as_it_was_and_a_bomb_is_still_too_large() -> None:
    default = 1024**3 // 4 // 3  # of Pillow, whatever modules of clipglot are imported
    assert default == Image.MAX_IMAGE_PIXELS
    assert rejection(huge_png(40_000, 40_000)) is Status.TOO_LARGE
    assert decode(stored(drawing(), "PNG"), SQUARE).shape == (16, 16, 3)
    assert default == Image.MAX_IMAGE_PIXELS


def test_images_beyond_pillows_limit_are_decoded_by_several_threads_and_the_limit_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # of a program that imports clipglot; drawings have 600 pixels
    second_is_done = threading.Event()

    def wait_for_second(image: Image.Image) -> Image.Image:
        assert second_is_done.wait(30)
        image.crop((0, 0, 20, 20))  # Pillow would refuse this
        return SQUARE.apply(image)

    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(decode_views, stored(drawing(), "PNG"), SQUARE, [wait_for_second])
        second = decode(stored(drawing(), "PNG"), SQUARE)
        second_is_done.set()
        assert np.array_equal(first.result()[0], second)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(Image.DecompressionBombError):
        Image.open(stored(drawing(), "PNG"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
def test_a_file_truncated_anywhere_is_rejected_and_raises_nothing_else(kind: str) -> None:
    whole = stored(noise(64, 48), kind).getvalue()
    for length in {0, 1, 11, 40, len(whole) // 3, len(whole) // 2}:
        assert rejection(BytesIO(whole[:length])) in (Status.DAMAGED, Status.NOT_A_PICTURE, Status.TOO_LARGE)


@settings(deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255), kind=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF"]))
def test_a_changed_byte_decodes_or_is_rejected(position: int, value: int, kind: str) -> None:
    damaged = bytearray(stored(drawing(), kind).getvalue())
    damaged[position % len(damaged)] = value
    with suppress(RejectedImageError):
        assert decode(BytesIO(damaged), SQUARE).shape == (16, 16, 3)


TEXTS = [
    b"<svg/>",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    b"Python is a language",
    b"P5 is a planet's moon",
    b"BMW is a maker of cars and motorcycles",
]


@pytest.mark.parametrize("content", [b"", b"\0" * 100, *TEXTS])
def test_a_file_of_another_kind_is_not_a_picture(content: bytes) -> None:
    assert rejection(BytesIO(content)) is Status.NOT_A_PICTURE


def link(folder: Path) -> str:
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    return "link.png"


def loop(folder: Path) -> str:
    (folder / "loop.png").symlink_to(folder / "loop.png")
    return "loop.png"


def fifo(folder: Path) -> str:
    os.mkfifo(folder / "pipe.png")
    return "pipe.png"


def endless(folder: Path) -> str:
    with open(folder / "endless.webp", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    return "endless.webp"


@pytest.mark.parametrize(
    ("make_key", "status"),
    [
        (lambda folder: "absent.png", Status.MISSING),
        (lambda folder: "in.png/more.png", Status.MISSING),
        (lambda folder: "nul\0.png", Status.MISSING),
        (lambda folder: "x" * 5000, Status.MISSING),
        (loop, Status.MISSING),
        (lambda folder: "../secret.png", Status.OUTSIDE_ROOT),
        (lambda folder: "a/../../secret.png", Status.OUTSIDE_ROOT),
        (lambda folder: str(folder.parent / "secret.png"), Status.OUTSIDE_ROOT),
        (lambda folder: "/etc/passwd", Status.OUTSIDE_ROOT),
        (link, Status.OUTSIDE_ROOT),
        (lambda folder: ".", Status.UNREADABLE),
        (fifo, Status.UNREADABLE),
        (endless, Status.TOO_LARGE),
    ],
)
def test_only_files_below_the_root_are_opened(make_key: Callable[[Path], str], status: Status, tmp_path: Path) -> None:
    root = tmp_path.resolve() / "root"
    root.mkdir()
    for path in (root / "in.png", tmp_path / "secret.png"):
        drawing().save(path)
    with pytest.raises(RejectedImageError) as rejected:
        open_below(root, make_key(root))
    assert rejected.value.status is status
    for key in ("in.png", "./a/../in.png", str(root / "in.png")):
        with open_below(root, key) as file:
            assert file.name == str(root / "in.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_image_without_permission_is_unreadable(tmp_path: Path) -> None:
    drawing().save(tmp_path / "closed.png")
    (tmp_path / "closed.png").chmod(0)
    with pytest.raises(RejectedImageError) as rejected:
        open_below(tmp_path.resolve(), "closed.png")
    assert rejected.value.status is Status.UNREADABLE
