"""Prompts in the three benchmarks' own forms, and a way to run `vargpt bench` in this process."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vargpt.commands.benchmarks import BenchOptions, bench

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "fox", "count": 1}], "prompt": "a photo of a fox"},
    {"tag": "counting", "include": [{"class": "owl", "count": 2}], "exclude": [{"class": "owl", "count": 3}],
     "prompt": "a photo of two owls"},
    {"tag": "colors", "include": [{"class": "heart", "count": 1, "color": "green"}],
     "prompt": "a photo of a green heart"},
]  # fmt: skip
GENEVAL2 = [
    {"prompt": "three red foxes", "atom_count": 3, "vqa_list": [["How many foxes?", "three"]], "skills": ["count"]},
    {"prompt": "an owl", "atom_count": 1, "vqa_list": [["Is there an owl?", "Yes"]], "skills": ["object"]},
    {"prompt": "three red foxes", "atom_count": 3, "vqa_list": [["Are they red?", "Yes"]], "skills": ["attribute"]},
]  # fmt: skip
DPG = {"1": "A red fox on the snow.", "COCOval1": "Two owls."}


def write_lines(path: Path, records: list[Any]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def geneval_file(folder: Path) -> Path:
    """The three prompts of GenEval."""
    return write_lines(folder / "evaluation_metadata.jsonl", GENEVAL)


def dpg_folder(folder: Path) -> Path:
    """The two prompts of DPG-Bench."""
    (folder / "prompts").mkdir()
    for name, text in DPG.items():
        (folder / "prompts" / f"{name}.txt").write_text(text)
    return folder / "prompts"


def run_bench(model: Path, benchmark: str, prompts: Path, out: Path, **options: Any) -> int:
    """Run the verb on the CPU; its exit status."""
    return bench(BenchOptions(benchmark, prompts, out, model=str(model), device="cpu", **options))


def tree(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of all PNG files below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.png"))
    }


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
