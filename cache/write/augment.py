"""Augmented views of an image: random resized crop, flip, jitter and grey, drawn from (seed, row, view) alone.

So a resumed pass or another worker gives the same pixels. View 0 is the plain one, as the tower sees it at inference.
This runs in worker processes, with only Pillow and numpy.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from ..format import Augmentation
from .image_decode import ResizeCrop

NUM_ATTEMPTS = 10  # to draw a crop that fits into the image
MAX_STRETCH = 4 / 3  # of a crop's aspect ratio, either way
Box = tuple[int, int, int, int]


def augmented(image: Image.Image, geometry: ResizeCrop, given: Augmentation, row: int, view: int) -> Image.Image:
    """Make an augmented view of an image.

    Args:
        image: RGB, of any size.
        geometry: the tower's resize and crop.
        given: the augmentations and their strength.
        row: of the image in its cache.
        view: from 1 on.

    Returns:
        RGB of exactly the geometry's size.
    """
    # Each augmentation has random numbers of its own, so that switching one on does not change the others.
    uniform = np.random.Generator(np.random.PCG64([given.seed, row, view])).random(2 * NUM_ATTEMPTS + 7)
    for_crop, (mirror, *changes, grey) = uniform[: 2 * NUM_ATTEMPTS + 2], uniform[2 * NUM_ATTEMPTS + 2 :].tolist()
    if given.scale < 1:
        # A tower that pads or squashes sees the crop as it would see an image of that shape. A tower that crops the
        # centre gets a crop of its own shape.
        crops = geometry.resize_mode == "shortest"
        aspect = geometry.width / geometry.height if crops else image.width / image.height
        cropped = image.crop(crop_box(image.size, aspect, given.scale, for_crop))
        if crops:
            geometry = replace(geometry, resize_mode="squash")
        if min(geometry.resized(*cropped.size)) >= 1:  # a thin line would be resized to nothing
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


def crop_box(size: tuple[int, int], aspect: float, min_area: float, uniform: NDArray[np.float64]) -> Box:
    """Draw a random resized crop, as (left, top, right, bottom).

    Szegedy et al. 2015, arXiv:1409.4842, section 6; where no attempt fits, the centre, as in torchvision's
    `RandomResizedCrop`.

    Args:
        size: width and height of the image.
        aspect: width / height of the crop, before it is stretched by up to 4/3 either way.
        min_area: smallest fraction of the image's area.
        uniform: random numbers `[2 * NUM_ATTEMPTS + 2]`, from 0 to 1.

    >>> crop_box((100, 80), 1.0, 0.3, np.full(22, 0.5))
    (14, 4, 86, 76)
    """
    width, height = size
    areas = width * height * (min_area + (1 - min_area) * uniform[:NUM_ATTEMPTS])
    aspects = aspect * MAX_STRETCH ** (2 * uniform[NUM_ATTEMPTS:-2] - 1)
    widths, heights = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    fits = np.flatnonzero((widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height))
    if len(fits):
        crop_width, crop_height = int(widths[fits[0]]), int(heights[fits[0]])
        left, top = (
            math.floor(uniform[-2] * (width - crop_width + 1)),
            math.floor(uniform[-1] * (height - crop_height + 1)),
        )
    else:
        crop_width = min(width, max(1, round(height * aspect * MAX_STRETCH)))
        crop_height = min(height, max(1, round(width / aspect * MAX_STRETCH)))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height
