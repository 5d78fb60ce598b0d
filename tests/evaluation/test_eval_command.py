"""`vargpt eval`: the last line is JSON, and the split is the one that the model was trained with."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from vargpt.cli import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["vargpt", "eval", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.mark.parametrize(("fraction", "parts"), [(0.5, {"train", "validation"}), (0.0, {"train"})])
def test_the_split_is_that_of_the_recipe(
    fraction: float, parts: set[str], tiny_model: Path, repo_root: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    """A recipe with another validation_fraction had trained pictures reported as unseen."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    loop = "{steps: 1, batch_size: 1, learning_rate: 1}"
    (model / "recipe.yaml").write_text(
        f"name: x\nvalidation_fraction: {fraction}\nstages: [{{kind: sft, data: [{{task: draw}}], loop: {loop}}}]\n"
    )
    assert run(monkeypatch, model, "--data", repo_root / "examples", "-o", tmp_path / "report", "--limit", 2) == 0
    printed = capsys.readouterr().out.splitlines()
    document = json.loads(printed[-1])
    assert set(document["measures"]["naming"]) == parts and printed[0].startswith("| measure |")
    assert document["measures"]["drawing"]["train"]["n"] == 2
    assert (tmp_path / "report" / "index.html").is_file()


def test_mistakes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run(monkeypatch, tiny_model, "--data", tmp_path / "absent") == 2
    assert "no such folder" in capsys.readouterr().err
    assert run(monkeypatch, tiny_model, "--data", tmp_path, "--limit", 0) == 2
    assert "--limit must be at least 1, got 0" in capsys.readouterr().err
