"""Bad input from the command line: one clear line on stderr, exit status 2, no traceback, nothing written."""

from __future__ import annotations

import struct
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from vargpt.cli import main


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command line in this process; returns its exit status."""
    monkeypatch.setattr(sys, "argv", ["vargpt", *arguments])
    try:
        main()
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int, depth: int, colour: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def bad_picture(kind: str, folder: Path) -> Path:
    """Write one kind of bad picture and return its path."""
    path = folder / f"{kind}.png"
    if kind == "text":
        path.write_text("this is no picture")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "truncated":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:800])
    elif kind == "huge":
        path.write_bytes(png_header(60_000, 60_000, 8, 2) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    elif kind == "animated":
        frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
        frames[0].save(path, save_all=True, append_images=frames[1:])
    elif kind == "cmyk":
        path = path.with_suffix(".jpg")
        Image.new("CMYK", (16, 16)).save(path)
    elif kind == "16-bit grey":
        Image.new("I;16", (16, 16), 40_000).save(path)
    elif kind == "16-bit colour":
        rows = b"".join(b"\0" + b"\x12\x34" * 3 * 16 for _ in range(16))
        idat = chunk(b"IDAT", zlib.compress(rows))
        path.write_bytes(png_header(16, 16, 16, 2) + idat + chunk(b"IEND", b""))
    elif kind == "1x1":
        Image.new("RGB", (1, 1)).save(path)
    else:
        assert kind == "missing"
    return path


PICTURES = {
    "missing": "no such file",
    "text": "not an image",
    "empty": "empty",
    "folder": "is a folder",
    "truncated": "truncated",
    "huge": "absurdly large",
    "animated": "animated",
    "cmyk": "CMYK",
    "16-bit grey": "16 bits",
    "16-bit colour": "16 bits",
    "1x1": "too small",
}


@pytest.mark.parametrize("verb", ["chat", "edit"])
@pytest.mark.parametrize("kind", PICTURES)
def test_bad_pictures(
    kind: str,
    verb: str,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = bad_picture(kind, tmp_path)
    before = sorted(tmp_path.iterdir())
    arguments = [verb, str(path), "make it blue", "--model", str(tiny_model)]
    assert run(arguments, monkeypatch) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith(f"vargpt: {path}")
    assert PICTURES[kind] in output.err
    assert sorted(tmp_path.iterdir()) == before


REQUESTS = {
    "empty prompt": (["draw", ""], "prompt is empty"),
    "blank prompt": (["draw", " \t\n"], "prompt is empty"),
    "empty instruction": (["edit", "{fox}", " "], "instruction is empty"),
    "empty question": (["chat", "{fox}", ""], "question is empty"),
    "size the model lacks": (["draw", "fox", "--size", "512x512"], "no size 512x512"),
    "size that is none": (["draw", "fox", "--size", "big"], "WIDTHxHEIGHT"),
    "aspect the model lacks": (["draw", "fox", "--aspect", "9:1"], "no aspect 9:1"),
    "aspect that is none": (["draw", "fox", "--aspect", "wide"], "width:height"),
    "size and aspect": (["draw", "fox", "--aspect", "1:1", "--size", "64x64"], "not both"),
    "no pictures": (["draw", "fox", "-n", "0"], "from 1 on"),
    "negative temperature": (["draw", "fox", "--temperature", "-1"], "temperature"),
    "guidance that is none": (["draw", "fox", "--guidance", "strong"], "--guidance takes a number"),
    "guidance for other scales": (["draw", "fox", "--guidance", "3,2"], "3 scales"),
    "top-p": (["draw", "fox", "--top-p", "1.5"], "top_p"),
    "output folder": (["draw", "fox", "-o", "{here}"], "is a folder"),
    "output format": (["draw", "fox", "-o", "fox.jpg"], "PNG"),
    "previews file": (["draw", "fox", "--previews", "{fox}"], "is a file"),
    "device": (["draw", "fox", "--device", "abacus"], "abacus"),
    "dtype": (["draw", "fox", "--dtype", "float1"], "float1"),
    "preset": (["draw", "fox", "--preset", "mine"], "unknown behaviour preset"),
    "negative on official": (["draw", "fox", "--preset", "official", "--negative", "cat"], "negative prompt"),
    "negative seed": (["draw", "fox", "--seed", "-1"], "seed"),
    "recipe": (["train", "nothing.yaml", "--data", "{here}"], "no such recipe"),
    "goldens": (["verify", "{here}"], "{here}"),
    "convert nothing": (["convert", "{here}", "{here}/out"], "{here}"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_bad_requests(
    name: str,
    tmp_path: Path,
    tiny_model: Path,
    repo_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VARGPT_MODEL", str(tiny_model))
    places = {"fox": str(repo_root / "examples" / "fox.png"), "here": str(tmp_path)}
    arguments, message = REQUESTS[name]
    assert run([argument.format(**places) for argument in arguments], monkeypatch) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert message.format(**places) in output.err
    assert list(tmp_path.iterdir()) == []


def broken_model(kind: str, tiny_model: Path, folder: Path) -> str:
    """Make one kind of folder that is no model and return its name."""
    path = folder / "model"
    if kind == "missing":
        return str(path)
    if kind == "file":
        path.write_text("{}")
        return str(path)
    path.mkdir()
    if kind == "empty":
        return str(path)
    for name in tiny_model.iterdir():
        (path / name.name).write_bytes(name.read_bytes())
    if kind == "another model":
        (path / "config.json").write_text('{"model_type": "bert"}')
    elif kind == "broken config":
        (path / "config.json").write_text("{")
    elif kind == "no weights":
        (path / "model.safetensors").unlink()
    elif kind == "truncated weights":
        (path / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes()[:-100])
    else:
        assert kind == "no tokenizer"
        (path / "tokenizer.json").unlink()
    return str(path)


@pytest.mark.parametrize(
    "kind",
    ["missing", "file", "empty", "another model", "broken config", "no weights", "truncated weights", "no tokenizer"],
)
def test_a_folder_that_is_no_model(
    kind: str,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = broken_model(kind, tiny_model, tmp_path)
    target = tmp_path / "fox.png"
    assert run(["draw", "fox", "-o", str(target), "--model", folder], monkeypatch) == 2
    output = capsys.readouterr()
    assert output.err.strip().splitlines()[-1].startswith("vargpt: ")
    assert folder in output.err
    assert "Traceback" not in output.err
    assert not target.exists()


def test_without_a_bundled_model_the_message_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("VARGPT_MODEL", raising=False)
    monkeypatch.setattr("vargpt.commands.common.bundled_model", lambda: None)
    assert run(["draw", "fox"], monkeypatch) == 2
    assert "vargpt train recipes/emoji-small.yaml" in capsys.readouterr().err


def test_a_mistake_of_usage_is_status_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["draw"], monkeypatch) == 2
    assert "Missing argument" in capsys.readouterr().err
