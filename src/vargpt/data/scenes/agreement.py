"""How far a reading of a picture agrees with the scene it should show.

Invariant: a reading is right only if everything is: every thing with its shape, colour, size, texture and place (within
0.04 of the width or height), nothing that is not there, nothing unclear, the background, and which of two overlapping
things lies in front.
"""

from __future__ import annotations

import math
from itertools import permutations

from vargpt.data.scenes.checker import Reading
from vargpt.data.scenes.world import Scene, Thing

PLACE_TOLERANCE = 0.04
ATTRIBUTES = ("shape", "colour", "size", "texture", "place")

Counts = dict[str, tuple[int, int]]


def agreement(scene: Scene, reading: Reading) -> Counts:
    """Attribute -> (right, asked), things matched by the nearest places; `things` counts the found and the invented."""
    seen = reading.scene
    count = max(len(scene.things), len(seen.things))
    there: list[Thing | None] = [*seen.things, *[None] * (count - len(seen.things))]
    best = _nearest(scene.things, there)
    found = {"things": (sum(thing is not None for thing in best), count)}
    for name in ATTRIBUTES:
        right = 0
        for thing, other in zip(scene.things, best, strict=True):
            if other is not None and name == "place":
                right += max(abs(thing.x - other.x), abs(thing.y - other.y)) <= PLACE_TOLERANCE
            elif other is not None:
                right += getattr(thing, name) == getattr(other, name)
        found[name] = (right, len(scene.things))
    pairs = [(a, b) for a in range(len(best)) for b in range(a) if scene.overlaps(a, b)]
    order = {id(thing): place for place, thing in enumerate(seen.things)}
    deep = sum(
        best[a] is not None and best[b] is not None and order[id(best[a])] > order[id(best[b])] for a, b in pairs
    )
    found["depth"] = (deep, len(pairs))
    found["background"] = (int(reading.background_known and seen.background == scene.background), 1)
    found["nothing unclear"] = (int(reading.unclear == 0), 1)
    return found


def is_right(scene: Scene, reading: Reading) -> bool:
    """Whether a reading is right in everything."""
    return all(right == asked for right, asked in agreement(scene, reading).values())


_MOST_TRIED = 8


def _nearest(things: tuple[Thing, ...], there: list[Thing | None]) -> tuple[Thing | None, ...]:
    """One of the seen things (or None) for each thing of a scene: the choice of the smallest sum of distances."""

    def distance(thing: Thing, found: Thing | None) -> float:
        return 1.0 if found is None else min(math.hypot(found.x - thing.x, found.y - thing.y), 1.0)

    if len(there) > _MOST_TRIED:
        # A spoilt picture can hold many things: those farthest from everything cannot be anyone's.
        there = sorted(there, key=lambda found: min((distance(thing, found) for thing in things), default=0.0))
        there = there[:_MOST_TRIED]
    return min(
        permutations(there, len(things)),
        key=lambda chosen: sum(distance(thing, found) for thing, found in zip(things, chosen, strict=True)),
    )
