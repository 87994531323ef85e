"""Image decoding: open_clip's geometry, and the pixels of one image of each awkward kind."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip.transform as upstream
import pytest
import torch
from clipglot.cache.format import Status
from clipglot.cache.write.image_decode import ResizeCrop, decode, decode_views
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from support.image_bytes import PLAIN, SQUARE, drawing, noise, rejection, stored
from torchvision.transforms import Compose

sides = st.integers(1, 70)
preprocesses = st.fixed_dictionaries(
    {
        "size": st.one_of(st.integers(1, 40).map(lambda s: (s, s)), st.tuples(st.integers(1, 40), st.integers(1, 40))),
        "resize_mode": st.sampled_from(["shortest", "longest", "squash"]),
        "interpolation": st.sampled_from(["bicubic", "bilinear", "random"]),
        "fill_color": st.sampled_from([0, 127]),
    }
)


@settings(deadline=None)
@given(width=sides, height=sides, preprocess=preprocesses)
def test_the_geometry_is_open_clips_bit_for_bit(width: int, height: int, preprocess: dict[str, Any]) -> None:
    geometry, image = ResizeCrop.from_preprocess(preprocess), noise(width, height)
    if min(geometry.resized(width, height)) < 1:
        assert rejection(stored(image, "PNG"), geometry) is Status.TOO_LARGE  # upstream fails on it
        return
    whole = upstream.image_transform_v2(upstream.PreprocessCfg(**preprocess), is_train=False)
    before_tensor = Compose(whole.transforms[:-2])  # drops ToTensor and Normalize
    assert np.array_equal(geometry.apply(image), np.asarray(before_tensor(image)))


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_the_towers_input_is_open_clips_preprocessed_tensor(resize_mode: str, tiny_clip: Path) -> None:
    from clipglot.encoders.image_tower import load_image_tower

    tower = load_image_tower(f"local-dir:{tiny_clip}", None)
    tower = replace(tower, preprocess={**tower.preprocess, "resize_mode": resize_mode})
    preprocess = upstream.image_transform_v2(upstream.PreprocessCfg(**tower.preprocess), is_train=False)
    pixels = decode(stored(noise(57, 91), "PNG"), ResizeCrop.from_preprocess(tower.preprocess))
    assert torch.equal(tower.normalize(pixels[None])[0], preprocess(noise(57, 91)))


def test_a_preprocessing_that_open_clip_does_not_have_is_refused() -> None:
    from clipglot.cache.errors import CacheError

    with pytest.raises(CacheError, match="known are shortest, longest, squash"):
        ResizeCrop.from_preprocess({"size": 224, "resize_mode": "stretch"})


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
    """In every way in which a PNG can make its blue transparent."""
    palette = drawing().quantize(2)
    blue = palette.getpixel((29, 19))
    grey = drawing("L")
    cutout = drawing("RGBA")
    cutout.putdata([(r, g, b, 255 if r else 0) for r, g, b, _ in np.asarray(cutout).reshape(-1, 4).tolist()])
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


def decode_by_pillow(file: BytesIO, geometry: ResizeCrop) -> np.ndarray:
    """The pixels that Pillow alone gives."""
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
    assert np.array_equal(decode(file, SQUARE), decode_by_pillow(file, SQUARE))


@pytest.mark.parametrize(("side", "differs"), [(31, False), (63, False), (64, True), (999, True)])
def test_scaled_decoding_keeps_twice_the_sides(side: int, differs: bool) -> None:
    """Of 16 pixels: an image of 64 is decoded to 32."""
    file = stored(noise(70, 70).resize((side, side + 1), Image.Resampling.BICUBIC), "JPEG", quality=95)
    exact = decode(file, SQUARE).astype(int)
    scaled = decode_views(BytesIO(file.getvalue()), SQUARE, [SQUARE.apply], scaled=True)[0].astype(int)
    assert bool((exact != scaled).any()) is differs
    assert np.abs(exact - scaled).mean() < 8  # of noise


def test_scaled_decoding_of_a_turned_image_keeps_enough_of_both_sides() -> None:
    wide = ResizeCrop(height=10, width=40, resize_mode="squash", interpolation="bicubic", fill=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    file = stored(noise(70, 70).resize((40, 160)), "JPEG", exif=exif, quality=95)
    scaled = decode_views(file, wide, [wide.apply], scaled=True)[0]
    assert np.array_equal(scaled, decode(BytesIO(file.getvalue()), wide))  # shown 160 by 40: a half is 20 high, but 80
