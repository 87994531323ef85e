"""The demo's world: scenes of coloured shapes, sampled by seed and drawn as small images.

Flow: `training_scenes`, `held_out_scenes` and `classification_scenes` choose what there is to see, `draw`
paints it, and `captions` puts it into words. Sixteen of the 64 (colour, shape) pairs are kept from every
training scene: a tower that names them right has understood colour and shape apart.
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
"""All 64 pairs, colour by colour: the classes of zero-shot classification, in their order."""
# Two diagonals of the table of colours by shapes: each colour and each shape misses exactly two partners.
HELD_OUT: tuple[Pair, ...] = tuple(
    (colour, shape) for c, colour in enumerate(COLOURS) for s, shape in enumerate(SHAPES) if (s - c) % 8 in (0, 3)
)
"""The 16 pairs that no training scene contains."""
TRAINED: tuple[Pair, ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
"""The 48 pairs that training scenes are made of."""
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
# Where single objects are, in units of the image's side, y downwards.
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
        count: how many, 1 to 5.
        size: of a single object; None where there are several, which are drawn at one middling size.
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
    """What one image shows, and the seed of everything that its captions leave open.

    Attributes:
        groups: one or two; with two, the left or the upper one stands first.
        layout: where a single object is; "scattered" if several of a kind; "beside", "stacked" if two groups.
        jitter: seed of the exact positions, sizes, angles and shades.
    """

    groups: tuple[Group, ...]
    layout: Layout
    background: Background
    jitter: int

    @property
    def content(self) -> tuple[object, ...]:
        """All that a caption can tell of it: scenes of equal content look alike but for the jitter."""
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
    """Sample scenes of which each contains a `HELD_OUT` pair and no two have the same content.

    A complete caption of such a scene therefore describes no other scene of the list: made for retrieval.
    """
    rng = random.Random(f"held out {seed}")
    scenes: dict[tuple[object, ...], Scene] = {}
    while len(scenes) < num:
        scene = _sample(rng, first=HELD_OUT, second=PAIRS)
        scenes.setdefault(scene.content, scene)
    return list(scenes.values())


def classification_scenes(per_class: int, *, seed: int, pairs: Sequence[Pair] = PAIRS) -> tuple[list[Scene], list[int]]:
    """Sample scenes of one object each, for zero-shot classification.

    Args:
        per_class: scenes of each pair.
        seed: another seed gives other scenes.
        pairs: which classes to draw; `HELD_OUT` for the hard ones.

    Returns:
        The scenes, and for each the index of its class in `PAIRS`.
    """
    rng = random.Random(f"classes {seed}")
    scenes = [_lone(rng, pair) for pair in pairs for _ in range(per_class)]
    labels = [PAIRS.index(pair) for pair in pairs for _ in range(per_class)]
    return scenes, labels


def draw(scene: Scene, size: int = 64) -> Image.Image:
    """Paint a scene, always the same way, as an RGB image of `size` by `size` pixels.

    Shapes are painted four times as large and averaged down, which smooths their edges.
    """
    rng = random.Random(scene.jitter)
    canvas = _background(rng, scene.background, size * _SUPERSAMPLING)
    brush = ImageDraw.Draw(canvas)
    for group, centres in zip(scene.groups, _centres(rng, scene), strict=True):
        for x, y in centres:
            outline = _outline(group.shape) * _radius(rng, group.size)
            angle = rng.uniform(-0.25, 0.25)  # radians: a square stays a square, a cross a cross
            turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
            points = (outline @ turn + (x, y)) * canvas.width
            brush.polygon(points.ravel().tolist(), fill=_shade(rng, group.colour, 16))
    return canvas.reduce(_SUPERSAMPLING)


def _sample(rng: random.Random, *, first: Sequence[Pair], second: Sequence[Pair]) -> Scene:
    """Sample a scene with one group out of `first`, and the other, should there be two, out of `second`."""
    pair = rng.choice(first)
    kind = rng.choices(("lone", "several", "two groups"), weights=(4, 2, 4))[0]
    if kind == "lone":
        return _lone(rng, pair)
    if kind == "several":
        groups: tuple[Group, ...] = (_group(rng, pair, rng.randint(2, 5)),)
        return _scene(rng, groups, "scattered")
    other = rng.choice([candidate for candidate in second if candidate != pair])
    both = [_group(rng, each, rng.choice((1, 1, 1, 2, 3))) for each in (pair, other)]
    rng.shuffle(both)
    return _scene(rng, tuple(both), rng.choice(("beside", "stacked")))


def _lone(rng: random.Random, pair: Pair) -> Scene:
    return _scene(rng, (_group(rng, pair, 1),), rng.choice(tuple(_PLACES)))


def _group(rng: random.Random, pair: Pair, count: int) -> Group:
    size: Size | None = rng.choice(("small", "large")) if count == 1 else None
    return Group(colour=pair[0], shape=pair[1], count=count, size=size)


def _scene(rng: random.Random, groups: tuple[Group, ...], layout: Layout) -> Scene:
    background = rng.choice(BACKGROUNDS)
    return Scene(groups=groups, layout=layout, background=background, jitter=rng.getrandbits(32))


def _centres(rng: random.Random, scene: Scene) -> list[list[tuple[float, float]]]:
    """Place every object of every group, in units of the image's side, y downwards."""
    if scene.layout == "scattered":
        cells = rng.sample([(x / 6, y / 6) for x in (1, 3, 5) for y in (1, 3, 5)], scene.groups[0].count)
        return [[_near(rng, cell, 0.025) for cell in cells]]
    if scene.layout in ("beside", "stacked"):
        placed = []
        for group, along in zip(scene.groups, (0.26, 0.74), strict=True):
            slots = [0.5 + 0.31 * (i - (group.count - 1) / 2) for i in range(group.count)]
            drift = rng.uniform(-0.12, 0.12) if group.count < 3 else 0.0
            spots = [
                (along, across + drift) if scene.layout == "beside" else (across + drift, along) for across in slots
            ]
            placed.append([_near(rng, spot, 0.025) for spot in spots])
        return placed
    return [[_near(rng, _PLACES[scene.layout], 0.04)]]


