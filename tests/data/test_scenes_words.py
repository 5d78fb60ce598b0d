"""Captions of scenes, and the facts that are read back from them."""

from __future__ import annotations

import random

import pytest

from vargpt.data.scenes.facts import Facts, Mention, facts_of_scene, judge, share_that_holds
from vargpt.data.scenes.parser import facts_of
from vargpt.data.scenes.sampler import sample_scene
from vargpt.data.scenes.words import full_name, long_caption, short_caption, short_name
from vargpt.data.scenes.world import Scene, Thing

STAR_AND_SQUARE = Scene(
    (Thing("star", "blue", "small", x=0.2, y=0.5), Thing("square", "green", "medium", "striped", 0.7, 0.45)), "sky"
)


def test_canonical_captions() -> None:
    assert short_caption(STAR_AND_SQUARE) == "a small blue star left of a striped green square"
    assert long_caption(STAR_AND_SQUARE) == (
        "There is a small blue star on the left and a striped green square on a sky background. "
        "The star is left of the square."
    )
    three = tuple(Thing("triangle", "yellow", x=x, y=0.5) for x in (0.2, 0.5, 0.8))
    assert short_caption(Scene(three)) == "three yellow triangles"
    mixed = Scene((*three[:2], Thing("cross", "orange", "large", x=0.5, y=0.2)))
    assert short_caption(mixed) == "two yellow triangles and a large orange cross"
    assert short_caption(Scene((Thing("ring", "orange"),))) == "an orange ring"
    assert short_caption(Scene((), "night")) == "nothing on a night background"
    behind = Scene((Thing("square", "red", "large", x=0.4), Thing("ring", "blue", x=0.67)))
    assert short_caption(behind) == "a blue ring in front of a large red square"


def test_names_that_mean_one_thing() -> None:
    scene = Scene((Thing("star", "red", "small"), Thing("star", "red", "large"), Thing("ring", "blue")))
    assert [short_name(scene, index) for index in range(3)] == ["small red star", "large red star", "ring"]
    assert full_name(scene, 2) == "blue ring"
    twins = Scene((Thing("star", "red"), Thing("star", "red")))
    assert short_name(twins, 0) is None and full_name(twins, 0) is None


def test_every_caption_is_read_back_and_holds() -> None:
    wordings = set()
    for seed in range(250):
        scene = sample_scene(seed, ("train", "unseen")[seed % 2])
        generator = random.Random(seed)
        for caption in (
            short_caption(scene),
            short_caption(scene, generator),
            long_caption(scene),
            long_caption(scene, generator),
        ):
            facts = facts_of(caption)
            assert facts is not None, caption
            assert facts.total == len(scene.things)
            assert [verdict for verdict in judge(facts, scene) if not verdict.holds] == [], caption
            wordings.add(caption)
    assert len(wordings) > 600


@pytest.mark.parametrize(
    "prompt, facts",
    [
        ("a red circle", Facts((Mention("circle", "red"),), (), None, 1)),
        ("Draw a big grey-free night", None),
        (
            "draw a picture of two big spotted pink stars.",
            Facts((Mention("star", "pink", "large", "dotted"),) * 2, total=2),
        ),
        ("please draw a star in the middle of it", None),
        ("a star in the centre, please", Facts((Mention("star", place="center"),), total=1)),
        (
            "a red circle to the left of a blue ring on a grey background",
            Facts((Mention("circle", "red"), Mention("ring", "blue")), ((0, "left of", 1),), "gray", 2),
        ),
        ("three things on a white background", Facts((Mention(),) * 3, (), "white", 3)),
        ("an empty sky background", None),
        ("nothing on a sky background", Facts((), (), "sky", 0)),
        ("there are two hearts and a cross", Facts((Mention("heart"), Mention("heart"), Mention("cross")), total=3)),
        (
            "a red star, a red ring and a cross. The red star is under the cross.",
            Facts((Mention("star", "red"), Mention("ring", "red"), Mention("cross")), ((0, "below", 2),), None, 3),
        ),
        ("a red star and a ring. The star is above the hexagon.", None),
        ("two stars. The star is above the star.", None),
        ("two stars and a ring. The star is above the ring.", None),
        ("a red blue star", None),
        ("a fox", None),
        ("six red stars", None),
        ("red star", None),
        ("", None),
    ],
)
def test_prompts_become_facts_or_none(prompt: str, facts: Facts | None) -> None:
    assert facts_of(prompt) == facts


def test_wrong_scenes_lose_the_facts_that_fail() -> None:
    facts = facts_of("a small blue star left of a striped green square")
    assert facts is not None
    star, square = STAR_AND_SQUARE.things
    assert share_that_holds(judge(facts, STAR_AND_SQUARE)) == 1.0
    verdicts = judge(facts, Scene((star,)))
    assert {(v.kind, v.holds) for v in verdicts} >= {("total", False), ("relation", False), ("colour", True)}
    assert share_that_holds(verdicts) == pytest.approx(3 / 8)
    turned = Scene(
        (Thing("star", "blue", "small", x=0.8, y=0.5), Thing("square", "green", "medium", "striped", 0.3, 0.5))
    )
    assert [v.said for v in judge(facts, turned) if not v.holds] == ["left of"]
    bound_wrongly = Scene(
        (Thing("star", "green", "small", x=0.2, y=0.5), Thing("square", "blue", "medium", "striped", 0.7, 0.45))
    )
    assert sorted(v.kind for v in judge(facts, bound_wrongly) if not v.holds) == ["colour", "colour"]
    one_more = Scene((star, square, Thing("ring", "red", x=0.5, y=0.85)))
    assert [v.kind for v in judge(facts, one_more) if not v.holds] == ["total"]


def test_a_scene_satisfies_all_facts_of_itself_and_not_of_another() -> None:
    scenes = [sample_scene(seed, kind="two") for seed in range(30)]
    for index, scene in enumerate(scenes):
        assert share_that_holds(judge(facts_of_scene(scene), scene)) == 1.0
        assert share_that_holds(judge(facts_of_scene(scene), scenes[index - 1])) < 1.0


def test_absent_things_are_facts_too() -> None:
    facts = Facts(absent=(Mention("star", "blue"),))
    assert [v.holds for v in judge(facts, STAR_AND_SQUARE)] == [False]
    assert [v.holds for v in judge(facts, Scene(()))] == [True]
