"""`vargpt eval`: the last line is JSON, files lie where they should, and the split is the one of the training."""

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
    out = tmp_path / "report"
    assert run(monkeypatch, model, "--suite", repo_root / "examples", "-o", out, "--limit", 2) == 0
    printed = capsys.readouterr().out.splitlines()
    document = json.loads(printed[-1])
    assert {name for name in document["measures"] if name.startswith("naming")} == {f"naming/{p}" for p in parts}
    assert any(line.startswith("| Naming (exact match), training names | ") for line in printed)
    assert document["measures"]["drawing/train"]["n"] == 2 and document["suite"] == "examples"
    assert sorted(path.name for path in out.iterdir()) == ["examples.jsonl", "index.html", "results.json"]
    assert json.loads((out / "results.json").read_text()) == document


def test_several_suites_and_their_comparison(
    tiny_model: Path, repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    suites = ("--suite", "scenes", "--suite", "emoji", "--data", repo_root / "examples", "--limit", 1)
    assert run(monkeypatch, tiny_model, *suites, "--resolution", 32, "--top-p", 0.9, "--batch-size", 64) == 0
    first = tmp_path / "runs" / "evaluation" / tiny_model.name
    documents = json.loads(capsys.readouterr().out.splitlines()[-1])["suites"]
    assert [document["suite"] for document in documents] == ["scenes", "emoji"]
    conditions = json.loads((first / "scenes" / "results.json").read_text())["conditions"]
    assert conditions["image_size"] == [32, 32] and conditions["sampling"]["top_p"] == 0.9
    assert conditions["model"] == tiny_model.name and conditions["batch_size"] == 64
    emoji = ("--suite", "emoji", "--data", repo_root / "examples", "--limit", 1)
    assert run(monkeypatch, tiny_model, *emoji, "--resolution", 32, "--temperature", 0, "-o", "other") == 0
    capsys.readouterr()
    assert run(monkeypatch, "--compare", first / "emoji", "other", "-o", "difference") == 0
    compared = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert compared["suite"] == "emoji" and compared["measures"]["drawing/train"]["n"] == 1
    assert compared["measures"]["naming/train"]["verdict"] == "no difference shown"
    assert (tmp_path / "difference" / "index.html").is_file()


def test_drafts_are_the_models_habit_and_can_be_asked_for(
    tiny_model: Path, repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    habits = model / "generation_config.json"
    values = json.loads(habits.read_text()) if habits.is_file() else {}
    habits.write_text(json.dumps({**values, "draft": True}))
    for folder, arguments, drafts in (
        (model, (), True), (model, ("--at-once",), False), (tiny_model, (), False), (tiny_model, ("--drafts",), True),
    ):  # fmt: skip
        task = ("--suite", repo_root / "examples", "--limit", 1, "--resolution", 32, "-o", tmp_path / "out")
        assert run(monkeypatch, folder, *task, *arguments) == 0
        document = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert document["conditions"]["drafts"] is drafts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "absent"], "--suite absent: no such suite (scenes, emoji, tokenizer) and no such folder"),
        (["--limit", 0], "--limit must be at least 1, got 0"),
        (["--batch-size", 0], "--batch-size must be at least 1, got 0"),
        (["--size", "huge"], "--size is small, default, full, got 'huge'"),
        (["--suite", "scenes", "--suite", "scenes"], "--suite scenes is given twice"),
        (["--data", "."], "--data goes with the suites emoji and tokenizer; a folder alone is --suite DIR"),
        (["--suite", "emoji", "--data", "absent"], "absent: no such folder"),
        (["--resolution", 48], "--resolution 48: this model's scales end at sides of 32, 64 pixels"),
        (["--seed", -1], "--seed must be from 0 to 2**31 - 1, got -1"),
        (["--temperature", "warm"], "--temperature takes a number"),
        (["--compare", "a", "b"], "--compare takes two folders of results, no model and no suite"),
    ],
)
def test_mistakes(
    arguments: list[object], message: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    assert run(monkeypatch, tiny_model, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.splitlines()[-1].startswith("vargpt: ")


def test_the_emoji_are_asked_for_where_they_are_not(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("vargpt.commands.evaluation.find_emoji", lambda: None)
    assert run(monkeypatch, tiny_model, "--suite", "emoji") == 2
    assert "the Noto Emoji folder is not here; name it with --data DIR, or set VARGPT_SHARED" in capsys.readouterr().err


def test_the_emoji_are_found_in_the_shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from vargpt.commands.evaluation import find_emoji

    monkeypatch.setenv("VARGPT_SHARED", str(tmp_path))
    (tmp_path / "data" / "noto-emoji").mkdir(parents=True)
    assert find_emoji() == tmp_path / "data" / "noto-emoji"
