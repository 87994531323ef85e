"""Odd images have their right pixels, which are known from how they were drawn, or are refused for a true reason."""

import struct
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from clipglot.cache.format import EXPLANATION, RejectedImageError, Status
from clipglot.cache.write.image_decode import ResizeCrop, decode, decode_views
from PIL import Image, ImageFile, PngImagePlugin
from support import image_writers as writers
from support.image_bytes import of_many_scans, rejection, stored
from support.odd_images import Pixels, fault_of, inflating, odd_images, scene

PHOTO = scene(np.random.default_rng(0), 60, 61)


def decoded(content: bytes, like: Pixels = PHOTO.rgb) -> Pixels:
    """At the size of another image."""
    size = ResizeCrop(height=like.shape[0], width=like.shape[1], resize_mode="squash", interpolation="bicubic", fill=0)
    return decode(BytesIO(content), size)


@pytest.mark.parametrize("seed", range(3))
def test_odd_images_have_their_right_pixels(seed: int) -> None:
    for i, image in enumerate(odd_images(100, seed)):
        assert fault_of(image) is None, f"image {i} of seed {seed}: {image.kind}, {image.axes}"


@pytest.mark.slow
def test_ten_thousand_odd_images_have_their_right_pixels() -> None:
    kinds = Counter[str]()
    for i, image in enumerate(odd_images(10_000, 1000)):
        assert fault_of(image) is None, f"image {i} of seed 1000: {image.kind}, {image.axes}"
        kinds[image.kind] += 1
    assert len(kinds) > 40
    assert min(kinds.values()) >= 10


def test_every_status_is_explained() -> None:
    assert EXPLANATION.keys() == set(Status)


# Depth, key and canvas


def grey(top: int) -> Pixels:
    return np.rint(np.rint(PHOTO.grey * top) / top * 255).astype(np.uint8)[..., None].repeat(3, -1)


@pytest.mark.parametrize(("bits", "inverted"), [(12, False), (16, False), (16, True)])
def test_a_tiffs_depth_and_photometric_tag_decide(bits: int, inverted: bool) -> None:
    top = 2**bits - 1
    samples = np.rint(PHOTO.grey * top).astype(np.uint16)[..., None]
    content = writers.tiff(top - samples if inverted else samples, bits, 0 if inverted else 1)
    assert np.abs(decoded(content).astype(int) - grey(top)).max() <= 1


@pytest.mark.parametrize(("form", "sample_format"), [("u4", 1), ("i2", 2), ("i4", 2), ("f4", 3), ("i1", 2)])
def test_numbers_without_a_range_are_unsupported_and_a_range_makes_them_grey(form: str, sample_format: int) -> None:
    samples = np.rint(PHOTO.grey * 100).astype(form)[..., None]
    bits = samples.dtype.itemsize * 8
    assert rejection(BytesIO(writers.tiff(samples, bits, 1, sample_format=sample_format))) is Status.UNSUPPORTED
    content = writers.tiff(samples, bits, 1, sample_format=sample_format, tags={340: (12, [0.0]), 341: (12, [100.0])})
    assert np.abs(decoded(content).astype(int) - grey(100)).max() <= (1 if form != "f4" else 2)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_key_of_grey_is_compared_at_its_own_depth(bits: int) -> None:
    top = 2**bits - 1
    samples = np.rint(PHOTO.grey * top).astype(np.uint16)[..., None]
    key = samples[10, 10].copy()
    right = grey(top)
    right[(samples == key)[..., 0]] = 255
    content = writers.png(samples, bits, 0, trns=key.astype(">u2").tobytes())
    assert np.abs(decoded(content).astype(int) - right).max() <= 1


def test_a_key_of_sixteen_bit_colour_spares_what_has_its_higher_bytes_alone() -> None:
    samples = np.rint(PHOTO.colour * 65535).astype(np.uint16)
    samples[20:40] = 700, 800, 900
    samples[20:30] ^= 1
    content = writers.png(samples, 16, 2, trns=struct.pack(">3H", 700, 800, 900))
    right = np.rint(samples / 257).astype(int)
    right[30:40] = 255
    assert np.abs(decoded(content).astype(int) - right).max() <= 1


@pytest.mark.parametrize("transparent", [None, 0])
def test_a_gif_frame_lies_on_a_transparent_canvas(transparent: int | None) -> None:
    palette = np.array([[200, 30, 40], [10, 60, 200], [0, 0, 0], [9, 9, 9]], np.uint8)
    indices = np.ones((20, 30), np.uint8)
    indices[5:9] = 0
    canvas = np.full((50, 60, 3), 255, np.uint8)
    canvas[7:27, 11:41] = palette[indices]
    if transparent is not None:
        canvas[12:16, 11:41] = 255
    content = writers.gif([writers.GifFrame(indices, 11, 7, transparent=transparent)], (60, 50), palette=palette)
    assert np.array_equal(decoded(content, canvas), canvas)


# Errors beside the pixels


TURNED = writers.exif({274: (3, [6]), 282: (2, b"72\0")}, "<")  # Pillow cannot write its resolution again
UPRIGHT = np.rot90(PHOTO.rgb, -1)


def png(*before: writers.Chunk) -> bytes:
    return writers.png(PHOTO.rgb, 8, 2, before=before)


