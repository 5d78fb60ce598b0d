"""The scenes world: things on a background, the words for them, and which combinations training never sees.

Invariant: a scene is a value. What is true of it (places, relations, held-out combinations) depends on its fields
alone, so the renderer, the grammar, the questions and the checker cannot disagree.

Lengths are in units of the picture's shorter side; positions are relative to width and height, x to the right and y
down, so that a scene can be rendered at any size. Things are in painter's order: later ones lie in front.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from vargpt.data.scenes.shapes import distance

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
COLOURS = {
    "red": (222, 44, 44),
    "orange": (242, 122, 18),
    "yellow": (250, 218, 46),
    "green": (44, 164, 72),
    "cyan": (46, 196, 212),
    "blue": (44, 90, 222),
    "purple": (138, 58, 198),
    "pink": (250, 128, 182),
}
"""sRGB in full light. Their hues are at least 20 degrees apart, so that light and shadow do not confuse them."""

SIZES = {"small": 0.105, "medium": 0.15, "large": 0.215}
"""Radius of a thing in units of the shorter side."""

TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("white", "gray", "night", "sky", "sand", "meadow")
PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
RELATIONS = ("left of", "right of", "above", "below", "in front of", "behind")
INVERSE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
}
MAX_THINGS = 5
REACH = 1.2
"""No shape reaches farther from its centre than about this many radii."""

GAP = 0.03
CLEAR_OFFSET, CLEAR_RATIO = 0.2, 1.5
HOLDS_OFFSET, HOLDS_RATIO = 0.08, 0.7
CLEAR_PLACE, HOLDS_PLACE = 0.05, -0.05

Split = Literal["train", "validation", "unseen"]


@dataclass(frozen=True)
class Thing:
    """One object.

    Attributes:
        x, y: centre, relative to width and height.
    """

    shape: str
    colour: str
    size: str = "medium"
    texture: str = "plain"
    x: float = 0.5
    y: float = 0.5

    def __post_init__(self) -> None:
        for name, known in _VOCABULARY.items():
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}, expected one of {', '.join(known)}")
        if not (0.0 <= self.x <= 1.0 and 0.0 <= self.y <= 1.0):
            raise ValueError(f"a thing's centre must lie in [0, 1] x [0, 1], got ({self.x}, {self.y})")

    @property
    def radius(self) -> float:
        """Radius in units of the shorter side."""
        return SIZES[self.size]


@dataclass(frozen=True)
class Scene:
    """A background and the things on it, back to front.

    Attributes:
        aspect: width / height that the things were laid out for; whether two overlap depends on it.
    """

    things: tuple[Thing, ...]
    background: str = "white"
    aspect: float = 1.0

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"unknown background {self.background!r}, expected one of {', '.join(BACKGROUNDS)}")
        if not 0.2 <= self.aspect <= 5.0:
            raise ValueError(f"aspect (width / height) must be in [0.2, 5], got {self.aspect}")

    def offset(self, first: int, second: int) -> tuple[float, float]:
        """Vector from thing `second` to thing `first`, in units of the shorter side."""
        a, b = self.things[first], self.things[second]
        return (a.x - b.x) * max(self.aspect, 1.0), (a.y - b.y) * max(1.0 / self.aspect, 1.0)

    def overlaps(self, first: int, second: int) -> bool:
        """Whether one of the two things covers a part of the other."""
        return math.hypot(*self.offset(first, second)) < self.things[first].radius + self.things[second].radius

    def relations(self, first: int, second: int) -> frozenset[str]:
        """Relations of thing `first` to thing `second` that nobody would dispute."""
        return self._relations(first, second, CLEAR_OFFSET, CLEAR_RATIO)

    def loose_relations(self, first: int, second: int) -> frozenset[str]:
        """Relations that can be granted: a superset of `relations`, to judge pictures with."""
        return self._relations(first, second, HOLDS_OFFSET, HOLDS_RATIO)

    def _relations(self, first: int, second: int, offset: float, ratio: float) -> frozenset[str]:
        right, down = self.offset(first, second)
        found = set()
        if self.overlaps(first, second):
            found.add("in front of" if first > second else "behind")
            offset = offset / 2
        if abs(right) >= offset and abs(right) >= ratio * abs(down):
            found.add("right of" if right > 0 else "left of")
        if abs(down) >= offset and abs(down) >= ratio * abs(right):
            found.add("below" if down > 0 else "above")
        return frozenset(found)


_VOCABULARY: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "texture": TEXTURES,
}


def place_centre(place: str) -> tuple[float, float]:
    """Relative centre of a named place.

    Raises:
        ValueError: for an unknown name.
    """
    for row, names in enumerate(PLACES):
        if place in names:
            return (names.index(place) * 2 + 1) / 6, (row * 2 + 1) / 6
    raise ValueError(f"unknown place {place!r}, expected one of {', '.join(sum(PLACES, ()))}")


def place_of(x: float, y: float) -> str:
    """Name of the ninth of the picture that a point lies in."""
    return PLACES[min(int(y * 3), 2)][min(int(x * 3), 2)]


def is_at(x: float, y: float, place: str, margin: float) -> bool:
    """Whether a point lies in a place shrunk by `margin` on its inner borders (grown, where negative)."""
    centre_x, centre_y = place_centre(place)
    return all(
        (centre < 0.2 or value >= centre - 1 / 6 + margin) and (centre > 0.8 or value <= centre + 1 / 6 - margin)
        for value, centre in ((x, centre_x), (y, centre_y))
    )


def clear_place(thing: Thing) -> str | None:
    """The place of a thing, or None where it lies near a border between two places."""
    place = place_of(thing.x, thing.y)
    return place if is_at(thing.x, thing.y, place, CLEAR_PLACE) else None


def is_legible(scene: Scene) -> bool:
    """Whether a scene keeps the rules that make it readable.

    At most five things, inside the picture, textures not on small things; any two of them well apart, or one
    overlapping the other a little: then they differ in colour, the one in front is no larger, and nothing else is near.
    """
    things = scene.things
    if len(things) > MAX_THINGS or any(thing.texture != "plain" and thing.size == "small" for thing in things):
        return False
    wide, high = max(scene.aspect, 1.0), max(1.0 / scene.aspect, 1.0)
    for thing in things:
        edge = min(thing.x * wide, (1 - thing.x) * wide, thing.y * high, (1 - thing.y) * high)
        if edge < 1.12 * thing.radius:
            return False
    covered: list[int] = []
    for first, second in combinations(range(len(things)), 2):
        back, front = things[first], things[second]
        distance = math.hypot(*scene.offset(first, second))
        if distance >= REACH * (back.radius + front.radius) + GAP:
            continue
        if not 0.7 <= distance / (back.radius + front.radius) <= 0.85:
            return False
        if back.colour == front.colour or front.radius > back.radius or not _covers_a_part(scene, first, second):
            return False
        covered += [first, second]
    return len(covered) == len(set(covered))


_GRID = np.linspace(-1.25, 1.25, 23, dtype=np.float32)


def _covers_a_part(scene: Scene, back: int, front: int) -> bool:
    """Whether the thing in front really hides some of the other one, and leaves most of it to be seen."""
    right, down = scene.offset(front, back)
    below, above = scene.things[back], scene.things[front]
    v, u = np.meshgrid(_GRID, _GRID, indexing="ij")
    hiding = distance(above.shape, u, v) < 0
    scale = np.float32(above.radius / below.radius)
    hidden = hiding & (
        distance(below.shape, u * scale + np.float32(right / below.radius), v * scale + np.float32(down / below.radius))
        < 0
    )
    area = float((distance(below.shape, u, v) < 0).sum()) / float(scale) ** 2
    share = float(hidden.sum()) / min(area, float(hiding.sum()))
    return share >= 0.07 and float(hidden.sum()) <= 0.4 * area


HELD_OUT_PAIRS = frozenset((colour, SHAPES[(3 * index + 2) % 8]) for index, colour in enumerate(COLOURS))
"""Colour and shape that never meet in one thing in training: one shape for every colour."""

HELD_OUT_RELATIONS = frozenset(
    (colour, shape, relation)
    for i, colour in enumerate(COLOURS)
    for j, shape in enumerate(SHAPES)
    for k, relation in enumerate(RELATIONS)
    if (i + 3 * j + 5 * k) % 16 == 0 and (colour, shape) not in HELD_OUT_PAIRS
)
"""Colour and shape of things that never stand in this relation to another thing in training."""


def held_out_combinations(scene: Scene) -> tuple[tuple[str, ...], ...]:
    """All combinations of a scene that training never sees: (colour, shape) and (colour, shape, relation)."""
    things = scene.things
    found: list[tuple[str, ...]] = [(t.colour, t.shape) for t in things if (t.colour, t.shape) in HELD_OUT_PAIRS]
    for first, thing in enumerate(things):
        for second in range(len(things)):
            if second == first:
                continue
            found += [
                (thing.colour, thing.shape, relation)
                for relation in sorted(scene.relations(first, second))
                if (thing.colour, thing.shape, relation) in HELD_OUT_RELATIONS
            ]
    return tuple(dict.fromkeys(found))


def is_held_out(scene: Scene) -> bool:
    """Whether a scene shows a combination that training never sees."""
    return bool(held_out_combinations(scene))


def split_of(scene: Scene) -> Split:
    """The part a scene belongs to.

    `unseen`: it shows a held-out combination. Of the others one in twenty is `validation`, by a hash of what is shown
    (not of where), and the rest is `train`.
    """
    if is_held_out(scene):
        return "unseen"
    return "validation" if is_validation_content(scene.things, scene.background) else "train"


def is_validation_content(things: Sequence[Thing], background: str) -> bool:
    """Whether what is shown, wherever it lies, is set aside for validation."""
    content = sorted(f"{thing.shape} {thing.colour} {thing.size} {thing.texture}" for thing in things)
    digest = hashlib.sha256("|".join([background, *content]).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 20 == 0
