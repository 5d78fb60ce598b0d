"""A whole run with adapters: from a finished model, frozen weights small, recomputed activations, DPO at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_helpers import LOOP, write_data, write_recipe

from vargpt.training.recipes.recipe import load_recipe
from vargpt.training.run import train

LORA: dict[str, Any] = {
    "rank": 2, "alpha": 4.0,
    "targets": r"backbone\.language_model\..*_proj|decoder\.blocks\..*\.(q|proj|fc1|fc2)",
}  # fmt: skip
ADAPTED = (".self_attn.", "language_model.layers.0.mlp.", ".proj.weight", "cross_attention.q.weight", ".ffn.")


def recipe_on(folder: Path, model: Path) -> Path:
    """SFT with adapters, pairs against the model's own drawings, DPO with its own adapters: shipped, but small."""
    loop = {**LOOP, "steps": 2, "precision": "bf16", "activation_checkpointing": True}
    stages = [
        {"kind": "sft", "name": "sft", "trainable": "none", "lora": LORA, "loop": loop,
         "data": [{"task": "draw"}, {"task": "caption"}, {"task": "edit"}]},
        {"kind": "pairs", "name": "pairs", "data": [{"task": "draw"}], "num_prompts": 4, "num_samples": 1,
         "chosen": "given", "batch_size": 4},
        {"kind": "dpo", "name": "dpo", "trainable": "none", "lora": LORA, "pairs": "pairs", "reference": "adapters",
         "loop": {**loop, "batch_size": 2}},
    ]  # fmt: skip
    recipe = {
        "name": "adapters", "validation_fraction": 0.2, "schedule": {"num_scales": 2}, "init": {"model": str(model)},
        "frozen_dtype": "bfloat16", "export_dtype": "bfloat16", "stages": stages,
    }  # fmt: skip
    path = folder / "adapters.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model trained from scratch, and what adapters made of it."""
    folder = tmp_path_factory.mktemp("adapters")
    data = write_data(folder / "data")
    first = train(write_recipe(folder / "tiny.yaml"), data, folder / "first", stages=["tokenizer"])
    return first, train(recipe_on(folder, first), data, folder / "second")


def test_only_adapted_weights_change_and_names_are_plain(finished: tuple[Path, Path]):
    before, after = (load_file(folder / "model.safetensors") for folder in finished)
    assert before.keys() == after.keys()
    small = {name: value.to(torch.bfloat16) for name, value in before.items()}
    changed = {name for name, value in after.items() if not torch.equal(value, small[name])}
    assert changed and all(name.endswith(".weight") and any(part in name for part in ADAPTED) for name in changed)
    assert sum("language_model" in name for name in changed) == 7 and any("decoder" in name for name in changed)


def test_preferences_start_at_ln_2_against_switched_off_adapters(finished: tuple[Path, Path]):
    lines = (finished[1].parent / "dpo" / "journal.jsonl").read_text().splitlines()
    (
        first,
        *_,
    ) = (json.loads(line) for line in lines)
    assert first["dpo_loss"] == pytest.approx(0.6931471805599453, abs=1e-12) and first["grad_norm"] > 0


def test_the_result_says_how_it_was_made(finished: tuple[Path, Path]):
    recipe = load_recipe(finished[1] / "recipe.yaml")
    assert recipe.init.model == str(finished[0]) and recipe.frozen_dtype == "bfloat16"
