"""When a reading of a picture is right."""

from __future__ import annotations

import dataclasses

import pytest

from vargpt.data.scenes.agreement import agreement, is_right
from vargpt.data.scenes.checker import Reading, read
from vargpt.data.scenes.render import render
from vargpt.data.scenes.world import Scene, Thing

BACK = Thing("square", "blue", "large", "plain", 0.4, 0.4)
FRONT = Thing("circle", "red", "medium", "plain", 0.6, 0.5)
STAR = Thing("star", "green", "small", "plain", 0.85, 0.85)
SCENE = Scene((BACK, FRONT, STAR), "sand")


def reading(*things: Thing, background: str = "sand", known: bool = True, unclear: int = 0) -> Reading:
    return Reading(Scene(things, background), known, unclear, (1.0,) * len(things), 0.0)


def test_the_same_scene_is_right_in_any_order_that_keeps_the_depth():
    assert is_right(SCENE, reading(BACK, FRONT, STAR)) and is_right(SCENE, reading(STAR, BACK, FRONT))
    assert agreement(SCENE, reading(BACK, FRONT, STAR)) == {
        "things": (3, 3), "shape": (3, 3), "colour": (3, 3), "size": (3, 3), "texture": (3, 3), "place": (3, 3),
        "depth": (1, 1), "background": (1, 1), "nothing unclear": (1, 1),
    }  # fmt: skip


@pytest.mark.parametrize(
    "seen, name, counts",
    [
        (reading(FRONT, BACK, STAR), "depth", (0, 1)),
        (reading(BACK, FRONT), "things", (2, 3)),
        (reading(BACK, FRONT, STAR, Thing("ring", "pink", x=0.1, y=0.9)), "things", (3, 4)),
        (reading(BACK, FRONT, dataclasses.replace(STAR, colour="cyan")), "colour", (2, 3)),
        (reading(BACK, FRONT, dataclasses.replace(STAR, shape="heart")), "shape", (2, 3)),
        (reading(BACK, dataclasses.replace(FRONT, texture="dotted"), STAR), "texture", (2, 3)),
        (reading(BACK, dataclasses.replace(FRONT, size="large"), STAR), "size", (2, 3)),
        (reading(BACK, FRONT, dataclasses.replace(STAR, x=0.80)), "place", (2, 3)),
        (reading(BACK, FRONT, STAR, background="sky"), "background", (0, 1)),
        (reading(BACK, FRONT, STAR, known=False), "background", (0, 1)),
        (reading(BACK, FRONT, STAR, unclear=1), "nothing unclear", (0, 1)),
    ],
)
def test_one_thing_wrong_is_wrong(seen: Reading, name: str, counts: tuple[int, int]):
    assert agreement(SCENE, seen)[name] == counts and not is_right(SCENE, seen)


def test_a_place_is_right_within_the_tolerance():
    assert is_right(SCENE, reading(BACK, FRONT, dataclasses.replace(STAR, x=0.82, y=0.88)))


def test_many_false_things_are_counted_without_trying_every_order():
    crowd = [Thing("ring", "pink", x=0.05 + 0.03 * index, y=0.1) for index in range(30)]
    counts = agreement(SCENE, reading(*crowd, BACK, FRONT, STAR))
    assert counts["things"] == (3, 33) and counts["shape"] == (3, 3) and counts["place"] == (3, 3)


def test_a_rendered_scene_is_read_right():
    assert is_right(SCENE, read(render(SCENE, 96, 96)))
    assert not is_right(SCENE, read(render(Scene((BACK, FRONT), "sand"), 96, 96)))