def _near(rng: random.Random, centre: tuple[float, float], spread: float) -> tuple[float, float]:
    return centre[0] + rng.uniform(-spread, spread), centre[1] + rng.uniform(-spread, spread)


def _radius(rng: random.Random, size: Size | None) -> float:
    """Choose an object's radius in units of the image's side; small and large stay well apart."""
    if size is None:
        return rng.uniform(0.125, 0.145)
    return rng.uniform(0.12, 0.145) if size == "small" else rng.uniform(0.205, 0.235)


def _shade(rng: random.Random, name: str, spread: int) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, level + rng.randint(-spread, spread))) for level in _RGB[name])
    return red, green, blue


def _background(rng: random.Random, name: str, side: int) -> Image.Image:
    """Paint an uneven background: one shade in each corner, blended in between."""
    corners = np.array([[_shade(rng, name, 12) for _ in range(2)] for _ in range(2)], dtype=np.uint8)
    return Image.fromarray(corners).resize((side, side), Image.Resampling.BILINEAR)


@cache
def _outline(shape: Shape) -> npt.NDArray[np.float64]:
    """Trace a shape of radius 1 around the origin: [P, 2] float64 corners, y downwards."""
    turn = np.linspace(0, 2 * math.pi, 48)  # begins at the top and goes clockwise
    circle = np.stack([np.sin(turn), -np.cos(turn)], axis=1)
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
        height = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return np.stack([16 * np.sin(turn) ** 3, -2.5 - height], axis=1) / 15.5
    if shape == "cross":
        arm = 0.32
        quarter = np.array([(-arm, -1), (arm, -1), (arm, -arm)])
        return np.concatenate([quarter @ np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))])
    if shape == "ring":
        return np.concatenate([circle, 0.55 * circle[::-1]])  # out and back again: the seam has no width
    if shape == "crescent":
        # Two arcs between the tips at (x, ±y): the outer one of the unit circle, anticlockwise around the
        # back, and the inner one of a smaller circle to the right, clockwise.
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
