"""Pictures out: rounding, output types, PNG metadata, atomic writes, contact sheets."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vargpt.inference.pictures import (
    contact_sheet,
    png_bytes,
    read_metadata,
    save_png,
    to_output,
    write_atomically,
)


def pixels() -> torch.Tensor:
    """One 1x2 picture: dark grey (0.999 of a level above 100) and white."""
    images = torch.ones(1, 3, 1, 2)
    images[..., 0] = 100.999 / 255 * 2 - 1
    return images


def test_rounding_is_to_the_nearest_level_or_down() -> None:
    assert to_output(pixels(), "np")[0].tolist() == [[[101] * 3, [255] * 3]]
    assert to_output(pixels(), "np", "official")[0].tolist() == [[[100] * 3, [255] * 3]]


def test_output_types() -> None:
    assert to_output(pixels(), "pil")[0].size == (2, 1)
    tensor = to_output(pixels(), "pt")[0]
    assert tensor.shape == (3, 1, 2)
    assert tensor.dtype == torch.float32
    assert tensor.max() == 1.0


def test_unknown_output_type_is_refused() -> None:
    bad: Any = "jpeg"
    with pytest.raises(ValueError, match="pil, np, pt"):
        to_output(pixels(), bad)


def test_png_carries_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "new" / "heart.png"
    save_png(path, Image.new("RGB", (3, 2), "red"), {"prompt": "ein grünes Herz ❤", "seed": "7", "settings": {"a": 1}})
    assert read_metadata(path) == {"prompt": "ein grünes Herz ❤", "seed": "7", "settings": '{"a": 1}'}
    with Image.open(path) as image:
        assert np.asarray(image).tolist() == [[[255, 0, 0]] * 3] * 2


def test_metadata_with_a_null_character_is_still_written() -> None:
    assert png_bytes(Image.new("RGB", (1, 1)), {"prompt": "a\0b"})


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError("disk on fire")

    monkeypatch.setattr("vargpt.inference.pictures.os.replace", refuse)
    with pytest.raises(OSError, match="on fire"):
        write_atomically(tmp_path / "picture.png", b"data")
    assert list(tmp_path.iterdir()) == []


def test_written_files_are_readable_by_others_as_usual(tmp_path: Path) -> None:
    path = tmp_path / "plain.txt"
    path.write_text("x")
    write_atomically(tmp_path / "ours.png", b"x")
    assert stat.S_IMODE((tmp_path / "ours.png").stat().st_mode) == stat.S_IMODE(path.stat().st_mode)


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        write_atomically(tmp_path, b"")


def test_contact_sheet_has_a_cell_per_picture() -> None:
    red, tall = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (10, 20), "blue")
    sheet = contact_sheet([[red, tall], [None, red]], cell=40, gap=4)
    assert sheet.size == (2 * 44 + 4, 2 * 44 + 4)
    assert sheet.getpixel((24, 24)) == (255, 0, 0)
    assert sheet.getpixel((44 + 24, 24)) == (0, 0, 255)
    assert sheet.getpixel((50, 24)) == (255, 255, 255)
    assert sheet.getpixel((24, 44 + 24)) == (255, 255, 255)
