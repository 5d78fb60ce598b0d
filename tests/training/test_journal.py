"""The journal: what is kept on a resume, what a kill may cut, and the curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vargpt.training.loop.journal import Journal, group_curves, plot_curves, read_journal


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))
    return path


def test_entries_beyond_the_resumed_step_are_dropped(tmp_path: Path):
    path = write(tmp_path / "journal.jsonl", *(json.dumps({"step": step}) + "\n" for step in (3, 4, 5)))
    Journal(tmp_path, resumed_step=4)
    assert [entry["step"] for entry in read_journal(path)] == [3, 4]
    Journal(tmp_path, resumed_step=0)
    assert read_journal(path) == []


def test_a_last_line_cut_by_a_kill_is_dropped_but_not_one_before(tmp_path: Path):
    path = write(tmp_path / "journal.jsonl", '{"step": 1}\n', '{"step": 2, "lo')
    assert read_journal(path) == [{"step": 1}]
    write(path, '{"step": 1, "l\n', '{"step": 2}\n')
    with pytest.raises(RuntimeError, match="line 1: not JSON"):
        read_journal(path)
    assert read_journal(tmp_path / "absent.jsonl") == []


def test_entries_are_appended(tmp_path: Path):
    journal = Journal(tmp_path, resumed_step=0)
    journal.record(5, {"loss": 1.25})
    journal.flush()
    Journal(tmp_path, resumed_step=5).record(6, {"loss": 1.0})
    assert (tmp_path / "journal.jsonl").read_text() == '{"step": 5, "loss": 1.25}\n{"step": 6, "loss": 1.0}\n'


def test_scales_share_a_plot_in_their_order():
    names = ["loss", "bit_loss/scale10", "bit_loss/scale2", "validation/bit_loss/scale0", "validation/loss"]
    assert group_curves(names) == [
        ("bit_loss by scale", [("2", "bit_loss/scale2"), ("10", "bit_loss/scale10")]),
        ("loss", [("", "loss")]),
        ("validation/bit_loss by scale", [("0", "validation/bit_loss/scale0")]),
        ("validation/loss", [("", "validation/loss")]),
    ]


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
