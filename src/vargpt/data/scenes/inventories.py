"""Inventories: what each shape of a picture is like, shape first.

Captions and drafts name a thing's colour before its shape, so a reader can find it by its colour and then read the
shape; asked "what color is the star?" it has to find a shape, of which it learns little from one answer per picture. An
inventory asks that of every thing at once.

Invariant: things come in the order of their shapes' names, alike shapes in reading order, so an inventory is settled by
the picture alone, and nothing before a thing's shape tells which one it is.

    what color is each shape?    cross cyan, star red, star pink
    where is each shape?         cross at 2 7, star at 5 1, star at 8 4
"""

from __future__ import annotations

import random
from collections.abc import Callable

from vargpt.data.scenes.drafts import cell
from vargpt.data.scenes.world import Scene, Thing


def _at(thing: Thing) -> str:
    column, row = cell(thing)
    return f"at {column} {row}"


_TOLD: dict[str, Callable[[Thing], str]] = {
    "what color is each shape?": lambda thing: thing.colour,
    "where is each shape?": _at,
    "how large is each shape?": lambda thing: thing.size,
    "what is each shape like?": lambda thing: f"{thing.texture} {thing.size} {thing.colour} {_at(thing)}",
}


def inventory(scene: Scene, generator: random.Random) -> tuple[str, str]:
    """A question about all things of a scene, and its answer."""
    question = generator.choice(list(_TOLD))
    things = sorted(scene.things, key=lambda thing: (thing.shape, cell(thing)[::-1]))
    return question, ", ".join(f"{thing.shape} {_TOLD[question](thing)}" for thing in things) or "nothing"
