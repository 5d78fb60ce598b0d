"""The checker: right pictures are read right, wrong ones are refused."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from vargpt.data.scenes.checker import read, score, verdicts
from vargpt.data.scenes.preferences import pick_pair, preference_pair
from vargpt.data.scenes.render import background_pixels, render, render_image
from vargpt.data.scenes.sampler import sample_scene
from vargpt.data.scenes.segmentation import connected, is_thin
from vargpt.data.scenes.words import short_caption
from vargpt.data.scenes.world import COLOURS, SHAPES, Scene, Split, Thing

SPLITS: tuple[Split, Split] = ("train", "unseen")


def _scenes(count: int) -> list[Scene]:
    return [sample_scene(f"checker {seed}", SPLITS[seed % 2]) for seed in range(count)]


@pytest.mark.parametrize("size, count", [(48, 20), (64, 40), (128, 20), (300, 6)])
def test_clean_scenes_are_read_right(size: int, count: int) -> None:
    for scene in _scenes(count):
        reading = read(render(scene, size, size))
        assert reading.unclear == 0 and reading.background_known
        assert score(render(scene, size, size), scene) == 1.0, scene
        assert len(reading.scene.things) == len(scene.things)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_thing_is_found_where_it_is(shape: str) -> None:
    thing = Thing(shape, "green", "medium", "dotted", 0.31, 0.62)
    (found,) = read(render(Scene((thing,), "gray"), 64, 64)).scene.things
    assert (found.shape, found.colour, found.size, found.texture) == (shape, "green", "medium", "dotted")
    assert (found.x, found.y) == pytest.approx((0.31, 0.62), abs=0.015)


def test_wide_and_high_pictures_are_read() -> None:
    for height, width in ((64, 112), (112, 64)):
        scene = sample_scene("wide", kind="several", aspect=width / height)
        assert score(render(scene, height, width), scene) == 1.0


@pytest.mark.parametrize("damage, least", [("jpeg", 0.85), ("blur", 0.95), ("noise", 0.95)])
def test_damaged_pictures_are_read(damage: str, least: float) -> None:
    right = []
    for index, scene in enumerate(_scenes(20)):
        image = render_image(scene, 64, 64)
        if damage == "jpeg":
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=40)
            image = Image.open(buffer)
        elif damage == "blur":
            image = image.filter(ImageFilter.GaussianBlur(1))
        else:
            added = np.random.default_rng(index).normal(0, 8, (64, 64, 3))
            image = Image.fromarray((np.asarray(image) + added).clip(0, 255).astype(np.uint8))
        right.append(score(image, scene) == 1.0)
    assert np.mean(right) >= least


def test_small_things_are_told_apart_when_they_are_blurred() -> None:
    places = ((0.2, 0.25), (0.5, 0.75), (0.8, 0.3))
    for shape, colours in itertools.product(
        ("ring", "star", "cross"), (("pink", "green", "blue"), ("red", "yellow", "purple"))
    ):
        things = tuple(
            Thing(shape, colour, "small", "plain", x, y) for colour, (x, y) in zip(colours, places, strict=True)
        )
        image = render_image(Scene(things), 64, 64).filter(ImageFilter.GaussianBlur(1.7))
        assert sorted(thing.shape for thing in read(image).scene.things) == [shape] * 3


def test_depth_is_seen() -> None:
    back, front = Thing("square", "yellow", "large", x=0.4), Thing("circle", "blue", x=0.67)
    assert score(render(Scene((back, front)), 64, 64), "a blue circle in front of a large yellow square") == 1.0
    turned = render(Scene((front, back)), 64, 64)
    assert score(turned, "a blue circle behind a yellow square") == 1.0
    assert score(turned, "a blue circle in front of a yellow square") < 1.0


def test_the_picture_of_another_scene_is_refused() -> None:
    scenes = _scenes(24)
    for scene, other in zip(scenes, scenes[1:] + scenes[:1], strict=True):
        if short_caption(scene) != short_caption(other):
            assert score(render(other, 64, 64), short_caption(scene)) < 1.0


def test_one_thing_wrong_is_seen_and_costs_its_share() -> None:
    for index in range(15):
        pair = preference_pair(0, index, split=SPLITS[index % 2])
        chosen, rejected = pair.images(64, 64)
        assert score(chosen, pair.prompt) == 1.0
        assert score(rejected, pair.prompt) == pytest.approx(1.0 - pair.margin)
        assert 0.0 < pair.margin <= 1.0


def _outline(points: list[tuple[float, float]], colour: str) -> Image.Image:
    image = Image.fromarray(background_pixels("sand", 256, 256).astype(np.uint8))
    ImageDraw.Draw(image).polygon([(128 + 50 * u, 128 + 50 * v) for u, v in points], fill=COLOURS[colour])
    return image.resize((64, 64), Image.Resampling.BOX)


@pytest.mark.parametrize(
    "points",
    [
        [(-0.9, -1), (-0.3, -1), (-0.3, 0.4), (0.9, 0.4), (0.9, 1), (-0.9, 1)],
        [(-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)],
        [(math.cos(angle), max(math.sin(angle), 0.0)) for angle in np.linspace(0, math.pi, 24)],
        [(math.cos(angle), 0.5 * math.sin(angle)) for angle in np.linspace(0, 2 * math.pi, 24)],
        [(-1, -0.35), (0, -0.35), (0, -0.9), (1, 0), (0, 0.9), (0, 0.35), (-1, 0.35)],
    ],
    ids=["L", "slab", "half disc", "flat ellipse", "arrow"],
)
def test_what_is_no_shape_is_not_taken_for_one(points: list[tuple[float, float]]) -> None:
    for colour in ("red", "cyan"):
        reading = read(_outline(points, colour))
        assert reading.scene.things == () and reading.unclear == 1
        assert score(_outline(points, colour), f"a {colour} circle") == pytest.approx(
            1 / 3
        )  # one thing, and that is all


def test_noise_and_plain_pictures_hold_nothing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert read(noise).scene.things == () and not read(noise).background_known
    assert score(noise, "nothing on a gray background") < 1.0
    lilac = np.full((64, 64, 3), (200, 120, 200), dtype=np.uint8)
    assert not read(lilac).background_known and read(lilac).scene.things == ()
    assert score(render(Scene((), "gray"), 64, 64), "nothing on a gray background") == 1.0


def test_an_unclear_blob_counts_as_one_thing_too_many() -> None:
    image = np.asarray(render(Scene((Thing("star", "blue", x=0.25, y=0.25),)), 64, 64)).copy()
    assert score(image, "a blue star") == 1.0
    image[40:44, 20:60] = (222, 44, 44)
    assert [v.kind for v in verdicts(image, "a blue star") if not v.holds] == ["total"]


def test_the_best_and_the_worst_picture_are_picked() -> None:
    star, ring = Scene((Thing("star", "red"),)), Scene((Thing("ring", "red"),))
    images = [render(scene, 64, 64) for scene in (ring, star, Scene(()))]
    assert pick_pair("a red star", images) == (1, 2)
    assert pick_pair("a red star", images[1:2] * 2) is None


def test_what_cannot_be_scored_is_refused_with_an_example() -> None:
    with pytest.raises(ValueError, match=r"not a caption of the scenes grammar: 'a fox'; expected e.g. 'a red star"):
        score(render(Scene(()), 64, 64), "a fox")
    with pytest.raises(ValueError, match=r"uint8 pixels \[H, W, 3\], got float64"):
        read(np.zeros((64, 64, 3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 24 pixels"):
        read(np.zeros((16, 64, 3), dtype=np.uint8))


def test_connected_regions_keep_their_class_and_touch() -> None:
    classes = np.array([[0, 0, 1, -1], [1, 0, 1, 1], [1, 1, 0, 1]], dtype=np.int32)
    labels = connected(classes)
    assert labels.tolist() == [[0, 0, 2, -1], [4, 0, 2, 2], [4, 4, 10, 2]]
    spiral = np.zeros((9, 9), dtype=np.int32)
    spiral[1::2, 1:] = 1
    spiral[3::4, 1:] = 1
    spiral[3::4, 0], spiral[3::4, -1] = 1, 0
    spiral[1::4, -1] = 0
    assert len(np.unique(connected(spiral)[spiral == 0])) == 1
    assert is_thin(np.eye(9, dtype=bool)) and not is_thin(np.ones((9, 9), dtype=bool))
