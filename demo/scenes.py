"""Scenes of the demo: coloured shapes, sampled by seed and drawn as small images.

`training_scenes`, `held_out_scenes` and `classification_scenes` sample scenes, `draw` draws them, and `captions`
describes them. Of the 64 (colour, shape) pairs, 16 occur in no training scene: a tower that recognizes them has learned
colour and shape separately.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Colour = Literal["red", "orange", "yellow", "green", "light blue", "blue", "purple", "pink"]
Shape = Literal["circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent"]
Size = Literal["small", "large"]
Background = Literal["white", "grey", "black"]
Layout = Literal["centre", "left", "right", "top", "bottom", "scattered", "beside", "stacked"]
Pair = tuple[Colour, Shape]
COLOURS: tuple[Colour, ...] = get_args(Colour)
SHAPES: tuple[Shape, ...] = get_args(Shape)
BACKGROUNDS: tuple[Background, ...] = get_args(Background)
PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
"""All 64 pairs, colour by colour; in this order they are the classes of zero-shot classification."""
# Two diagonals of the table of colours and shapes: each colour and each shape is in exactly two held-out pairs.
HELD_OUT: tuple[Pair, ...] = tuple(
    (colour, shape) for c, colour in enumerate(COLOURS) for s, shape in enumerate(SHAPES) if (s - c) % 8 in (0, 3)
)
"""The 16 pairs that no training scene contains."""
TRAINED: tuple[Pair, ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
"""The 48 pairs of training scenes."""
_RGB: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 40),
    "orange": (246, 134, 22),
    "yellow": (250, 220, 48),
    "green": (44, 160, 70),
    "light blue": (122, 204, 250),
    "blue": (38, 76, 212),
    "purple": (128, 48, 164),
    "pink": (250, 146, 190),
    "white": (245, 245, 245),
    "grey": (128, 128, 128),
    "black": (20, 20, 20),
}
# Positions of single objects, in units of the image's side, y downwards.
_PLACES: dict[Layout, tuple[float, float]] = {
    "centre": (0.5, 0.5),
    "left": (0.26, 0.5),
    "right": (0.74, 0.5),
    "top": (0.5, 0.26),
    "bottom": (0.5, 0.74),
}
_SUPERSAMPLING = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """One or several equal objects of a scene.

    Attributes:
        count: number of objects, 1 to 5.
        size: size of a single object; None for several objects, which are all of medium size.
    """

    colour: Colour
    shape: Shape
    count: int = 1
    size: Size | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 5:
            raise ValueError(f"a group has 1 to 5 objects, not {self.count}")
        if (self.count == 1) != (self.size is not None):
            raise ValueError("a single object has a size and several have none")

    @property
    def pair(self) -> Pair:
        """Colour and shape."""
        return self.colour, self.shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Content of an image, and the seed of details that captions do not mention.

    Attributes:
        groups: one or two groups; of two, the left or upper one is the first.
        layout: place of a single object; "scattered" for several objects in one group; "beside" or "stacked" for two
            groups.
        background: colour of the background.
        jitter: seed of the exact positions, sizes, angles and shades.
    """

    groups: tuple[Group, ...]
    layout: Layout
    background: Background
    jitter: int

    @property
    def content(self) -> tuple[object, ...]:
        """Everything that a caption can mention: scenes with equal content differ in their jitter only."""
        return self.groups, self.layout, self.background

    @property
    def pairs(self) -> frozenset[Pair]:
        """Its (colour, shape) pairs."""
        return frozenset(group.pair for group in self.groups)


def training_scenes(num: int, *, seed: int) -> list[Scene]:
    """Sample scenes that contain none of the `HELD_OUT` pairs."""
    rng = random.Random(f"train {seed}")
    return [_sample(rng, first=TRAINED, second=TRAINED) for _ in range(num)]


