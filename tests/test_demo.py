"""The demo: one page with every picture inside, escaped, and a contact sheet."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from vargpt.demo.__main__ import EDITS, ROW_PROMPTS, SEEDS_PER_ROW, STEP_PROMPTS, main
from vargpt.demo.page import Caption, Demo, Edit, Row, Steps, Turn, render


def test_the_demo_makes_a_page_that_needs_nothing_else(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    banner = tmp_path / "banner.png"
    assert main(["--model", str(tiny_model), "--output", str(tmp_path / "out"), "--banner", str(banner)]) == 0
    with Image.open(banner) as image:
        assert image.width > image.height > 400
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    pictures = 3 * len(STEP_PROMPTS) + SEEDS_PER_ROW * len(ROW_PROMPTS) + 12 + 2 * len(EDITS) + 2
    assert len(re.findall(r'<img alt="[^"]*" src="data:image/png;base64,', page)) == pictures
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert str(tmp_path) not in page
    with Image.open(tmp_path / "out" / "contact-sheet.png") as sheet:
        assert sheet.width > 400
    assert "index.html" in capsys.readouterr().out


def test_what_a_model_says_is_escaped() -> None:
    picture = Image.new("RGB", (4, 4))
    evil = '<script>alert("x")</script>'
    demo = Demo(
        evil, 1, 1.0, 0.1, [Steps(evil, [picture], [(1, 1)])], [Row(evil, [picture])],
        [Caption(picture, evil, evil, True)], [Edit(picture, evil, picture, False)], [Turn("user", evil, picture)],
        [evil],
    )  # fmt: skip
    assert "<script" not in render(demo)


def test_no_model_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no config.json" in error
    assert not (tmp_path / "out").exists()
