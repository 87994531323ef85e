"""Class folders of images of coloured noise."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {"red": (200, 30, 30), "green": (30, 170, 30), "blue": (30, 30, 200)}
PER_CLASS = 8


def draw_classes(folder: Path, per_class: int = PER_CLASS, seed: int = 0) -> Path:
    """Draw `per_class` PNG files in a folder of each class."""
    rng = np.random.default_rng(seed)
    for name, colour in CLASSES.items():
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            noise = rng.normal(colour, 60, (40, 48, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / name / f"{i:02}.png")
    return folder