def held_out_scenes(num: int, *, seed: int) -> list[Scene]:
    """Sample scenes with distinct content, each with a `HELD_OUT` pair, for retrieval.

    A complete caption of such a scene describes no other scene of the list.
    """
    rng = random.Random(f"held out {seed}")
    scenes: dict[tuple[object, ...], Scene] = {}
    while len(scenes) < num:
        scene = _sample(rng, first=HELD_OUT, second=PAIRS)
        scenes.setdefault(scene.content, scene)
    return list(scenes.values())


def classification_scenes(per_class: int, *, seed: int, pairs: Sequence[Pair] = PAIRS) -> tuple[list[Scene], list[int]]:
    """Sample scenes with one object each, for zero-shot classification.

    Args:
        per_class: number of scenes per pair.
        seed: seed of the sample.
        pairs: classes to sample; `HELD_OUT` for the unseen ones.

    Returns:
        The scenes, and for each the index of its class in `PAIRS`.
    """
    rng = random.Random(f"classes {seed}")
    scenes = [_single(rng, pair) for pair in pairs for _ in range(per_class)]
    labels = [PAIRS.index(pair) for pair in pairs for _ in range(per_class)]
    return scenes, labels


def draw(scene: Scene, size: int = 64) -> Image.Image:
    """Draw a scene as an RGB image of `size` by `size` pixels; equal scenes give equal images.

    Shapes are drawn four times as large and averaged down, which smooths their edges.
    """
    rng = random.Random(scene.jitter)
    canvas = _background(rng, scene.background, size * _SUPERSAMPLING)
    drawing = ImageDraw.Draw(canvas)
    for group, centres in zip(scene.groups, _centres(rng, scene), strict=True):
        for x, y in centres:
            outline = _outline(group.shape) * _radius(rng, group.size)
            angle = rng.uniform(-0.25, 0.25)  # radians; small enough that a square is not turned into a diamond
            rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
            points = (outline @ rotation + (x, y)) * canvas.width
            drawing.polygon(points.ravel().tolist(), fill=_shade(rng, group.colour, 16))
    return canvas.reduce(_SUPERSAMPLING)


def _sample(rng: random.Random, *, first: Sequence[Pair], second: Sequence[Pair]) -> Scene:
    """Sample a scene with a group from `first`, and in scenes of two groups another from `second`."""
    pair = rng.choice(first)
    kind = rng.choices(("single", "several", "two groups"), weights=(4, 2, 4))[0]
    if kind == "single":
        return _single(rng, pair)
    if kind == "several":
        groups: tuple[Group, ...] = (_group(rng, pair, rng.randint(2, 5)),)
        return _scene(rng, groups, "scattered")
    other = rng.choice([candidate for candidate in second if candidate != pair])
    both = [_group(rng, each, rng.choice((1, 1, 1, 2, 3))) for each in (pair, other)]
    rng.shuffle(both)
    return _scene(rng, tuple(both), rng.choice(("beside", "stacked")))


def _single(rng: random.Random, pair: Pair) -> Scene:
    return _scene(rng, (_group(rng, pair, 1),), rng.choice(tuple(_PLACES)))


def _group(rng: random.Random, pair: Pair, count: int) -> Group:
    size: Size | None = rng.choice(("small", "large")) if count == 1 else None
    return Group(colour=pair[0], shape=pair[1], count=count, size=size)


def _scene(rng: random.Random, groups: tuple[Group, ...], layout: Layout) -> Scene:
    background = rng.choice(BACKGROUNDS)
    return Scene(groups=groups, layout=layout, background=background, jitter=rng.getrandbits(32))


