"""Scenes by chance: every kind, every split, from a seed.

Invariant: a scene is a function of (seed, split, kind, aspect); it is legible (`world.is_legible`) and of that split.
"""

from __future__ import annotations

import math
import random
from typing import Literal, get_args

from vargpt.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_PAIRS,
    REACH,
    SHAPES,
    SIZES,
    Scene,
    Split,
    Thing,
    is_legible,
    is_validation_content,
    place_centre,
    split_of,
)

Kind = Literal["empty", "single", "two", "count", "groups", "several", "overlap"]

KIND_WEIGHTS: dict[Kind, int] = {
    "empty": 1,
    "single": 22,
    "two": 30,
    "count": 15,
    "groups": 10,
    "several": 12,
    "overlap": 10,
}
"""How often each kind is drawn where none is asked for.

`single`: one thing. `two`: two different things. `count`: two to five alike. `groups`: two kinds of alike things, five
at most. `several`: three to five different things. `overlap`: one thing in front of another, at times with a third.
"""

_ATTEMPTS = 20_000
_SIZE_CHOICES: dict[int, tuple[str, ...]] = {
    1: ("small", "medium", "large", "large"),
    2: ("small", "medium", "medium", "large"),
    3: ("small", "medium", "medium"),
    4: ("small", "small", "medium"),
    5: ("small", "small", "medium"),
}
_COUNT_SIZES: dict[int, tuple[str, ...]] = {
    2: ("small", "medium", "large"),
    3: ("small", "medium"),
    4: ("small", "medium"),
    5: ("small", "small", "medium"),
}
_NUMBERS: dict[Kind, tuple[int, int]] = {
    "single": (1, 1),
    "two": (2, 2),
    "count": (2, 5),
    "groups": (3, 5),
    "several": (3, 5),
    "overlap": (2, 3),
}
_TEXTURES = ("plain", "plain", "plain", "striped", "dotted")


def sample_scene(
    seed: int | str | random.Random, split: Split = "train", kind: Kind | None = None, aspect: float = 1.0
) -> Scene:
    """Draw one scene.

    Args:
        seed: a seed, or a generator to go on with.
        split: `train`, `validation` (other contents, known combinations) or `unseen` (a combination held out).
        kind: see `KIND_WEIGHTS`; by chance where None. There is no unseen empty scene.
        aspect: width / height of the pictures it is for.

    Raises:
        ValueError: for an unknown split or kind, or `unseen` with `empty`.
    """
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}, expected one of {', '.join(get_args(Split))}")
    if kind is not None and kind not in KIND_WEIGHTS:
        raise ValueError(f"unknown kind {kind!r}, expected one of {', '.join(KIND_WEIGHTS)}")
    if kind == "empty" and split != "train":
        raise ValueError(f"empty scenes belong to the train split, got split={split!r}; choose another kind")
    generator = seed if isinstance(seed, random.Random) else random.Random(f"scene {seed}")
    if kind is None:
        kinds = [name for name in KIND_WEIGHTS if split == "train" or name != "empty"]
        kind = generator.choices(kinds, [KIND_WEIGHTS[name] for name in kinds])[0]
    if kind == "empty":
        return Scene((), generator.choice(BACKGROUNDS), aspect)
    number = generator.randint(*_NUMBERS[kind])
    for _ in range(_ATTEMPTS):
        scene = _propose(generator, kind, number, split, aspect)
        if scene is not None and split_of(scene) == split:
            return scene
    raise RuntimeError(f"no {split} scene of kind {kind} in {_ATTEMPTS} attempts at aspect {aspect}")


def find_place(
    scene: Scene, thing: Thing, generator: random.Random, place: str | None = None, index: int | None = None
) -> Scene | None:
    """Put a thing where there is room: a new scene, or None where there is none.

    Args:
        place: name of the ninth it must lie in.
        index: put it there in painter's order, replacing the thing that has this index; None adds it in front.
    """
    others = scene.things if index is None else scene.things[:index] + scene.things[index + 1 :]
    at = len(others) if index is None else index
    for _ in range(30):
        x, y = _point(generator, thing.radius, scene.aspect, place)
        moved = Thing(thing.shape, thing.colour, thing.size, thing.texture, x, y)
        candidate = Scene((*others[:at], moved, *others[at:]), scene.background, scene.aspect)
        if is_legible(candidate) and not any(candidate.overlaps(at, other) for other in _rest(candidate, at)):
            return candidate
    return None


def _rest(scene: Scene, index: int) -> list[int]:
    return [other for other in range(len(scene.things)) if other != index]


def random_texture(generator: random.Random, size: str) -> str:
    """A texture that a thing of this size can show."""
    return "plain" if size == "small" else generator.choice(_TEXTURES)


