"""The guide of the outside benchmarks: its commands run, and it says of scorers and counts what the code says."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from bench_helpers import GENEVAL, GENEVAL2, dpg_folder, write_lines

from vargpt.cli import main
from vargpt.evaluation.benchmarks.layouts import BENCHMARKS
from vargpt.evaluation.benchmarks.wording import NAMES

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "benchmarks-outside.md").read_text()
INDENTED = [line.strip() for line in GUIDE.splitlines() if line.startswith("    ")]
COMMANDS = [shlex.split(line) for line in INDENTED if line.startswith("vargpt ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the benchmarks' repositories and a user's own files, as the commands name them."""
    folder = tmp_path_factory.mktemp("guide")
    for name in ("geneval/prompts", "GenEval2", "ELLA/dpg_bench"):
        (folder / name).mkdir(parents=True)
    write_lines(folder / "geneval" / "prompts" / "evaluation_metadata.jsonl", GENEVAL)
    write_lines(folder / "GenEval2" / "geneval2_data.jsonl", GENEVAL2)
    dpg_folder(folder / "ELLA" / "dpg_bench")
    write_lines(folder / "rewritten.jsonl", [{"prompt": r["prompt"], "rewritten": f"{r['prompt']}!"} for r in GENEVAL])
    (folder / "templates.json").write_text('["Draw {prompt}.", {"user": "{prompt}", "assistant": "Here is {prompt}:"}]')
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands(command: list[str], place: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    arguments = [str(tiny_model) if word in ("MODEL", "VARGPT-family/VARGPT-v1.1") else word for word in command]
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    run = json.loads((place / arguments[arguments.index("--out") + 1] / "run.json").read_text())
    assert (run["finished"] is None) == ("1/2" in command)


def test_every_option_of_the_verb_is_explained():
    from typer.main import get_command

    from vargpt.cli import app

    options = {name for parameter in get_command(app).commands["bench"].params for name in parameter.opts}  # type: ignore[attr-defined]
    explained = set(re.findall(r"--[a-z-]+", GUIDE.partition("## Scoring")[0]))
    assert {name for name in options if name.startswith("--")} - explained == {"--dtype", "--device"}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_scorers_commands_are_those_of_the_readme(name: str):
    lines = [line for line in BENCHMARKS[name].scoring(BENCHMARKS[name].samples, 512).splitlines() if line[0] != "#"]
    start = INDENTED.index(lines[0])
    assert INDENTED[start : start + len(lines)] == lines


def test_counts_and_templates():
    for benchmark in BENCHMARKS.values():
        assert f"| {benchmark.title} | {benchmark.count:,} | {benchmark.samples} |" in GUIDE
    assert all(f"| `{name}`" in GUIDE for name in NAMES)


def test_lmms_eval_arguments_are_those_of_the_class(repo_root: Path):
    source = (repo_root / "src/vargpt/evaluation/lmms/models/vargpt.py").read_text()
    for line in (line for line in INDENTED if "--model_args" in line):
        words = shlex.split(line)
        assert words[words.index("--model") + 1] == "vargpt"
        for argument in words[words.index("--model_args") + 1].split(","):
            assert re.search(rf"^        {argument.partition('=')[0]}: ", source, re.MULTILINE)
    plugin = re.findall(r"LMMS_EVAL_PLUGINS=([\w.]+)", GUIDE)[0]
    table = importlib.import_module(f"{plugin}.models").AVAILABLE_MODELS
    assert all(importlib.util.find_spec(f"{plugin}.models.{name}") for name in table)
    assert table == {"vargpt": "Vargpt"} and "\nclass Vargpt(" in source
