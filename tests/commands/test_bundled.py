"""The bundled models: found by name, by what they know, and only where nothing else was named."""

from __future__ import annotations

from pathlib import Path

import pytest

from vargpt.commands.common import BUNDLED, bundled_model, bundled_models, find_model
from vargpt.commands.evaluation import EvalOptions, _model
from vargpt.inference.habits import read_habits


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VARGPT_MODEL", raising=False)


@pytest.mark.parametrize(("domain", "name"), BUNDLED.items(), ids=str)
def test_a_bundled_model_is_found_by_its_name(
    domain: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundled_model(name)
    if folder is None:
        pytest.skip(f"models/{name} is not in this checkout")
    assert find_model(name) == str(folder)
    assert (read_habits(folder).domains or ("emoji",)) == (domain,)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 60e6
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name}: is no model folder"):
        find_model(name)  # a path of the user's own goes first


def test_scenes_are_asked_of_the_model_that_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    if bundled_model(BUNDLED["scenes"]) is None:
        pytest.skip("the bundled model for scenes is not in this checkout")
    assert _model(EvalOptions()) == BUNDLED["scenes"]
    assert _model(EvalOptions(suites=("scenes", "emoji"))) is None
    assert _model(EvalOptions(model="other")) == "other"
    monkeypatch.setenv("VARGPT_MODEL", "mine")
    assert _model(EvalOptions()) is None


def test_all_bundled_models_together_are_small() -> None:
    assert sum(file.stat().st_size for folder in bundled_models() for file in folder.iterdir()) < 60e6
