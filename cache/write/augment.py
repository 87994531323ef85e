"""Augmented views of an image, drawn from (seed, row, view) alone: resuming or other workers give the same pixels.

View 0 is the plain one, as the tower sees it at inference. Runs in worker processes, on Pillow and numpy alone.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from ..format import Augmentation
from .image_decode import ResizeCrop

NUM_ATTEMPTS = 10
MOST_STRETCH = 4 / 3  # of a crop's sides against each other, either way
Box = tuple[int, int, int, int]


def augmented(image: Image.Image, geometry: ResizeCrop, given: Augmentation, row: int, view: int) -> Image.Image:
    """A further view of an image.

    Args:
        image: RGB, of any size.
        geometry: the tower's resize and crop.
        given: what to do, and how much of it.
        row: of the image in its cache.
        view: from 1 on.

    Returns:
        RGB of exactly the geometry's size.
    """
    # Each decision has numbers of its own, so that switching one on changes no other.
    chance = np.random.Generator(np.random.PCG64([given.seed, row, view])).random(2 * NUM_ATTEMPTS + 7)
    place, (mirror, *changes, grey) = chance[: 2 * NUM_ATTEMPTS + 2], chance[2 * NUM_ATTEMPTS + 2 :].tolist()
    if given.scale < 1:
        # A tower that pads or squashes sees a crop as it would see an image of that shape; one that crops the centre
        # is given the crop itself.
        crops = geometry.resize_mode == "shortest"
        aspect = geometry.width / geometry.height if crops else image.width / image.height
        cropped = image.crop(crop_box(image.size, aspect, given.scale, place))
        if crops:
            geometry = replace(geometry, resize_mode="squash")
        if min(geometry.resized(*cropped.size)) >= 1:  # else a thin line would become nothing
            image = cropped
    image = geometry.resize(image)
    if mirror < given.flip:
        image = ImageOps.mirror(image)
    if given.jitter:
        for enhance, change in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), changes, strict=True
        ):
            image = enhance(image).enhance(1 + given.jitter * (2 * change - 1))
    if grey < given.grayscale:
        image = ImageOps.grayscale(image).convert("RGB")
    return geometry.frame(image)


def crop_box(size: tuple[int, int], aspect: float, least: float, chance: NDArray[np.float64]) -> Box:
    """A random part of an image, as (left, top, right, bottom).

    Szegedy et al. 2015, arXiv:1409.4842, section 6; where nothing fits, the centre, as torchvision's
    `RandomResizedCrop` has it.

    Args:
        size: width and height of the image.
        aspect: width / height of the crop, before it is stretched by up to 4/3 either way.
        least: smallest share of the area.
        chance: `[2 * NUM_ATTEMPTS + 2]`, from 0 to 1.

    >>> crop_box((100, 80), 1.0, 0.3, np.full(22, 0.5))
    (14, 4, 86, 76)
    """
    width, height = size
    areas = width * height * (least + (1 - least) * chance[:NUM_ATTEMPTS])
    aspects = aspect * MOST_STRETCH ** (2 * chance[NUM_ATTEMPTS:-2] - 1)
    widths, heights = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    fits = np.flatnonzero((widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height))
    if len(fits):
        wide, high = int(widths[fits[0]]), int(heights[fits[0]])
        left, top = math.floor(chance[-2] * (width - wide + 1)), math.floor(chance[-1] * (height - high + 1))
    else:
        wide = min(width, max(1, round(height * aspect * MOST_STRETCH)))
        high = min(height, max(1, round(width / aspect * MOST_STRETCH)))
        left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high