def webp(*more: writers.Chunk) -> bytes:
    bitstream = writers.riff_chunks(stored(Image.fromarray(PHOTO.rgb), "WEBP", lossless=True).getvalue())
    height, width = PHOTO.rgb.shape[:2]
    return writers.riff([writers.vp8x(width, height, 8), *bitstream, *more])


BESIDE: dict[str, tuple[Callable[[], bytes], Pixels]] = {
    "a text of 3 MiB": (lambda: png((b"zTXt", b"parameters\0\0" + inflating(3 * 2**20))), PHOTO.rgb),
    "a text of 3 MiB in UTF-8": (lambda: png((b"iTXt", b"parameters\0\1\0\0\0" + inflating(3 * 2**20))), PHOTO.rgb),
    "a profile of 3 MiB": (lambda: png((b"iCCP", b"a\0\0" + inflating(3 * 2**20))), PHOTO.rgb),
    "a text named as a key": (lambda: png((b"tEXt", b"transparency\0blue")), PHOTO.rgb),
    "a text whose checksum is wrong": (lambda: png((b"tEXt", b"a\0b")).replace(b"a\0b", b"a\0c"), PHOTO.rgb),
    "a resolution as text": (lambda: png((b"eXIf", TURNED)), UPRIGHT),
    "a resolution as text and a huge profile": (
        lambda: png((b"iCCP", b"a\0\0" + inflating(3 * 2**20)), (b"eXIf", TURNED)),
        UPRIGHT,
    ),
    "no TIFF header": (lambda: png((b"eXIf", TURNED[8:])), PHOTO.rgb),
    "WebP, a resolution as text": (lambda: webp((b"EXIF", TURNED)), UPRIGHT),
    "WebP, no TIFF header": (lambda: webp((b"EXIF", TURNED[8:])), PHOTO.rgb),
    "TIFF, a resolution as text": (
        lambda: writers.tiff(PHOTO.rgb, 8, 2, tags={274: (3, [6]), 282: (2, b"72\0"), 296: (3, [3])}),
        UPRIGHT,
    ),
}


@pytest.mark.parametrize("what", BESIDE)
def test_an_error_beside_the_pixels_costs_no_row(what: str) -> None:
    make, right = BESIDE[what]
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, ImageFile.LOAD_TRUNCATED_IMAGES
    assert np.array_equal(decoded(make(), right), right)
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_a_jpeg_is_turned_whose_exif_data_pillow_cannot_write_again() -> None:
    plain = stored(Image.fromarray(PHOTO.rgb), "JPEG", quality=95).getvalue()
    turned = writers.jpeg_with(plain, [writers.jpeg_segment(0xE1, b"Exif\0\0" + TURNED)])
    assert np.array_equal(decoded(turned, UPRIGHT), np.rot90(decoded(plain), -1))


JPEGS = {
    "baseline": {"quality": 80},
    "restarts": {"quality": 80, "restart_marker_blocks": 3},
    "progressive": {"quality": 80, "progressive": True},
    "progressive restarts": {"quality": 80, "progressive": True, "restart_marker_rows": 1},
    "grey": {"quality": 80},
}


def jpeg(kind: str) -> bytes:
    image = Image.fromarray(PHOTO.rgb[:33, :41])
    return stored(image.convert("L") if kind == "grey" else image, "JPEG", **JPEGS[kind]).getvalue()


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_cut_anywhere_has_all_its_pixels_or_is_damaged(kind: str) -> None:
    """Also without an end marker, and with one behind the cut."""
    content = jpeg(kind)
    right = decoded(content)
    assert np.array_equal(decoded(content[:-2]), right)
    assert np.array_equal(decoded(content[:-1]), right)
    whole = []
    for length in range(40, len(content) - 2):
        try:
            pixels = decoded(content[:length])
        except RejectedImageError as error:
            rejected = error.status
        else:
            assert np.array_equal(pixels, right), length
            whole.append(length)
            continue
        assert rejected is Status.DAMAGED, length
    assert len(whole) <= 3  # bits that fill the last byte


def test_scaled_decoding_takes_a_jpeg_without_an_end_too() -> None:
    square = ResizeCrop(height=16, width=16, resize_mode="squash", interpolation="bicubic", fill=0)
    content = stored(Image.fromarray(PHOTO.rgb).resize((200, 200)), "JPEG", quality=90).getvalue()
    whole, cut = (decode_views(BytesIO(c), square, [square.apply], scaled=True) for c in (content, content[:-2]))
    assert np.array_equal(whole, cut)


# Bombs


def test_a_jpeg_of_thousands_of_scans_is_refused_at_once() -> None:
    content = of_many_scans(1200, 3000)
    started = time.process_time()
    assert rejection(BytesIO(content)) is Status.TOO_SLOW
    assert time.process_time() - started < 5


def test_a_small_jpeg_of_many_scans_is_embedded() -> None:
    content = of_many_scans(60, 200)
    assert np.array_equal(decoded(content), decoded(of_many_scans(60, 0)))


def test_a_jpeg_of_as_many_scans_as_usual_is_embedded_at_any_size() -> None:
    file = stored(Image.new("RGB", (6000, 5000)), "JPEG", progressive=True)
    assert decoded(file.getvalue()).max() < 3


def test_chunks_without_end_take_no_memory() -> None:
    chunk = struct.pack(">I", 0) + b"teXt" + struct.pack(">I", zlib.crc32(b"teXt"))
    content = png()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        many = content[:33] + chunk * 100_000 + content[33:]
        assert np.array_equal(decoded(many), PHOTO.rgb)
