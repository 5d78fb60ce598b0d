"""The verbs on good input: files, names, metadata, previews, streams, progress."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vargpt.cli import main
from vargpt.configuration import DecoderConfig, ImageTokenizerConfig, VargptConfig
from vargpt.inference.pictures import read_metadata
from vargpt.model import VargptForConditionalGeneration


@pytest.fixture
def vargpt(monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path, repo_root: Path):
    """Run the command line in an empty folder with the tiny model; returns the exit status."""
    monkeypatch.setenv("VARGPT_MODEL", str(tiny_model))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, stdin: str = "") -> int:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        monkeypatch.setattr(sys, "argv", ["vargpt", *arguments])
        try:
            main()
        except SystemExit as exit_:
            return int(exit_.code or 0)
        return 0

    return run


@pytest.fixture
def fox(repo_root: Path) -> str:
    return str(repo_root / "examples" / "fox.png")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_draw_writes_pictures_that_say_how_they_were_made(vargpt, capsys: pytest.CaptureFixture[str]) -> None:
    call = (
        "draw",
        "a green heart",
        "-o",
        "heart.png",
        "--seed",
        "7",
        "-n",
        "4",
        "--aspect",
        "4:3",
        "--previews",
        "steps/",
    )
    assert vargpt(*call) == 0
    output = capsys.readouterr()
    names = ["heart.png", "heart-2.png", "heart-3.png", "heart-4.png"]
    assert output.out.split() == names
    for scale in (1, 2, 3):
        assert f"scale {scale}/3" in output.err
    for index, name in enumerate(names):
        metadata = read_metadata(name)
        assert (metadata["prompt"], metadata["seed"], metadata["model"]) == (
            "a green heart",
            str(7 + index),
            "tiny-model",
        )
        assert json.loads(metadata["settings"])["guidance_scale"] == 3.0
        assert pixels(Path(name)).shape == (48, 64, 3)
    previews = sorted(path.name for path in Path("steps").iterdir())
    assert len(previews) == 12
    assert previews[:3] == ["heart-2-scale-1.png", "heart-2-scale-2.png", "heart-2-scale-3.png"]


def test_a_seed_is_a_picture(vargpt) -> None:
    """The second of two pictures from seed 7 is the one from seed 8, and a repeated call writes the same file."""
    assert vargpt("draw", "fox", "-o", "a.png", "--seed", "7", "-n", "2") == 0
    assert vargpt("draw", "fox", "-o", "b.png", "--seed", "8") == 0
    assert np.array_equal(pixels(Path("a-2.png")), pixels(Path("b.png")))
    first = Path("b.png").read_bytes()
    assert vargpt("draw", "fox", "-o", "b.png", "--seed", "8") == 0
    assert Path("b.png").read_bytes() == first


def test_a_draft_is_followed_printed_and_kept(vargpt, capsys: pytest.CaptureFixture[str]) -> None:
    draft = "on a sand background: a heart at 5 4"
    assert vargpt("draw", "a green heart", "-o", "plain.png") == 0
    assert vargpt("draw", "a green heart", "-o", "told.png", "--draft", draft) == 0
    assert f"told.png: {draft}" in capsys.readouterr().err
    assert read_metadata("told.png")["draft"] == draft and "draft" not in read_metadata("plain.png")
    assert not np.array_equal(pixels(Path("plain.png")), pixels(Path("told.png")))
    assert vargpt("draw", "a green heart", "-o", "at-once.png", "--at-once") == 0
    assert np.array_equal(pixels(Path("plain.png")), pixels(Path("at-once.png")))
    assert vargpt("draw", "a green heart", "--draft", draft, "--at-once") != 0
    assert "exclude each other" in capsys.readouterr().err
    assert vargpt("draw", "a green heart", "--draft", " ") != 0
    assert "draft" in capsys.readouterr().err


def test_a_draft_that_says_nothing_is_not_told(
    vargpt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vargpt.inference.pipeline.choose_drafts", lambda *_: [""])
    assert vargpt("draw", "a green heart", "-o", "heart.png") == 0
    assert "heart.png:" not in capsys.readouterr().err and "draft" not in read_metadata("heart.png")


def test_edit_writes_a_picture_and_names_its_source(vargpt, fox: str) -> None:
    assert vargpt("edit", fox, "make it blue", "-o", "out.png", "--seed", "3") == 0
    metadata = read_metadata("out.png")
    assert (metadata["prompt"], metadata["source"], metadata["seed"]) == ("make it blue", "fox.png", "3")


@pytest.mark.parametrize("suffix", [".gif", ".bmp", ".jpg", ".webp"])
def test_other_formats_are_read(vargpt, fox: str, suffix: str) -> None:
    with Image.open(fox) as image:
        image.convert("RGB").save("photo" + suffix)
    assert vargpt("chat", "photo" + suffix, "what is this?", "--max-tokens", "2") == 0


def test_one_question_gets_one_answer(vargpt, fox: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert vargpt("chat", fox, "what is this?", "--max-tokens", "5") == 0
    output = capsys.readouterr()
    assert output.out.endswith("\n")
    assert "tokens in" in output.err


def test_a_conversation_draws_edits_saves_and_survives_mistakes(
    vargpt, fox: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["/edit make it red", f"/image {fox}", "what is this?", "/draw a green heart", "/edit make it blue",
             "/seed x", "/seed 9", "/dance", "/save mine.png", "/image nowhere.png", "/new", "/save late.png",
             "/quit", "/draw never"]  # fmt: skip
    assert vargpt("chat", "--max-tokens", "3", stdin="\n".join(lines)) == 0
    output = capsys.readouterr()
    assert sorted(path.name for path in Path().iterdir()) == ["chat-1.png", "chat-2.png", "mine.png"]
    assert np.array_equal(pixels(Path("mine.png")), pixels(Path("chat-2.png")))
    mistakes = [line for line in output.err.splitlines() if line.startswith("vargpt: ")]
    expected = ["no picture to change", "whole number", "unknown command /dance", "no such file", "no picture yet"]
    assert len(mistakes) == len(expected)
    assert all(part in line for part, line in zip(expected, mistakes, strict=True))


def test_chat_pictures_never_overwrite(vargpt) -> None:
    Path("chat-1.png").write_text("mine")
    assert vargpt("chat", stdin="/draw fox\n") == 0
    assert Path("chat-1.png").read_text() == "mine"
    metadata = read_metadata("chat-2.png")
    assert (metadata["prompt"], metadata["seed"], metadata["model"]) == ("fox", "0", "tiny-model")


def test_convert_goes_both_ways(vargpt, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = VargptConfig.from_pretrained(tiny_model)
    config.image_tokenizer = ImageTokenizerConfig(bits=8, base_channels=32, channel_multipliers=[1, 1, 2], stride=4)
    config.decoder = DecoderConfig(hidden_size=128, num_heads=2, depth=1, num_chunks=1)
    VargptForConditionalGeneration(config).save_pretrained("first")
    assert vargpt("convert", "first", "official", "--to", "official") == 0
    assert vargpt("convert", "official", "second") == 0
    assert capsys.readouterr().out.split() == ["official", "second"]
    first, second = load_file("first/model.safetensors"), load_file("second/model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_module_call_and_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["vargpt", "--help"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code
    text = capsys.readouterr().out
    assert all(verb in text for verb in ("draw", "chat", "edit", "verify", "convert", "train"))
