"""Every command and every line of Python in the README works, with the tiny model in place of the large ones."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import typer.main

from vargpt.cli import app, main
from vargpt.commands.common import BUNDLED
from vargpt.training.recipes.recipe import load_recipe

REPO = Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.S)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if line.strip()
]
FOLDER = f"models/{BUNDLED}"
PARSED_ONLY = ("train", "verify", "convert", "blend", "eval")
"""Verbs that take minutes or a published checkpoint; they have tests of their own."""


def test_the_readme_has_commands() -> None:
    programs = {Path(command[0]).name for command in COMMANDS}
    assert programs == {"make", "vargpt"}
    verbs = {command[1] for command in COMMANDS if Path(command[0]).name == "vargpt"}
    assert verbs >= {"draw", "chat", "edit", "convert", "verify", "train"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "make"], ids=" ".join)
def test_make_targets_exist(command: list[str]) -> None:
    assert subprocess.run(["make", "-n", *command[1:]], cwd=REPO, capture_output=True).returncode == 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if Path(c[0]).name == "vargpt"], ids=" ".join)
def test_vargpt_commands(command: list[str], tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [str(tiny_model) if argument == FOLDER else argument for argument in command[1:]]
    if arguments[0] in PARSED_ONLY:
        group = typer.main.get_command(app)
        verb = group.commands[arguments[0]]  # type: ignore[attr-defined]
        verb.make_context(arguments[0], arguments[1:])
        if arguments[0] == "train":
            load_recipe(REPO / arguments[1])
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VARGPT_MODEL", str(tiny_model))
    shutil.copytree(REPO / "examples", tmp_path / "examples")
    if "--model" in arguments:
        arguments[arguments.index("--model") + 1] = str(tiny_model)
    monkeypatch.setattr(sys, "argv", ["vargpt", *arguments])
    main_until_exit()


def main_until_exit() -> None:
    """Run the command line; any status but 0 fails the test."""
    with pytest.raises(SystemExit) as exit_:
        main()
    assert not exit_.value.code


@pytest.mark.parametrize("source", [block for language, block in BLOCKS if language == "python"])
def test_python(source: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(source.replace(FOLDER, str(tiny_model)), "README.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (REPO / target).exists()


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:src|docs|recipes|examples|benchmarks)/[\w./-]*)`", README)))
)
def test_paths_named_in_the_text_exist(path: str) -> None:
    assert (REPO / path).exists()
