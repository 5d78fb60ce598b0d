"""All kinds of stages in one recipe, at two resolutions: from scratch to the end, killed anywhere, bitwise the same.

The slow test does it with `recipes/paper-small.yaml` through the command line:
    pytest -m slow tests/training/test_seven_stages.py -s
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_kill import in_a_child
from training_helpers import LOOP, RECIPE

from vargpt.data.pairs import PairFolder
from vargpt.training.loop.journal import read_journal
from vargpt.training.recipes.recipe import load_recipe
from vargpt.training.recipes.schema import PairsStage, Recipe
from vargpt.training.run import train

DRAW = [{"source": "scenes", "task": "draw"}]
DPO_LOOP = {**LOOP, "learning_rate": 1e-3}
STAGES: list[dict[str, Any]] = [
    {"kind": "tokenizer", "data": DRAW, "resolution": 64, "loop": LOOP},
    {"kind": "sft", "name": "stage1", "trainable": "projectors", "data": DRAW, "resolution": 32, "loop": LOOP},
    {"kind": "sft", "name": "stage2", "trainable": "language_and_merger", "loop": LOOP,
     "data": [{"source": "scenes", "task": "question"}, {"source": "scenes", "task": "caption"}]},
    {"kind": "sft", "name": "sft-32", "trainable": "generation", "data": DRAW, "resolution": 32, "loop": LOOP},
    {"kind": "pairs", "name": "pairs-32", "num_prompts": 20, "num_samples": 3, "scorer": "self", "data": DRAW,
     "resolution": 32, "batch_size": 24},
    {"kind": "dpo", "name": "dpo-32", "pairs": "pairs-32", "resolution": 32, "loop": DPO_LOOP},
    {"kind": "sft", "name": "sft-64", "trainable": "generation", "data": DRAW, "resolution": 64,
     "loop": {**LOOP, "ema": 0.9, "optimizer": "muon"},
     "judge": {"scorer": "self", "data": DRAW, "num_prompts": 4}},
    {"kind": "pairs", "name": "pairs-64", "num_prompts": 20, "chosen": "given", "num_samples": 1, "data": DRAW,
     "resolution": 64, "batch_size": 24},
    {"kind": "dpo", "name": "dpo-64", "pairs": "pairs-64", "resolution": 64, "reference": "precomputed",
     "loop": DPO_LOOP},
    {"kind": "sft", "name": "edit", "data": [{"source": "scenes", "task": "edit"}], "resolution": 64, "loop": LOOP},
]  # fmt: skip
OFTEN = [f"stages.{i}.loop.checkpoint_every=0.000001" for i, stage in enumerate(STAGES) if stage["kind"] != "pairs"]


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model on scenes, through every kind of stage."""
    data = {**RECIPE, "sources": {"scenes": {"format": "scenes", "count": 60}}, "stages": STAGES}
    path = tmp_path_factory.mktemp("seven") / "seven.yaml"
    path.write_text(yaml.safe_dump(Recipe.model_validate(data).model_dump(mode="json")))
    return path


@pytest.fixture(scope="module")
def whole(recipe_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Output of an uninterrupted run, and its seconds."""
    output = tmp_path_factory.mktemp("whole")
    started = time.monotonic()
    train(recipe_path, None, output, OFTEN)
    return output, time.monotonic() - started


def files_of(output: Path, recipe: Recipe) -> dict[str, bytes]:
    """What a run ends with: journals and pair shards, byte for byte."""
    names = [f"{stage.name}/journal.jsonl" for stage in recipe.stages if not isinstance(stage, PairsStage)]
    for stage in recipe.stages:
        if isinstance(stage, PairsStage):
            shards = sorted((output / stage.name).glob("pairs-*"))
            assert shards, f"{stage.name} wrote no shard"
            names += [str(path.relative_to(output)) for path in shards]
    return {name: (output / name).read_bytes() for name in names}


def require_same_run(first: Path, second: Path, recipe: Recipe) -> None:
    """Bitwise the same weights, journals and pairs."""
    weights, others = (load_file(output / "model" / "model.safetensors") for output in (first, second))
    assert weights.keys() == others.keys()
    assert not [name for name, value in weights.items() if not torch.equal(value, others[name])]
    files, other_files = files_of(first, recipe), files_of(second, recipe)
    assert files.keys() == other_files.keys()
    assert not [name for name, data in files.items() if data != other_files[name]]


def test_every_stage_ran_at_its_resolution(whole: tuple[Path, float], recipe_path: Path):
    output, _ = whole
    for stage in load_recipe(recipe_path).stages:
        folder = output / stage.name
        if isinstance(stage, PairsStage):
            pairs = PairFolder(folder)
            assert len(pairs) > 10 and pairs[0].schedule.image_size == (stage.resolution, stage.resolution)
        else:
            losses = [entry["loss"] for entry in read_journal(folder / "journal.jsonl") if "loss" in entry]
            assert len(losses) == 3
    judged = [entry for entry in read_journal(output / "sft-64" / "journal.jsonl") if "validation/score" in entry]
    assert [entry["step"] for entry in judged] == [2, 3]
    for name in ("dpo-32", "dpo-64"):
        first = read_journal(output / name / "journal.jsonl")[0]
        assert first["loss"] == pytest.approx(0.6931471805599453, abs=1e-12)
    assert json.loads((output / "model" / "config.json").read_text())["num_scales"] == 2


def test_killed_at_random_moments_it_ends_the_same(whole: tuple[Path, float], recipe_path: Path, tmp_path: Path):
    reference, seconds = whole
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    moments = [chance.uniform(0, 0.6 * seconds) for _ in range(4)]
    print(f"seed {seed}: killed after {[round(moment, 3) for moment in moments]} s")
    for moment in moments:
        in_a_child(lambda: train(recipe_path, None, tmp_path, OFTEN), kill_after=moment)
    train(recipe_path, None, tmp_path, OFTEN)
    require_same_run(reference, tmp_path, load_recipe(recipe_path))


@pytest.mark.slow
def test_the_small_paper_recipe_killed_ten_times(repo_root: Path, tmp_path: Path):
    """Two whole runs of the command, one of them killed ten times: about half an hour on two cores."""
    recipe_file = repo_root / "recipes" / "paper-small.yaml"
    recipe = load_recipe(recipe_file)
    loops = [i for i, stage in enumerate(recipe.stages) if not isinstance(stage, PairsStage)]
    settings = [text for i in loops for text in ("--set", f"stages.{i}.loop.checkpoint_every=5")]
    keep = Path(os.environ.get("VARGPT_TEST_OUTPUT", tmp_path))

    def command(output: str) -> list[str]:
        return [sys.executable, "-m", "vargpt", "train", str(recipe_file), "--out", str(keep / output), *settings]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    subprocess.run(command("whole"), check=True, env=environment)
    seconds = time.monotonic() - started
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    moments = sorted(chance.uniform(0, seconds) for _ in range(10))
    waits = [moments[0], *(later - earlier for earlier, later in zip(moments, moments[1:], strict=False))]
    print(f"uninterrupted: {seconds:.0f} s; seed {seed}: killed after {[round(wait, 1) for wait in waits]} s")
    killed = time.monotonic()
    for wait in waits:
        process = subprocess.Popen(command("killed"), env=environment)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0)
    subprocess.run(command("killed"), check=True, env=environment)
    print(f"killed ten times: {time.monotonic() - killed:.0f} s")
    require_same_run(keep / "whole", keep / "killed", recipe)
    assert seconds < 30 * 60
    shutil.rmtree(keep / "killed")
