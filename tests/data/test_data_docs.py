"""The examples of docs/data.md are read by what they are examples of."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vargpt.data.sources.open import open_source
from vargpt.training.recipes.schema import SourceSection

EXAMPLES = {"conversations": "**conversations.**", "official": "**official.**", "llava": "**llava.**",
            "official-preferences": "**official-preferences.**"}  # fmt: skip


def source_settings(kind: str, path: str) -> Any:
    return SourceSection.model_validate({"format": kind, "path": path, "on_error": "skip"})


def example(repo_root: Path, heading: str) -> str:
    section = (repo_root / "docs" / "data.md").read_text().split(heading, 1)[1]
    match = re.search(r"```json\n(.*?)```", section, re.DOTALL)
    assert match is not None
    return match[1]


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_examples_are_read(tmp_path: Path, repo_root: Path, kind: str):
    text = example(repo_root, EXAMPLES[kind])
    for name in re.findall(r'"([\w/-]+\.(?:png|jpg))"', text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "data.json").write_text(text)
    source = open_source("docs", source_settings(kind, "data.json"), tmp_path)
    assert source.sample("chat", 0, random.Random(0), 0.0).key.startswith("data.json")
    assert source.broken.summary().records == 0


def test_the_folder_example_is_read(tmp_path: Path, repo_root: Path):
    text = (repo_root / "docs" / "data.md").read_text()
    caption, edit = re.findall(r'```json\n(\{"(?:file_name|source)".*?)```', text, re.DOTALL)
    target = {"file_name": json.loads(edit)["target"], "text": "a blue fox"}
    (tmp_path / "metadata.jsonl").write_text(caption + json.dumps(target))
    (tmp_path / "edits.jsonl").write_text(edit)
    for name in ("fox.png", "blue-fox.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    source = open_source("docs", source_settings("folder", "."), tmp_path, 0.0)
    assert (source.count("draw"), source.count("edit")) == (2, 1)
