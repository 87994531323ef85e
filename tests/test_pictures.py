"""From a file's bytes to the pixels of the tower: open_clip's geometry, and one picture of each awkward kind."""

import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip.transform as upstream
import pytest
import torch
from clipglot.cache.format import Status
from clipglot.cache.pictures import MAX_FILE_BYTES, Geometry, RejectedPictureError, decode, decode_views, open_below
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps
from torchvision.transforms import Compose

SQUARE = Geometry(height=16, width=16, resize_mode="shortest", interpolation="bicubic", fill=0)
PLAIN = Geometry(height=20, width=30, resize_mode="squash", interpolation="bicubic", fill=0)  # of `drawing()`: as it is

sides = st.integers(1, 70)
preprocesses = st.fixed_dictionaries(
    {
        "size": st.one_of(st.integers(1, 40).map(lambda s: (s, s)), st.tuples(st.integers(1, 40), st.integers(1, 40))),
        "resize_mode": st.sampled_from(["shortest", "longest", "squash"]),
        "interpolation": st.sampled_from(["bicubic", "bilinear", "random"]),
        "fill_color": st.sampled_from([0, 127]),
    }
)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8))


def drawing(mode: str = "RGB") -> Image.Image:
    """A red disc on blue, 30 by 20, off the centre so that turning it shows."""
    picture = Image.new("RGB", (30, 20), (0, 0, 255))
    ImageDraw.Draw(picture).ellipse((2, 2, 12, 12), fill=(255, 0, 0))
    return picture.convert(mode)


def stored(picture: Image.Image, kind: str, **options: Any) -> BytesIO:
    file = BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def rejection(file: BytesIO, geometry: Geometry = SQUARE, **limits: int) -> Status:
    with pytest.raises(RejectedPictureError) as rejected:
        decode(file, geometry, **limits)
    return rejected.value.status


@settings(deadline=None)
@given(width=sides, height=sides, preprocess=preprocesses)
def test_the_geometry_is_open_clips_bit_for_bit(width: int, height: int, preprocess: dict[str, Any]) -> None:
    geometry, picture = Geometry.from_preprocess(preprocess), noise(width, height)
    if min(geometry.resized(width, height)) < 1:
        assert rejection(stored(picture, "PNG"), geometry) is Status.TOO_LARGE  # upstream fails on it
        return
    whole = upstream.image_transform_v2(upstream.PreprocessCfg(**preprocess), is_train=False)
    before_tensor = Compose(whole.transforms[:-2])  # drops ToTensor and Normalize
    assert np.array_equal(geometry.apply(picture), np.asarray(before_tensor(picture)))


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_the_towers_input_is_open_clips_preprocessed_tensor(resize_mode: str, tiny_clip: Path) -> None:
    from clipglot.encoders.image import load_image_tower

    tower = load_image_tower(f"local-dir:{tiny_clip}", None)
    tower = replace(tower, preprocess={**tower.preprocess, "resize_mode": resize_mode})
    preprocess = upstream.image_transform_v2(upstream.PreprocessCfg(**tower.preprocess), is_train=False)
    pixels = decode(stored(noise(57, 91), "PNG"), Geometry.from_preprocess(tower.preprocess))
    assert torch.equal(tower.normalize(pixels[None])[0], preprocess(noise(57, 91)))


def test_a_preprocessing_that_open_clip_does_not_have_is_refused() -> None:
    from clipglot.cache.errors import CacheError

    with pytest.raises(CacheError, match="known are shortest, longest, squash"):
        Geometry.from_preprocess({"size": 224, "resize_mode": "stretch"})


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "RGBA", "LA"])
def test_every_colour_mode_embeds_as_it_looks(mode: str) -> None:
    kind = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    looks = drawing(mode if mode in ("L", "1") else "L" if mode == "LA" else "RGB").convert("RGB")
    pixels = decode(stored(drawing(mode), kind), PLAIN)
    assert np.abs(pixels.astype(int) - np.asarray(looks)).max() <= 2


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    pixels = decode(stored(drawing("CMYK"), "JPEG", quality=100, subsampling=0), PLAIN)
    assert np.abs(pixels.astype(int) - np.asarray(drawing())).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_to_eight_and_not_clipped(kind: str) -> None:
    grey = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    pixels = decode(stored(Image.fromarray(grey), kind), PLAIN)
    assert np.array_equal(pixels, np.rint(grey / 257).astype(np.uint8)[..., None].repeat(3, 2))


