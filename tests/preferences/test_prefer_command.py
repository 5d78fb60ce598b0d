"""`vargpt prefer` on good and on bad input: files, stdout, exit status, one line per mistake."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vargpt.cli import main
from vargpt.data.pairs import PairFolder
from vargpt.preferences.sample import picture_seed

Vargpt = Callable[..., int]


@pytest.fixture
def vargpt(monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path, repo_root: Path) -> Vargpt:
    """Run the command line in a folder with a small data set, a prompts file and the tiny model."""
    monkeypatch.setenv("VARGPT_MODEL", str(tiny_model))
    monkeypatch.chdir(tmp_path)
    names = ("fox", "red-heart", "snail", "red-apple")
    data = tmp_path / "data"
    data.mkdir()
    for name in names:
        shutil.copy(repo_root / "examples" / f"{name}.png", data)
    lines = [{"file_name": f"{name}.png", "text": name.replace("-", " ")} for name in names]
    (data / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    edits = [{"source": "fox.png", "target": "snail.png", "instruction": "make it a snail"}]
    edits += [{"source": "red-heart.png", "target": "red-apple.png", "instruction": "make it an apple"}]
    (data / "edits.jsonl").write_text("\n".join(json.dumps(edit) for edit in edits))
    (tmp_path / "prompts.txt").write_text("a fox\n\n  a red heart \n")

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["vargpt", *arguments])
        try:
            main()
        except SystemExit as exit_:
            return int(exit_.code or 0)
        return 0

    return run


def test_a_data_folder_gives_pairs(vargpt: Vargpt, capsys: pytest.CaptureFixture[str]) -> None:
    call = ("prefer", "--data", "data", "--scorer", "targets", "--num-samples", "3", "--out", "pairs", "--seed", "7")
    assert vargpt(*call, "--temperature", "1", "--guidance", "2", "--top-p", "1") == 0
    output = capsys.readouterr()
    assert output.out == "pairs\n"
    assert "4 pairs of 4 prompts: 0 ties, 0 below the margin, 0 broken" in output.err
    folder = PairFolder("pairs")
    assert [pair.key for pair in folder] == ["fox.png", "red-heart.png", "snail.png", "red-apple.png"]
    assert folder.settings["sampling"] == {"guidance_scale": 2.0, "temperature": 1.0, "top_p": 1.0}
    assert folder.settings["scorer"] == "targets"
    pair = folder[1]
    assert pair.prompt.messages[0].content[0].text == "draw red heart"  # type: ignore[union-attr]
    assert pair.chosen.seed in [picture_seed(7, 1, sample) for sample in range(3)]
    assert sorted(path.name for path in Path("pairs").iterdir()) == [
        "index.html", "index.json", "pairs-00000.zip", "pairs.json", "report.json",
    ]  # fmt: skip
    assert "FutureWarning" not in output.out


def test_edits_and_given_pictures(vargpt: Vargpt) -> None:
    assert vargpt("prefer", "--data", "data", "--task", "edit", "--given", "--out", "pairs") == 0
    pairs = list(PairFolder("pairs"))
    assert [pair.key for pair in pairs] == [
        "fox.png -> snail.png: make it a snail",
        "red-heart.png -> red-apple.png: make it an apple",
    ]
    assert pairs[0].prompt.messages[0].content[0].image == Path("data/fox.png").read_bytes()  # type: ignore[union-attr]
    assert pairs[0].chosen.seed is None
    assert PairFolder("pairs").settings["num_samples"] == 1


def test_a_prompts_file_with_pictures(vargpt: Vargpt) -> None:
    lines = [
        {"prompt": "a fox", "key": "first", "target": "data/fox.png"},
        {"prompt": "make it blue", "image": "data/snail.png", "caption": "blue snail"},
    ]
    Path("prompts.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    scorer = "self?yes=is this {caption}?"
    assert (
        vargpt("prefer", "--prompts", "prompts.jsonl", "--scorer", scorer, "--out", "pairs", "--num-samples", "2") == 0
    )
    first, second = PairFolder("pairs")
    assert (first.key, second.key) == ("first", "prompts.jsonl:2")
    assert [part.type for part in second.prompt.messages[0].content] == ["image", "text"]
    report = json.loads(Path("pairs/report.json").read_text())
    assert report["scores"]["sampled"]["max"] < 0


def test_the_same_command_goes_on_and_another_is_refused(vargpt: Vargpt, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["prefer", "--prompts", "prompts.txt", "--scorer", "self", "--num-samples", "2", "--shard-size", "1"]
    assert vargpt(*call, "--out", "whole", "--temperature", "1") == 0
    assert vargpt(*call, "--out", "pairs", "--temperature", "1", "--time-limit", "0.000001s") == 3
    assert "stopped by the time limit after 0 of 2 prompts; the same command goes on" in capsys.readouterr().err
    assert vargpt(*call, "--out", "pairs", "--temperature", "1", "--batch-size", "3") == 0
    names = ["pairs-00000.zip", "pairs-00001.zip", "report.json", "index.json", "index.html"]
    assert all((Path("pairs") / name).read_bytes() == (Path("whole") / name).read_bytes() for name in names)
    before = {name: (Path("pairs") / name).read_bytes() for name in names}
    capsys.readouterr()
    assert vargpt(*call, "--out", "pairs", "--temperature", "0.9") == 2
    error = capsys.readouterr().err
    assert error.startswith("vargpt: pairs was begun with another sampling")
    assert error.count("\n") == 1
    Path("prompts.txt").write_text("a fox\na blue heart\n")
    assert vargpt(*call, "--out", "pairs", "--temperature", "1") == 2
    assert "another prompts_sha256" in capsys.readouterr().err
    assert {name: (Path("pairs") / name).read_bytes() for name in names} == before
    assert [pair.key for pair in PairFolder("pairs")] == ["prompts.txt:1", "prompts.txt:3"]


def test_a_run_without_pairs_says_so(vargpt: Vargpt, capsys: pytest.CaptureFixture[str]) -> None:
    call = ("prefer", "--prompts", "prompts.txt", "--scorer", "self", "--num-samples", "2", "--margin", "1000")
    assert vargpt(*call, "--out", "pairs", "--limit", "1") == 0
    assert "0 pairs of 1 prompts: 0 ties, 1 below the margin" in capsys.readouterr().err


BAD = {
    "no prompts": (["--scorer", "self"], "either as --prompts FILE or as --data DIR"),
    "both": (["--prompts", "prompts.txt", "--data", "data", "--scorer", "self"], "either as --prompts"),
    "missing file": (["--prompts", "none.txt", "--scorer", "self"], "none.txt: no such file of prompts"),
    "missing folder": (["--data", "none", "--scorer", "self"], "none: no such folder"),
    "no scorer": (["--prompts", "prompts.txt"], "need a scorer"),
    "unknown scorer": (["--prompts", "prompts.txt", "--scorer", "beauty"], "scorer 'beauty': expected scenes"),
    "one sample": (["--prompts", "prompts.txt", "--scorer", "self", "--num-samples", "1"], "at least 2"),
    "task": (["--data", "data", "--scorer", "self", "--task", "sing"], "--task is draw or edit"),
    "task of a file": (["--prompts", "prompts.txt", "--scorer", "self", "--task", "edit"], "goes with --data"),
    "limit": (["--prompts", "prompts.txt", "--scorer", "self", "--limit", "0"], "--limit must be at least 1"),
    "seed": (["--prompts", "prompts.txt", "--scorer", "self", "--seed", "-1"], "--seed must be from 0"),
    "guidance": (["--prompts", "prompts.txt", "--scorer", "self", "--guidance", "x"], "--guidance takes a number"),
    "on error": (["--prompts", "prompts.txt", "--scorer", "self", "--on-error", "cry"], "stop or skip"),
    "output": (["--prompts", "prompts.txt", "--scorer", "self", "--out", "prompts.txt"], "is a file"),
    "no given": (["--prompts", "prompts.txt", "--given"], "has no picture of its own"),
    "no target": (["--prompts", "prompts.txt", "--scorer", "targets"], "prompts.txt:1 has no target picture"),
    "empty": (["--prompts", "empty.txt", "--scorer", "self"], "empty.txt: holds no prompt"),
    "unknown key": (["--prompts", "bad.jsonl", "--scorer", "self"], "bad.jsonl:1: promt"),
    "twice": (["--prompts", "twice.jsonl", "--scorer", "self"], "the key 'a' is used twice"),
    "no picture": (["--prompts", "gone.jsonl", "--scorer", "self"], "no such picture gone.png"),
    "no service": (
        ["--prompts", "prompts.txt", "--scorer", "http://127.0.0.1:9/#retries=0", "--num-samples", "2"],
        "scorer http://127.0.0.1:9/: cannot be reached",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line(name: str, vargpt: Vargpt, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.txt").write_text("\n \n")
    Path("bad.jsonl").write_text('{"prompt": "fox", "promt": "fox"}\n')
    Path("twice.jsonl").write_text('{"prompt": "fox", "key": "a"}\n{"prompt": "cat", "key": "a"}\n')
    Path("gone.jsonl").write_text('{"prompt": "make it blue", "image": "gone.png"}\n')
    arguments, message = BAD[name]
    out = [] if "--out" in arguments else ["--out", "pairs"]
    assert vargpt("prefer", *arguments, *out) == 2
    output = capsys.readouterr()
    assert output.out == ""
    lines = [line for line in output.err.splitlines() if line.startswith("vargpt: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in output.err
    assert not list(Path().glob("pairs/*.zip"))
