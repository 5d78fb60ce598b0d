"""`vargpt train`: exit statuses and one-line mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from training_helpers import STAGES, require_same

from vargpt.cli import main
from vargpt.commands.training import parse_duration


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["vargpt", "train", *map(str, arguments)])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_stopped_is_status_3_and_the_same_command_goes_on(
    uninterrupted: Path, recipe_file: Path, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    command = (recipe_file, "--data", data, "--out", tmp_path, "--time-limit")
    assert run(monkeypatch, *command, "0.000001s") == 3
    printed = capsys.readouterr()
    last = printed.err.strip().splitlines()[-1]
    assert last == "vargpt: tokenizer: stopped by the time limit after step 1; run again to go on"
    assert printed.out == ""
    assert run(monkeypatch, *command, "1h") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "model")
    require_same(uninterrupted, tmp_path)


def test_stages_by_name(recipe_file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert run(monkeypatch, recipe_file, "--data", data, "--out", tmp_path, "--stages", "tokenizer, names") == 0
    assert [(tmp_path / stage).is_dir() for stage in STAGES] == [True, True, False]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--stages", "dpo"), "no stage 'dpo'"),
        (("--stages", ","), "--stages is empty"),
        (("--time-limit", "soon"), "expected a duration such as 90s, 45m, 8h or 1:30:00, got 'soon'"),
        (("--set", "stages.0.loop.stepz=3"), "did you mean 'steps'?"),
        (("--set", "stages.0.loop.learning_rate=1.0e+30"), "Lower learning_rate"),
        (("--replicate",), "--replicate is for several processes, and this is one: torchrun"),
        (("--replicate", "--dry-run"), "--replicate is for training; a plan (--dry-run)"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    recipe_file: Path, data: Path, tmp_path: Path, options: tuple[str, str], expected: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    assert run(monkeypatch, recipe_file, "--data", data, "--out", tmp_path / "out", *options) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("vargpt: ") and expected in last


def test_durations():
    texts = ("90", "90s", "45m", "1.5h", "1:30:00", "0:00:05")
    assert [parse_duration(text) for text in texts] == [90, 90, 2700, 5400, 5400, 5]
    for text in ("", "0", "-5", "1:70:00", "5 days"):
        with pytest.raises(ValueError, match="expected a duration"):
            parse_duration(text)
