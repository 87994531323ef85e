"""Augmented views: crops distributed as torchvision's, fixed by seed, row and view, in the shape of the tower."""

import numpy as np
import pytest
import torch
from clipglot.cache.format import Augmentation
from clipglot.cache.write import augment
from clipglot.cache.write.augment import augmented, crop_box
from clipglot.cache.write.image_decode import ResizeCrop
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import RandomResizedCrop

GEOMETRY = {
    mode: ResizeCrop(height=24, width=24, resize_mode=mode, interpolation="bicubic", fill=9)  # type: ignore[arg-type]
    for mode in ("shortest", "longest", "squash")
}


def gradient(width: int, height: int) -> Image.Image:
    """An image without equal parts: red grows from left to right, green from top to bottom."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 60)], axis=-1).astype(np.uint8))


def pixels(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image).astype(np.float64)


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.2, 5), st.floats(0.01, 1), st.integers(0, 2**32))
def test_a_crop_lies_in_the_image_and_has_its_area_and_aspect_ratio(
    width: int, height: int, aspect: float, least: float, seed: int
) -> None:
    chance = np.random.default_rng(seed).random(2 * augment.NUM_ATTEMPTS + 2)
    left, top, right, bottom = crop_box((width, height), aspect, least, chance)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    wide, high = right - left, bottom - top
    if min(wide, high) > 50 and 0.8 * aspect < width / height < 1.25 * aspect:  # rounding is small, and a crop fits
        assert wide * high >= 0.95 * least * width * height
        assert 0.72 * aspect < wide / high < 1.37 * aspect


@pytest.mark.parametrize(("size", "least"), [((500, 375), 0.5), ((300, 100), 0.3), ((100, 300), 0.9)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int], least: float) -> None:
    torch.manual_seed(0)
    image, rng = Image.new("RGB", size), np.random.default_rng(0)
    theirs = [RandomResizedCrop.get_params(image, [least, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    ours = [crop_box(size, 1.0, least, rng.random(2 * augment.NUM_ATTEMPTS + 2)) for _ in range(4000)]
    top, left, high, wide = np.array(theirs).T
    for mine, other in zip(np.array(ours).T, (left, top, left + wide, top + high), strict=True):
        at = [5, 25, 50, 75, 95]
        assert np.abs(np.percentile(mine, at) - np.percentile(other, at)).max() < 0.03 * max(size)


@pytest.mark.parametrize("mode", GEOMETRY)
def test_a_view_is_fixed_by_seed_row_and_view_alone(mode: str) -> None:
    image, geometry, augmentation = gradient(60, 40), GEOMETRY[mode], Augmentation(scale=0.3)
    views = {
        (seed, row, view): pixels(augmented(image, geometry, Augmentation(scale=0.3, seed=seed), row, view)).tobytes()
        for seed in (0, 1)
        for row in (0, 1)
        for view in (1, 2)
    }
    assert len(set(views.values())) == 8
    assert pixels(augmented(image, geometry, augmentation, 1, 2)).tobytes() == views[0, 1, 2]


def test_crops_have_the_shape_in_which_the_tower_sees_images() -> None:
    wide, augmentation = gradient(96, 24), Augmentation(scale=0.3)
    for row in range(20):
        views = {mode: pixels(augmented(wide, geometry, augmentation, row, 1)) for mode, geometry in GEOMETRY.items()}
        assert (views["longest"][0] == 9).all()  # still padded above
        assert (views["squash"][:, :, 2] > 50).all()  # no border
        spread = {mode: np.ptp(views[mode], axis=(0, 1))[:2] for mode in ("shortest", "squash")}
        assert spread["squash"][0] > 0.35 * 255  # a crop as wide as the image is
        assert spread["shortest"][0] < 0.45 * 255  # a crop about as wide as it is high


def test_without_cropping_a_view_is_what_the_tower_sees_of_the_image_mirrored_or_grey() -> None:
    for mode, geometry in GEOMETRY.items():
        image = gradient(60, 40)
        plain = pixels(geometry.apply(image))
        mirrored = augmented(image, geometry, Augmentation(scale=1, flip=1), 5, 1)
        assert np.array_equal(pixels(mirrored), plain[:, ::-1]), mode
        grey = pixels(augmented(image, geometry, Augmentation(scale=1, grayscale=1), 5, 1))
        assert (grey == grey[..., :1]).all()
        jittered = augmented(image, geometry, Augmentation(scale=1, jitter=0.5), 5, 1)
        assert np.abs(pixels(jittered) - plain).mean() > 3
        if mode == "longest":  # what is padded is no part of the image
            assert (pixels(jittered)[0] == 9).all()


def test_augmentations_have_their_chances_and_do_not_change_each_other() -> None:
    image, geometry = gradient(40, 40), GEOMETRY["shortest"]
    rows = range(400)
    plain = [pixels(augmented(image, geometry, Augmentation(scale=0.5), row, 1)) for row in rows]
    half = [pixels(augmented(image, geometry, Augmentation(scale=0.5, flip=0.3), row, 1)) for row in rows]
    mirrored = [not np.array_equal(a, b) for a, b in zip(plain, half, strict=True)]
    assert all(np.array_equal(a[:, ::-1] if m else a, b) for a, b, m in zip(plain, half, mirrored, strict=True))
    assert 0.2 < np.mean(mirrored) < 0.4


@pytest.mark.parametrize("mode", GEOMETRY)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_thin_images_have_views(size: tuple[int, int], mode: str) -> None:
    if min(GEOMETRY[mode].resized(*size)) < 1:
        return  # the image itself is refused
    for view in range(1, 30):
        assert augmented(gradient(*size), GEOMETRY[mode], Augmentation(scale=0.1), 0, view).size == (24, 24)
