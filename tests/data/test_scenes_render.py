"""Rendered scenes: pixels that follow from the scene, at any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vargpt.data.scenes import __main__ as sheet
from vargpt.data.scenes.render import background_pixels, render
from vargpt.data.scenes.sampler import sample_scene
from vargpt.data.scenes.shapes import EXTENTS, distance
from vargpt.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_extents(shape: str) -> None:
    axis = np.linspace(-1.4, 1.4, 561, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    inside = distance(shape, u, v) <= 0
    box = (u[inside].min(), u[inside].max(), v[inside].min(), v[inside].max())
    assert box == pytest.approx(EXTENTS[shape], abs=0.012)
    assert inside[:, ::-1].sum() == pytest.approx(inside.sum()) and 1.6 < inside.sum() * 0.005**2 < 3.0


def test_pixels_are_a_function_of_the_scene_and_the_size() -> None:
    scene = sample_scene(3)
    first = render(scene, 64, 64)
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert (render(scene, 64, 64) == first).all()
    assert (render(sample_scene(4), 64, 64) != first).any()


@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_has_its_colour_in_the_light(colour: str) -> None:
    pixels = render(Scene((Thing("square", colour, "large", x=0.5, y=0.5),)), 128, 128)
    assert np.abs(pixels[68, 68].astype(int) - COLOURS[colour]).max() < 60


def test_edges_are_smooth_and_sizes_agree() -> None:
    scene = Scene((Thing("circle", "red", "large"),))
    small, large = render(scene, 32, 32), render(scene, 256, 256)
    reduced = np.asarray(Image.fromarray(large).resize((32, 32), Image.Resampling.BOX))
    assert np.abs(small.astype(int) - reduced).max() < 30
    greens = np.unique(large[128, :, 1])
    assert len(greens) > 20


def test_the_front_thing_hides_the_other_and_casts_a_shadow() -> None:
    back, front = Thing("square", "yellow", "large", x=0.4), Thing("circle", "blue", x=0.67)
    pixels = render(Scene((back, front)), 128, 128).astype(int)
    assert pixels[64, 76, 2] > pixels[64, 76, 0]
    swapped = render(Scene((front, back)), 128, 128).astype(int)
    assert swapped[64, 72, 2] < swapped[64, 72, 0]
    lonely = render(Scene((front,)), 128, 128).astype(int)
    empty = render(Scene(()), 128, 128).astype(int)
    assert lonely[83, 95].sum() < empty[83, 95].sum() - 30


def test_textures_darken_a_part_of_the_thing() -> None:
    plain, striped, dotted = (
        render(Scene((Thing("square", "green", "large", texture),)), 64, 64).astype(int).sum(-1)
        for texture in ("plain", "striped", "dotted")
    )
    for other in (striped, dotted):
        darker = (plain - other)[20:44, 20:44] > 40
        assert 0.15 < darker.mean() < 0.6
    assert (striped != dotted).any()


@pytest.mark.parametrize("height, width", [(48, 96), (96, 48), (37, 61)])
def test_any_aspect_ratio(height: int, width: int) -> None:
    pixels = render(Scene((Thing("ring", "red", x=0.5, y=0.5),), aspect=width / height), height, width)
    red = (pixels[..., 0].astype(int) - pixels[..., 1]) > 80
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    assert abs((rows[-1] - rows[0]) - (columns[-1] - columns[0])) <= 1
    assert abs(rows.mean() + 0.5 - height / 2) < 1 and abs(columns.mean() + 0.5 - width / 2) < 1


def test_backgrounds_differ_and_are_read_only() -> None:
    means = [background_pixels(name, 32, 32).mean((0, 1)) for name in BACKGROUNDS]
    for first in range(len(means)):
        for second in range(first):
            assert np.abs(means[first] - means[second]).max() > 12
    with pytest.raises(ValueError, match="read-only"):
        background_pixels("sky", 32, 32)[0, 0] = 0


def test_absurd_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"8\.\.4096 pixels, got 4x64"):
        render(Scene(()), 4, 64)


def test_the_sheet_command_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "sheet.png"
    assert sheet.main(["--output", str(target), "--count", "6", "--size", "32"]) == 0
    with Image.open(target) as image:
        assert image.size == (3 * 33 + 1, 2 * 33 + 1)
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    assert sheet.main(["--output", str(tmp_path / "no" / "sheet.png"), "--count", "1"]) == 1
    assert "no" in capsys.readouterr().err
