"""Drafts: everything that a picture will show, in words, with a place for every thing.

A decoder chooses the bits of one scale independently of each other. Where a prompt leaves open how many things go where
on what, the likeliest bits can belong to different pictures. Words are chosen one after the other, so an answer that
first says what it will draw settles all that before the first bit; and a draft of an edit says what must stay.

Invariant: a draft is a function of the scene, names every thing once in reading order (rows of tenths, then columns),
and two scenes with the same draft look alike up to a tenth of the picture.

    on a sand background: a large dotted pink star at 5 4, a blue ring at 2 7 behind
"""

from __future__ import annotations

from vargpt.data.scenes.words import Said, article, noun, on_background
from vargpt.data.scenes.world import Scene, Thing

DRAFT_QUESTION = "what is where?"
"""What a picture is asked for its draft with."""

CELLS = 10
"""Places are said as column and row of a grid with so many cells a side, counted from 0 at the top left."""


def draft(scene: Scene) -> str:
    """The draft of a scene; `behind` marks a thing that another one covers in part."""
    order = sorted(range(len(scene.things)), key=lambda index: (_cell(scene.things[index])[::-1], index))
    told = ", ".join(_told(scene, index) for index in order)
    return f"{on_background(scene.background)}: {told or 'nothing'}"


def _told(scene: Scene, index: int) -> str:
    thing = scene.things[index]
    column, row = _cell(thing)
    covered = any(scene.overlaps(index, later) for later in range(index + 1, len(scene.things)))
    return f"{article(noun(thing, Said(size=True)))} at {column} {row}" + (" behind" if covered else "")


def _cell(thing: Thing) -> tuple[int, int]:
    return min(int(thing.x * CELLS), CELLS - 1), min(int(thing.y * CELLS), CELLS - 1)
