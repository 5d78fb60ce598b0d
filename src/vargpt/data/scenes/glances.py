"""Glances: what of a picture a question is about, looked up before it is answered.

A reader that has to find a shape, what is asked of it, and the answer within one step finds any thing's; told to look
first, it names each shape that the question names and then reads off what is there, as in an inventory.

Invariant: a glance says nothing that the question does not need, and the answer follows from it.

    look: what color is the star?            star red
    look: is the ring left of the star?      ring blue at 2 7, star red at 5 1
    look: how many crosses are there?        cross cyan, cross pink
"""

from __future__ import annotations

import re

from vargpt.data.scenes.drafts import cell
from vargpt.data.scenes.questions import Question
from vargpt.data.scenes.words import plural
from vargpt.data.scenes.world import COLOURS, SHAPES, SIZES, Scene, Thing

LOOK = "look: {question}"
"""What a picture is asked first, with the question that follows in it."""

_SHAPE_OF = {word: shape for shape in SHAPES for word in (shape, plural(shape))}


def glance(scene: Scene, question: Question) -> str:
    """What the scene shows of that which a question asks about, shapes in the order in which it names them."""
    if question.kind == "background":
        return f"{scene.background} background"
    words = re.findall(r"[a-z]+", question.text)
    shapes = list(dict.fromkeys(_SHAPE_OF[word] for word in words if word in _SHAPE_OF))
    colours = [word for word in words if word in COLOURS]
    sized = any(word in (*SIZES, "larger", "smaller") for word in words)
    things = [thing for thing in scene.things if not shapes or thing.shape in shapes]
    if not shapes and colours:
        things = [thing for thing in things if thing.colour in colours]
    order = shapes or sorted(SHAPES)
    things.sort(key=lambda thing: (order.index(thing.shape), cell(thing)[::-1]))
    return ", ".join(_told(thing, question, sized) for thing in things) or "nothing"


def _told(thing: Thing, question: Question, sized: bool) -> str:
    parts = [thing.shape, thing.colour]
    if sized:
        parts.append(thing.size)
    if question.kind == "texture":
        parts.append(thing.texture)
    if question.kind in ("relation", "place"):
        column, row = cell(thing)
        parts.append(f"at {column} {row}")
    return " ".join(parts)
