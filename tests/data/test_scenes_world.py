"""The scenes world: vocabulary, places, relations, splits, and the scenes drawn by chance."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from vargpt.data.scenes.sampler import KIND_WEIGHTS, find_place, sample_scene
from vargpt.data.scenes.world import (
    COLOURS,
    HELD_OUT_PAIRS,
    HELD_OUT_RELATIONS,
    SHAPES,
    Scene,
    Split,
    Thing,
    clear_place,
    held_out_combinations,
    is_at,
    is_held_out,
    is_legible,
    place_of,
    split_of,
)

STAR_LEFT_OF_SQUARE = Scene((Thing("star", "blue", "small", x=0.2, y=0.5), Thing("square", "green", x=0.7, y=0.45)))


def test_held_out_pairs_leave_every_colour_and_shape_in_training() -> None:
    assert len(HELD_OUT_PAIRS) == 8
    assert {colour for colour, _ in HELD_OUT_PAIRS} == set(COLOURS)
    assert {shape for _, shape in HELD_OUT_PAIRS} == set(SHAPES)
    assert ("red", "triangle") in HELD_OUT_PAIRS and ("red", "circle") not in HELD_OUT_PAIRS
    assert 15 <= len(HELD_OUT_RELATIONS) <= 40


def test_the_split_of_a_scene_follows_from_what_it_shows() -> None:
    assert split_of(Scene((Thing("triangle", "red"),))) == "unseen"
    assert held_out_combinations(Scene((Thing("triangle", "red"),))) == (("red", "triangle"),)
    assert not is_held_out(STAR_LEFT_OF_SQUARE)
    red_circle_left = Scene((Thing("circle", "red", x=0.2, y=0.5), Thing("square", "green", x=0.7, y=0.5)))
    assert held_out_combinations(red_circle_left) == (("red", "circle", "left of"),)
    moved = Scene((Thing("circle", "red", x=0.7, y=0.5), Thing("square", "green", x=0.2, y=0.5)))
    assert not is_held_out(moved)


def test_the_validation_part_is_a_twentieth_and_forgets_places() -> None:
    scenes = [Scene((Thing(s, c),), b) for s in SHAPES for c in COLOURS for b in ("white", "sky", "night")]
    known = [scene for scene in scenes if not is_held_out(scene)]
    parts = Counter(split_of(scene) for scene in known)
    assert 3 <= parts["validation"] <= 18
    for scene in known:
        thing = scene.things[0]
        elsewhere = Scene((Thing(thing.shape, thing.colour, x=0.3, y=0.6),), scene.background)
        assert split_of(elsewhere) == split_of(scene)


def test_places() -> None:
    assert place_of(0.1, 0.1) == "top left"
    assert place_of(0.5, 0.5) == "center"
    assert place_of(0.99, 0.5) == "right"
    assert clear_place(Thing("star", "red", x=0.5, y=0.9)) == "bottom"
    assert clear_place(Thing("star", "red", x=0.34, y=0.9)) is None
    assert is_at(0.37, 0.9, "bottom left", -0.05) and not is_at(0.4, 0.9, "bottom left", -0.05)


def test_relations_are_told_from_both_sides_and_only_when_clear() -> None:
    assert STAR_LEFT_OF_SQUARE.relations(0, 1) == {"left of"}
    assert STAR_LEFT_OF_SQUARE.relations(1, 0) == {"right of"}
    diagonal = Scene((Thing("star", "blue", x=0.3, y=0.3), Thing("ring", "red", x=0.7, y=0.7)))
    assert diagonal.relations(0, 1) == frozenset()
    assert diagonal.loose_relations(0, 1) == {"left of", "above"}
    overlap = Scene((Thing("square", "red", "large", x=0.4, y=0.5), Thing("ring", "blue", x=0.68, y=0.5)))
    assert overlap.relations(1, 0) == {"in front of", "right of"}
    assert overlap.relations(0, 1) == {"behind", "left of"}


def test_a_wide_picture_counts_distance_in_shorter_sides() -> None:
    things = (Thing("star", "blue", x=0.4, y=0.5), Thing("ring", "red", x=0.55, y=0.5))
    assert Scene(things).relations(0, 1) == {"behind", "left of"}
    assert Scene(things, aspect=2.0).relations(0, 1) == {"left of"}


@pytest.mark.parametrize(
    "things",
    [
        (Thing("star", "red", x=0.1, y=0.5),),
        (Thing("star", "red", "small", "dotted"),),
        (Thing("star", "red", x=0.3, y=0.5), Thing("ring", "blue", x=0.57, y=0.5)),
        (Thing("square", "red", x=0.4, y=0.5), Thing("square", "red", x=0.63, y=0.5)),
        (Thing("square", "red", "small", x=0.4, y=0.5), Thing("square", "blue", x=0.6, y=0.5)),
        tuple(Thing("ring", "red", "small", x=0.15 + 0.14 * n, y=0.5) for n in range(6)),
    ],
    ids=["over the edge", "dots on a small thing", "too near", "one colour", "small one behind", "six"],
)
def test_scenes_that_cannot_be_read_are_not_legible(things: tuple[Thing, ...]) -> None:
    assert not is_legible(Scene(things))


def test_a_thing_in_front_must_really_hide_a_part() -> None:
    back = Thing("square", "red", "large", x=0.4, y=0.5)
    assert is_legible(Scene((back, Thing("circle", "blue", x=0.67, y=0.5))))
    assert not is_legible(
        Scene((Thing("diamond", "red", "large", x=0.4, y=0.4), Thing("diamond", "blue", x=0.6, y=0.6)))
    )


def test_unknown_words_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown colour 'teal', expected one of red, orange"):
        Thing("star", "teal")
    with pytest.raises(ValueError, match="unknown background 'forest'"):
        Scene((), "forest")
    with pytest.raises(ValueError, match="unknown kind 'three'"):
        sample_scene(0, kind="three")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty scenes belong to the train split"):
        sample_scene(0, "unseen", "empty")


@pytest.mark.parametrize("split", ["train", "validation", "unseen"])
def test_sampled_scenes_are_legible_and_of_their_split(split: Split) -> None:
    numbers: Counter[int] = Counter()
    for kind in KIND_WEIGHTS:
        if kind == "empty":
            continue
        for seed in range(12):
            scene = sample_scene(seed, split, kind)
            numbers[len(scene.things)] += 1
            assert is_legible(scene) and split_of(scene) == split
            assert sample_scene(seed, split, kind) == scene
            assert any(scene.overlaps(a, b) for a in range(len(scene.things)) for b in range(a)) == (kind == "overlap")
    assert set(numbers) == {1, 2, 3, 4, 5}


def test_scenes_fit_wide_pictures() -> None:
    for seed in range(20):
        scene = sample_scene(seed, aspect=1.6)
        assert scene.aspect == 1.6 and is_legible(scene)


def test_find_place_keeps_the_others_and_the_place() -> None:
    scene = find_place(STAR_LEFT_OF_SQUARE, Thing("ring", "red", "small"), random.Random(0), "top right")
    assert scene is not None
    assert scene.things[:2] == STAR_LEFT_OF_SQUARE.things
    assert clear_place(scene.things[2]) == "top right"
    for seed in range(20):
        found = find_place(STAR_LEFT_OF_SQUARE, Thing("ring", "red", "small"), random.Random(seed))
        assert found is not None and is_legible(found) and not any(found.overlaps(2, other) for other in (0, 1))
    full = Scene(
        tuple(
            Thing("square", c, "large", x=x, y=y)
            for c, x, y in (("red", 0.26, 0.26), ("blue", 0.74, 0.26), ("green", 0.26, 0.74), ("pink", 0.74, 0.74))
        )
    )
    assert find_place(full, Thing("ring", "cyan", "large"), random.Random(0)) is None