def _propose(generator: random.Random, kind: Kind, number: int, split: Split, aspect: float) -> Scene | None:
    """One try: choose what is shown, then where; None where it does not fit or is not of the kind."""
    kinds = _contents(generator, kind, number)
    if split == "unseen" and generator.random() < 0.5:
        colour, shape = generator.choice(sorted(HELD_OUT_PAIRS))
        old = kinds[0][:2]
        kinds = [(shape, colour, *rest[2:]) if rest[:2] == old else rest for rest in kinds]
    distinct = {(shape, colour) for shape, colour, _, _ in kinds}
    expected = {"single": 1, "count": 1, "groups": 2}.get(kind, len(kinds))
    if len(distinct) != expected:
        return None
    things = [Thing(shape, colour, size, texture) for shape, colour, size, texture in kinds]
    background = generator.choice(BACKGROUNDS)
    if split != "unseen" and (
        any((thing.colour, thing.shape) in HELD_OUT_PAIRS for thing in things)
        or is_validation_content(things, background) != (split == "validation")
    ):
        return None
    return _lay_out(generator, things, background, kind == "overlap", aspect)


def _contents(generator: random.Random, kind: Kind, number: int) -> list[tuple[str, str, str, str]]:
    """Shape, colour, size and texture of every thing."""
    if kind == "count":
        return [_look(generator, _COUNT_SIZES[number])] * number
    if kind == "groups":
        first = generator.randint(1, number - 1)
        looks = [_look(generator, ("small", "medium") if number < 5 else ("small",)) for _ in range(2)]
        return [looks[0]] * first + [looks[1]] * (number - first)
    if kind == "overlap":
        back = _look(generator, ("medium", "large", "large"))
        smaller = [size for size in SIZES if SIZES[size] <= SIZES[back[2]]]
        front = _look(generator, tuple(smaller[-2:]))
        return [back, front, *(_look(generator, ("small", "medium")) for _ in range(number - 2))]
    return [_look(generator, _SIZE_CHOICES[number]) for _ in range(number)]


def _look(generator: random.Random, sizes: tuple[str, ...]) -> tuple[str, str, str, str]:
    size = generator.choice(sizes)
    return generator.choice(SHAPES), generator.choice(tuple(COLOURS)), size, random_texture(generator, size)


def _point(generator: random.Random, radius: float, aspect: float, place: str | None) -> tuple[float, float]:
    """A centre from which a thing does not touch the picture's edge, rounded so that it is short in files."""
    margin = 1.13 * radius
    edge_x, edge_y = margin / max(aspect, 1.0), margin / max(1.0 / aspect, 1.0)
    low_x, high_x, low_y, high_y = edge_x, 1 - edge_x, edge_y, 1 - edge_y
    if place is not None:
        centre_x, centre_y = place_centre(place)
        low_x, high_x = max(low_x, centre_x - 1 / 9), min(high_x, centre_x + 1 / 9)
        low_y, high_y = max(low_y, centre_y - 1 / 9), min(high_y, centre_y + 1 / 9)
    x = generator.uniform(low_x, high_x) if low_x < high_x else (low_x if centre_x < 0.5 else high_x)
    y = generator.uniform(low_y, high_y) if low_y < high_y else (low_y if centre_y < 0.5 else high_y)
    return round(x, 4), round(y, 4)


def _lay_out(
    generator: random.Random, things: list[Thing], background: str, overlap: bool, aspect: float
) -> Scene | None:
    """Give the things places, the second in front of the first where asked."""
    wide, high = max(aspect, 1.0), max(1.0 / aspect, 1.0)
    placed: list[Thing] = []
    for number, thing in enumerate(things):
        for _ in range(40):
            if overlap and number == 1:
                angle = generator.uniform(0, 2 * math.pi)
                far = generator.uniform(0.71, 0.84) * (thing.radius + placed[0].radius)
                x = placed[0].x + math.cos(angle) * far / wide
                y = placed[0].y + math.sin(angle) * far / high
            else:
                x, y = _point(generator, thing.radius, aspect, None)
                gap = REACH * thing.radius + 0.031
                if any(
                    math.hypot((x - other.x) * wide, (y - other.y) * high) < gap + REACH * other.radius
                    for other in placed
                ):
                    continue
            if not (0 <= x <= 1 and 0 <= y <= 1):
                continue
            candidate = [
                *placed,
                Thing(thing.shape, thing.colour, thing.size, thing.texture, round(x, 4), round(y, 4)),
            ]
            if is_legible(Scene(tuple(candidate), background, aspect)):
                placed = candidate
                break
        else:
            return None
    return Scene(tuple(placed), background, aspect)
