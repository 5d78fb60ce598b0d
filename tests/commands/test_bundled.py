"""The bundled model: found by its name, and only where nothing else was named."""

from __future__ import annotations

from pathlib import Path

import pytest

from vargpt.commands.common import BUNDLED, bundled_model, find_model
from vargpt.inference.habits import read_habits


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("VARGPT_MODEL", raising=False)
    found = bundled_model()
    if found is None:
        pytest.skip(f"models/{BUNDLED} is not in this checkout")
    return found


def test_the_bundled_model_is_the_default_and_found_by_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_model(None) == find_model(BUNDLED) == str(folder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / BUNDLED).mkdir()
    with pytest.raises(ValueError, match=f"{BUNDLED}: is no model folder"):
        find_model(BUNDLED)  # a path of the user's own goes first
    monkeypatch.setenv("VARGPT_MODEL", "owner/name")
    assert find_model(None) == "owner/name"


def test_the_bundled_model_is_small_and_knows_scenes_and_emoji(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < 60e6
    assert set(read_habits(folder).domains) == {"scenes", "emoji"}
