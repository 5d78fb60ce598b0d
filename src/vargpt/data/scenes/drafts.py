"""Drafts: everything that a picture will show, in words, with a place for every thing.

A decoder chooses the bits of one scale independently of each other. Where a prompt leaves open how many things go where
on what, the likeliest bits can belong to different pictures. Words are chosen one after the other, so an answer that
first says what it will draw settles all that before the first bit; and a draft of an edit says what must stay.

Invariant: a draft names every thing once, and two scenes with the same draft look alike up to a tenth of the picture.
What is drawn from words comes in their order, so that a draft can be copied from them; what is read off a picture comes
in reading order (rows of tenths, then columns), which is the only one that a picture has.

    on a sand background: a large dotted pink star at 5 4, a blue ring at 2 7 behind
"""

from __future__ import annotations

from dataclasses import astuple

from vargpt.data.scenes.facts import Mention
from vargpt.data.scenes.parser import facts_of
from vargpt.data.scenes.words import Said, article, noun, on_background
from vargpt.data.scenes.world import Scene, Thing

DRAFT_QUESTION = "what is where?"
"""What a picture is asked for its draft with."""

CELLS = 10
"""Places are said as column and row of a grid with so many cells a side, counted from 0 at the top left."""


def draft(scene: Scene, caption: str | None = None) -> str:
    """The draft of a scene; `behind` marks a thing that another one covers in part.

    Args:
        caption: of the scene, which names the things in the order that is wanted; None: reading order.
    """
    order = sorted(range(len(scene.things)), key=lambda index: (cell(scene.things[index])[::-1], index))
    if caption is not None:
        order = _as_mentioned(scene, caption, order)
    told = ", ".join(_told(scene, index) for index in order)
    return f"{on_background(scene.background)}: {told or 'nothing'}"


def _as_mentioned(scene: Scene, caption: str, order: list[int]) -> list[int]:
    """Things in the order of a caption, alike ones in the order given.

    What says most of a thing chooses first: "a red star" fits a striped one too.
    """
    facts = facts_of(caption)
    if facts is None or len(facts.mentions) != len(order):
        raise ValueError(f"the caption {caption!r} does not name the {len(order)} things of its scene")
    left, found = list(order), {}
    for number, mention in sorted(enumerate(facts.mentions), key=lambda entry: -_said(entry[1])):
        fitting = [index for index in left if mention.fits(scene.things[index])]
        if not fitting:
            raise ValueError(f"the caption {caption!r} names {mention}, which its scene has not (left)")
        found[number] = fitting[0]
        left.remove(fitting[0])
    return [found[number] for number in range(len(order))]


def _said(mention: Mention) -> int:
    return sum(value is not None for value in astuple(mention))


def _told(scene: Scene, index: int) -> str:
    thing = scene.things[index]
    column, row = cell(thing)
    covered = any(scene.overlaps(index, later) for later in range(index + 1, len(scene.things)))
    return f"{article(noun(thing, Said(size=True)))} at {column} {row}" + (" behind" if covered else "")


def cell(thing: Thing) -> tuple[int, int]:
    """Column and row of the tenth of the picture that a thing lies in."""
    return min(int(thing.x * CELLS), CELLS - 1), min(int(thing.y * CELLS), CELLS - 1)
