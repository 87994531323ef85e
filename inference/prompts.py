"""Prompt templates of zero-shot classification, and the embeddings of classes that they give.

A class may have several names (synonyms); its embedding is the mean over names and templates, of unit norm (Radford et
al. 2021, arXiv:2103.00020, section 3.1.4).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

PLAIN = ("{}",)
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "en": (
        "a photo of a {}",
        "a photo of one {}",
        "a picture of the {}",
        "a close-up photo of a {}",
        "a small {} in a photo",
        "a bright photo with a {}",
        "a dark photo with a {}",
        "a drawing of a {}",
        "{}",
    ),
    "ru": (
        "фото: {}",
        "на фотографии {}",
        "на снимке изображено: {}",
        "{} крупным планом",
        "маленькое изображение: {}",
        "яркая фотография: {}",
        "тёмная фотография: {}",
        "рисунок: {}",
        "{}",
    ),
    "zh": (
        "一张{}的照片",
        "照片里有{}",
        "{}的特写照片",
        "图中是{}",
        "一张明亮的{}照片",
        "一张昏暗的{}照片",
        "一个小小的{}",
        "一幅{}的画",
        "{}",
    ),
    "ko": (
        "{} 사진",
        "사진 속의 {}",
        "{}을(를) 찍은 사진",
        "{} 클로즈업 사진",
        "밝은 {} 사진",
        "어두운 {} 사진",
        "작은 {} 이미지",
        "{} 그림",
        "{}",
    ),
}
PLACES = ("{}", "{c}")  # of the name; the second is CLIP_benchmark's


def class_embeddings(
    encode: Callable[[Sequence[str]], NDArray[np.float32]],
    names: Sequence[Sequence[str]],
    templates: Sequence[str] = PLAIN,
) -> NDArray[np.float32]:
    """Unit embeddings `[C, D]` of classes: the mean over their names and the templates.

    Args:
        encode: texts to unit embeddings.
        names: of each of C classes, at least one.
        templates: with the place of the name.
    """
    prompts = [fill(template, name) for synonyms in names for name in synonyms for template in templates]
    ends = np.cumsum([len(synonyms) * len(templates) for synonyms in names])
    sums = np.add.reduceat(encode(prompts), np.r_[0, ends[:-1]], axis=0)
    result: NDArray[np.float32] = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return result


def has_place(template: str) -> bool:
    """Whether a template has a place for the name."""
    return any(place in template for place in PLACES)


def fill(template: str, name: str) -> str:
    """A template with a name in its place.

    >>> fill("a photo of a {c}.", "cat")
    'a photo of a cat.'
    """
    for place in PLACES:
        template = template.replace(place, name)
    return template
