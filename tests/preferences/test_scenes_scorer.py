"""The scene checker as a scorer: drawings against words, edits against their target."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from vargpt.data.instructions import draw_prompt, edit_prompt
from vargpt.data.scenes.checker import read
from vargpt.data.scenes.render import render_image
from vargpt.data.scenes.world import Scene, Thing
from vargpt.preferences.scenes import clearness
from vargpt.preferences.scorers import Context, load_scorer


def scene(*things: Thing) -> Image.Image:
    return render_image(Scene(things, "white", 1.0), 64, 64)


STAR = Thing("star", "red", "large", "plain", 0.3, 0.5)
RING = Thing("circle", "blue", "medium", "plain", 0.75, 0.5)


def test_drawings_are_held_against_their_words() -> None:
    scorer = load_scorer("scenes")
    images = [scene(STAR, RING), scene(STAR), scene(), scene(RING)]
    right, half, nothing, other = scorer(draw_prompt("a red star and a blue circle"), images, Context("k"))
    assert right == 1
    assert right > half > nothing
    assert right > other > nothing
    named = scorer(draw_prompt("draw it"), images[:1], Context("k", "a red star and a blue circle"))
    assert list(named) == [1]
    with pytest.raises(ValueError, match="k: 'draw a fox' is not of the scenes grammar"):
        scorer(draw_prompt("a fox"), images, Context("k"))


def test_edits_are_held_against_their_target() -> None:
    scorer = load_scorer("scenes")
    target, unchanged = scene(STAR), scene(STAR, RING)
    prompt = edit_prompt(unchanged, "remove the blue circle")
    done, same = scorer(prompt, [target, unchanged], Context("k", target=target))
    assert done == 1 > same
    with pytest.raises(ValueError, match="k is an edit without a target picture"):
        scorer(prompt, [target], Context("k"))


def test_quality_adds_how_clear_the_shapes_are() -> None:
    seen = read(scene(STAR))
    assert clearness(replace(seen, fits=(0.9, 0.7), unclear=0, strange=0.25)) == pytest.approx(0.8 * 0.75)
    assert clearness(replace(seen, fits=(0.9, 0.7), unclear=2, strange=0.0)) == pytest.approx(0.4)
    assert clearness(replace(seen, fits=(), unclear=0, strange=0.5)) == 0.5
    prompt, images = draw_prompt("a red star"), [scene(STAR), scene(RING)]
    plain = load_scorer("scenes")(prompt, images, Context("k"))
    finer = load_scorer("scenes?quality=0.1")(prompt, images, Context("k"))
    added = [0.1 * clearness(read(image)) for image in images]
    assert list(finer) == pytest.approx([score + more for score, more in zip(plain, added, strict=True)])
    assert min(added) > 0