@pytest.mark.parametrize("form", ["palette index", "palette alpha", "grey key", "colour key", "alpha"])
def test_transparency_shows_white(form: str) -> None:
    """Whatever way a PNG says that its blue is transparent."""
    palette = drawing().quantize(2)
    blue = palette.getpixel((29, 19))
    grey = drawing("L")
    cutout = drawing("RGBA")
    cutout.putdata([(r, g, b, 255 if r else 0) for r, g, b, _ in cutout.get_flattened_data()])
    file = {
        "palette index": lambda: stored(palette, "PNG", transparency=blue),
        "palette alpha": lambda: stored(palette, "PNG", transparency=bytes([255, 0] if blue else [0, 255])),
        "grey key": lambda: stored(grey, "PNG", transparency=grey.getpixel((29, 19))),
        "colour key": lambda: stored(drawing(), "PNG", transparency=(0, 0, 255)),
        "alpha": lambda: stored(cutout, "WEBP", lossless=True, exact=True),
    }[form]()
    pixels = decode(file, PLAIN)
    assert pixels[19, 29].tolist() == [255, 255, 255]
    assert pixels[7, 7].tolist() == ([76] * 3 if form == "grey key" else [255, 0, 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    turn = Image.Transpose
    undo = [None, turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE]
    undo += [turn.ROTATE_270, turn.TRANSVERSE, turn.ROTATE_90]
    exif = Image.Exif()
    exif[0x0112] = orientation
    operation = undo[orientation - 1]
    upright = drawing() if operation is None else drawing().transpose(operation)
    geometry = replace(PLAIN, height=upright.height, width=upright.width)
    assert np.array_equal(decode(stored(drawing(), "PNG", exif=exif), geometry), np.asarray(upright))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("lime", "blue")]
    file = stored(drawing(), kind, save_all=True, append_images=frames, **options)
    assert np.array_equal(decode(file, PLAIN), np.asarray(drawing()))


def huge_png(width: int, height: int) -> BytesIO:
    """A header that promises a picture, and nothing more."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return BytesIO(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )  # fmt: skip


@pytest.mark.parametrize("size", [(40_000, 40_000), (2**31 - 1, 2**31 - 1), (60_000_000, 1), (1, 60_000_000)])
def test_a_huge_picture_is_refused_by_its_header(size: tuple[int, int]) -> None:
    assert rejection(huge_png(*size)) is Status.TOO_LARGE


def test_the_limit_of_pixels_is_exact_and_also_holds_after_resizing() -> None:
    assert decode(stored(drawing(), "PNG"), SQUARE, max_pixels=600).shape == (16, 16, 3)
    assert rejection(stored(drawing(), "PNG"), max_pixels=599) is Status.TOO_LARGE
    thin = stored(Image.new("RGB", (300, 1)), "PNG")  # 4,800 by 16 once its shorter side is 16
    assert rejection(thin, max_pixels=10_000) is Status.TOO_LARGE


def test_a_thin_line_that_would_vanish_costs_its_row_also_when_turned() -> None:
    letterbox = Geometry(height=10, width=400, resize_mode="longest", interpolation="bicubic", fill=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    line = Image.new("RGB", (300, 1))
    assert decode(stored(line, "PNG"), letterbox).shape == (10, 400, 3)
    assert rejection(stored(line, "PNG", exif=exif), letterbox) is Status.TOO_LARGE


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
def test_a_file_cut_anywhere_is_rejected_and_raises_nothing_else(kind: str) -> None:
    whole = stored(noise(64, 48), kind).getvalue()
    for length in {0, 1, 11, 40, len(whole) // 3, len(whole) // 2}:
        assert rejection(BytesIO(whole[:length])) in (Status.DAMAGED, Status.NOT_A_PICTURE, Status.TOO_LARGE)


@settings(deadline=None)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255), kind=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF"]))
def test_a_changed_byte_decodes_or_is_rejected(position: int, value: int, kind: str) -> None:
    damaged = bytearray(stored(drawing(), kind).getvalue())
    damaged[position % len(damaged)] = value
    with suppress(RejectedPictureError):
        assert decode(BytesIO(damaged), SQUARE).shape == (16, 16, 3)


def pillows(file: BytesIO, geometry: Geometry) -> np.ndarray:
    """What Pillow alone makes of a file."""
    return np.asarray(geometry.apply(ImageOps.exif_transpose(Image.open(file)).convert("RGB")))


@settings(deadline=None)
@given(
    width=sides,
    height=sides,
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    quality=st.sampled_from([5, 75, 100]),
    subsampling=st.integers(0, 2),
    progressive=st.booleans(),
    orientation=st.integers(0, 8),
)
def test_jpegs_have_pillows_pixels(width: int, height: int, mode: str, orientation: int, **options: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = stored(noise(width, height).convert(mode), "JPEG", exif=exif, **options)
    assert np.array_equal(decode(file, SQUARE), pillows(file, SQUARE))


@pytest.mark.parametrize(("side", "differs"), [(31, False), (63, False), (64, True), (999, True)])
def test_scaled_decoding_keeps_twice_the_sides(side: int, differs: bool) -> None:
    """Of 16 pixels: a picture of 64 is decoded to 32."""
    file = stored(noise(70, 70).resize((side, side + 1), Image.Resampling.BICUBIC), "JPEG", quality=95)
    exact = decode(file, SQUARE).astype(int)
    scaled = decode_views(BytesIO(file.getvalue()), SQUARE, [SQUARE.apply], scaled=True)[0].astype(int)
    assert bool((exact != scaled).any()) is differs
    assert np.abs(exact - scaled).mean() < 8  # of noise


def test_scaled_decoding_of_a_turned_picture_keeps_enough_of_both_sides() -> None:
    wide = Geometry(height=10, width=40, resize_mode="squash", interpolation="bicubic", fill=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = stored(noise(70, 70).resize((40, 160)), "JPEG", exif=exif, quality=95)
    scaled = decode_views(file, wide, [wide.apply], scaled=True)[0]
    assert np.array_equal(scaled, decode(BytesIO(file.getvalue()), wide))  # shown 160 by 40: a half is 20 high, but 80


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_picture_is_told_so(content: bytes) -> None:
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
def test_nothing_but_a_file_below_the_root_is_opened(
    make_key: Callable[[Path], str], status: Status, tmp_path: Path
) -> None:
    root = tmp_path.resolve() / "root"
    root.mkdir()
    for path in (root / "in.png", tmp_path / "secret.png"):
        drawing().save(path)
    with pytest.raises(RejectedPictureError) as rejected:
        open_below(root, make_key(root))
    assert rejected.value.status is status
    for key in ("in.png", "./a/../in.png", str(root / "in.png")):
        with open_below(root, key) as file:
            assert file.name == str(root / "in.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_picture_without_permission_is_unreadable(tmp_path: Path) -> None:
    drawing().save(tmp_path / "closed.png")
    (tmp_path / "closed.png").chmod(0)
    with pytest.raises(RejectedPictureError) as rejected:
        open_below(tmp_path.resolve(), "closed.png")
    assert rejected.value.status is Status.UNREADABLE
