"""Edits of scenes: the instruction, its one result, and the score of a picture made of it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import get_args

import pytest

from vargpt.data.scenes.checker import EditScore, score_edit
from vargpt.data.scenes.edits import Edit, EditKind, make_edit
from vargpt.data.scenes.facts import Facts, Mention, judge
from vargpt.data.scenes.render import render
from vargpt.data.scenes.sampler import sample_scene
from vargpt.data.scenes.world import Scene, Thing, is_held_out, is_legible, split_of

KINDS: tuple[EditKind, ...] = get_args(EditKind)
SCENE = Scene(
    (
        Thing("star", "blue", "medium", "plain", 0.2, 0.25),
        Thing("square", "green", "medium", "striped", 0.7, 0.45),
        Thing("ring", "red", "small", "plain", 0.3, 0.8),
    ),
    "sky",
)


def _edits(kind: EditKind, count: int) -> list[Edit]:
    found: list[Edit] = []
    seed = 0
    while len(found) < count:
        edit = make_edit(sample_scene(f"edits {seed}"), random.Random(seed), kind)
        found += [edit] if edit is not None else []
        seed += 1
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_changes_what_it_says_and_nothing_else(kind: EditKind) -> None:
    for edit in _edits(kind, 25):
        source, target = edit.source, edit.target
        assert source != target and is_legible(target)
        assert not is_held_out(target)
        assert [v for v in judge(edit.asked, target) if not v.holds] == []
        assert (source.background != target.background) == (kind == "background")
        if kind == "add":
            assert target.things[:-1] == source.things
        elif kind == "remove":
            assert edit.changed is not None
            assert target.things == source.things[: edit.changed] + source.things[edit.changed + 1 :]
        elif kind == "background":
            assert target.things == source.things
        else:
            changed = [i for i, (a, b) in enumerate(zip(source.things, target.things, strict=True)) if a != b]
            assert changed == [edit.changed]


def test_instructions_of_every_kind() -> None:
    expected = {
        "recolour": ("make the blue star", "paint the blue star", "color the blue star"),
        "remove": ("remove the blue star", "delete the blue star", "take away the blue star"),
        "move": ("move the blue star to the", "put the blue star"),
        "resize": ("make the blue star small", "make the blue star large"),
        "replace": ("replace the blue star with a", "turn the blue star into a"),
        "restyle": ("make the blue star", "turn the blue star"),
        "background": ("change the background to", "make the background", "put it on a"),
        "add": ("add a", "put a"),
    }
    alone = replace(SCENE, things=SCENE.things[:1])
    for kind in KINDS:
        scene = alone if kind != "remove" else SCENE
        edits = [edit for seed in range(60) if (edit := make_edit(scene, random.Random(seed), kind, "train"))]
        assert edits, kind
        starts = expected[kind] + tuple(
            w.replace("blue star", n) for w in expected[kind] for n in ("green square", "red ring")
        )
        assert all(edit.instruction.startswith(starts) for edit in edits), kind


def test_what_cannot_be_named_is_not_edited() -> None:
    twins = Scene((Thing("star", "blue", x=0.2), Thing("star", "blue", x=0.8)))
    assert make_edit(twins, random.Random(0), "recolour") is None
    assert make_edit(twins, random.Random(0), "background") is not None
    with pytest.raises(ValueError, match="unknown edit kind 'flip', expected one of recolour"):
        make_edit(SCENE, random.Random(0), "flip")  # type: ignore[arg-type]


def test_an_unseen_edit_ends_in_a_held_out_combination() -> None:
    edits = [make_edit(sample_scene(seed), random.Random(seed), None, "unseen") for seed in range(40)]
    made = [edit for edit in edits if edit is not None]
    assert len(made) > 10
    assert all(split_of(edit.target) == "unseen" and split_of(edit.source) == "train" for edit in made)


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_right_and_the_source_is_not(kind: EditKind) -> None:
    for edit in _edits(kind, 5):
        assert score_edit(render(edit.target, 64, 64), edit).right, edit.instruction
        untouched = score_edit(render(edit.source, 64, 64), edit)
        assert not untouched.asked and untouched.kept == 1.0, edit.instruction


def test_damage_beside_the_edit_lowers_what_was_kept() -> None:
    star, square, ring = SCENE.things
    target = replace(SCENE, things=(replace(star, colour="pink"), square, ring))
    asked = Facts((Mention("star", "pink"),), total=3)
    edit = Edit("recolour", "make the blue star pink", SCENE, target, asked, 0)
    assert score_edit(render(target, 96, 96), edit) == EditScore(True, 1.0)
    others_too = replace(target, things=(target.things[0], replace(square, colour="pink"), ring), background="sand")
    score = score_edit(render(others_too, 96, 96), edit)
    assert score.asked and score.kept == pytest.approx(13 / 15)
    assert not score.right
    gone = replace(target, things=target.things[:2])
    score = score_edit(render(gone, 96, 96), edit)
    assert not score.asked and score.kept == pytest.approx(10 / 15)


def test_another_thing_of_that_look_does_not_count_as_the_change() -> None:
    scene = replace(SCENE, things=(*SCENE.things[:2], Thing("star", "pink", x=0.3, y=0.75)))
    target = replace(scene, things=(replace(scene.things[0], colour="pink"), *scene.things[1:]))
    edit = Edit("recolour", "make the blue star pink", scene, target, Facts((Mention("star", "pink"),), total=3), 0)
    assert score_edit(render(scene, 64, 64), edit) == EditScore(False, 1.0)
