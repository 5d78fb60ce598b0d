"""The journal: what is kept on a resume, what a kill may cut, and the curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vargpt.training.journal import Journal, format_duration, plot_curves, read_journal


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    return path


def test_entries_beyond_the_resumed_step_are_dropped(tmp_path: Path):
    path = write(tmp_path / "journal.jsonl", *(json.dumps({"step": step}) + "\n" for step in (3, 4, 5)))
    Journal(tmp_path, "stage", 10, resumed_step=4)
    assert [entry["step"] for entry in read_journal(path)] == [3, 4]
    Journal(tmp_path, "stage", 10, resumed_step=0)
    assert read_journal(path) == []


def test_a_last_line_cut_by_a_kill_is_dropped_but_not_one_before(tmp_path: Path):
    path = write(tmp_path / "journal.jsonl", '{"step": 1}\n', '{"step": 2, "lo')
    assert read_journal(path) == [{"step": 1}]
    write(path, '{"step": 1, "l\n', '{"step": 2}\n')
    with pytest.raises(RuntimeError, match="line 1: not JSON"):
        read_journal(path)
    assert read_journal(tmp_path / "absent.jsonl") == []


def test_progress_says_stage_step_metrics_and_eta(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Journal(tmp_path, "stage", 10, resumed_step=4).record(5, {"loss": 1.25}, 8)
    line = capsys.readouterr().err
    assert line.startswith("stage 5/10 (50%) loss 1.25 | ") and "samples/s, ETA 0:00:0" in line
    assert read_journal(tmp_path / "journal.jsonl") == [{"step": 5, "loss": 1.25}]


def test_durations():
    assert [format_duration(s) for s in (-1, 0, 59.9, 3600, 36061)] == [
        "0:00:00", "0:00:00", "0:00:59", "1:00:00", "10:01:01",
    ]  # fmt: skip


def test_curves_are_drawn(tmp_path: Path):
    assert plot_curves(tmp_path) is None
    lines = [json.dumps({"step": step, "loss": 1 / step, "psnr": step}) + "\n" for step in (1, 2, 3)]
    write(tmp_path / "journal.jsonl", *lines)
    pytest.importorskip("matplotlib")
    path = plot_curves(tmp_path)
    assert path is not None
    with Image.open(path) as picture:
        assert picture.width > 300
    assert sorted(item.name for item in tmp_path.iterdir()) == ["curves.png", "journal.jsonl"]