def _centres(rng: random.Random, scene: Scene) -> list[list[tuple[float, float]]]:
    """Positions of all objects of each group, in units of the image's side, y downwards."""
    if scene.layout == "scattered":
        cells = rng.sample([(x / 6, y / 6) for x in (1, 3, 5) for y in (1, 3, 5)], scene.groups[0].count)
        return [[_jittered(rng, cell, 0.025) for cell in cells]]
    if scene.layout in ("beside", "stacked"):
        centres = []
        for group, along in zip(scene.groups, (0.26, 0.74), strict=True):
            slots = [0.5 + 0.31 * (i - (group.count - 1) / 2) for i in range(group.count)]
            offset = rng.uniform(-0.12, 0.12) if group.count < 3 else 0.0
            positions = [
                (along, across + offset) if scene.layout == "beside" else (across + offset, along) for across in slots
            ]
            centres.append([_jittered(rng, position, 0.025) for position in positions])
        return centres
    return [[_jittered(rng, _PLACES[scene.layout], 0.04)]]


def _jittered(rng: random.Random, centre: tuple[float, float], spread: float) -> tuple[float, float]:
    return centre[0] + rng.uniform(-spread, spread), centre[1] + rng.uniform(-spread, spread)


def _radius(rng: random.Random, size: Size | None) -> float:
    """Sample the radius of an object in units of the image's side; small and large ranges do not overlap."""
    if size is None:
        return rng.uniform(0.125, 0.145)
    return rng.uniform(0.12, 0.145) if size == "small" else rng.uniform(0.205, 0.235)


def _shade(rng: random.Random, name: str, spread: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, level + rng.randint(-spread, spread))) for level in _RGB[name])
    return red, green, blue


def _background(rng: random.Random, name: str, side: int) -> Image.Image:
    """Draw a gradient background: one shade in each corner, interpolated between them."""
    corners = np.array([[_shade(rng, name, 12) for _ in range(2)] for _ in range(2)], dtype=np.uint8)
    return Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)


@cache
def _outline(shape: Shape) -> npt.NDArray[np.float64]:
    """Outline of a shape of radius 1 around the origin: `[P, 2] float64` corners, y downwards."""
    angles = np.linspace(0, 2 * math.pi, 48)  # clockwise from the top
    circle = np.stack([np.sin(angles), -np.cos(angles)], axis=1)
    if shape == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.85
    if shape == "triangle":
        return np.array([(0, -1), (0.95, 0.75), (-0.95, 0.75)])
    if shape == "star":
        points = np.linspace(0, 2 * math.pi, 11)[:-1]
        reach = np.where(np.arange(10) % 2 == 0, 1.1, 0.45)
        return np.stack([reach * np.sin(points), -reach * np.cos(points)], axis=1)
    if shape == "heart":
        # The usual curve 16 sin³t, 13 cos t − 5 cos 2t − 2 cos 3t − cos 4t, scaled to radius 1 and centred.
        height = 13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)
        return np.stack([16 * np.sin(angles) ** 3, -2.5 - height], axis=1) / 15.5
    if shape == "cross":
        arm = 0.32
        quarter = np.array([(-arm, -1), (arm, -1), (arm, -arm)])
        return np.concatenate([quarter @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))])
    if shape == "ring":
        return np.concatenate(
            [circle, 0.55 * circle[::-1]]
        )  # outer circle, then inner circle backwards: the seam has no width
    if shape == "crescent":
        # Two arcs between the tips at (x, ±y): the outer one on the unit circle, anticlockwise, and the inner one on a
        # smaller circle further right, clockwise.
        tip = math.radians(42)
        x, y, middle = math.sin(tip), math.cos(tip), 0.42
        inner_tip = math.atan2(x - middle, y)
        outer = np.linspace(tip, -math.pi - tip, 40)
        inner = np.linspace(-math.pi - inner_tip, inner_tip, 40)
        outer_arc = np.stack([np.sin(outer), -np.cos(outer)], axis=1)
        inner_arc = np.stack([np.sin(inner), -np.cos(inner)], axis=1) * math.hypot(x - middle, y)
        inner_arc[:, 0] += middle
        return np.concatenate([outer_arc, inner_arc])
    return circle
