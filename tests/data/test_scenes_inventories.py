"""Inventories: what each shape of a picture is like, shape first."""

from __future__ import annotations

import random
from dataclasses import replace

from vargpt.data.scenes.inventories import inventory
from vargpt.data.scenes.sampler import sample_scene
from vargpt.data.scenes.source import scene_example
from vargpt.data.scenes.world import Scene, Thing
from vargpt.data.sources.scenes import ScenesSource
from vargpt.processing.conversation import TextPart

THINGS = (
    Thing("star", "pink", "small", "plain", 0.82, 0.45),
    Thing("star", "red", "large", "dotted", 0.55, 0.13),
    Thing("cross", "cyan", "medium", "striped", 0.22, 0.71),
)


def answers(scene: Scene) -> dict[str, str]:
    return dict(inventory(scene, random.Random(seed)) for seed in range(60))


def test_shapes_come_by_name_and_alike_ones_in_reading_order() -> None:
    expected = {
        "what color is each shape?": "cross cyan, star red, star pink",
        "where is each shape?": "cross at 2 7, star at 5 1, star at 8 4",
        "how large is each shape?": "cross medium, star large, star small",
        "what is each shape like?": "cross striped medium cyan at 2 7, star dotted large red at 5 1, "
        "star plain small pink at 8 4",
    }
    assert answers(Scene(THINGS)) == expected
    assert answers(Scene(THINGS[::-1])) == expected
    assert set(answers(Scene(())).values()) == {"nothing"}


def test_two_scenes_that_differ_in_one_thing_have_different_inventories() -> None:
    for index in range(50):
        scene = sample_scene(random.Random(index), "train", "two")
        first, second = scene.things
        colour = next(colour for colour in ("red", "blue") if colour != first.colour)
        other = replace(scene, things=(replace(first, colour=colour), second))
        assert answers(scene)["what is each shape like?"] != answers(other)["what is each shape like?"]


def test_the_share_of_inventories_is_the_sources_and_leaves_the_rest_alone() -> None:
    def said(share: float, index: int) -> tuple[str, str]:
        source = ScenesSource("listed", 10_000, 16, inventories=share)
        (asked, answer) = source.sample("caption", index, random.Random(0), 0.0).conversation.messages
        parts = (asked.content[-1], answer.content[0])
        assert isinstance(parts[0], TextPart) and isinstance(parts[1], TextPart)
        return parts[0].text, parts[1].text

    listed = [index for index in range(200) if said(0.5, index)[0].endswith(("each shape?", "each shape like?"))]
    assert 60 < len(listed) < 140
    assert all(said(1.0, index)[0].endswith(("each shape?", "each shape like?")) for index in range(20))
    example = scene_example(0, 3, "caption", height=16, width=16, variety=0.0)
    assert said(0.0, 3)[1] == example.prompt == scene_example(0, 3, "caption", height=16, width=16, variety=0.0).prompt
    drawn = [scene_example(0, 3, "draw", height=16, width=16, inventories=share).prompt for share in (0.0, 1.0)]
    assert drawn[0] == drawn[1]
