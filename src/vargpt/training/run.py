"""Run a recipe from start to end: `vargpt train RECIPE --data DIR --out DIR`.

Invariant: the same command goes on where a killed run stopped; a stage that is finished is not repeated, and an output
folder never mixes two recipes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from vargpt.data.folder import ImageFolder, read_folder
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.build import build_model, build_processor, set_trainable
from vargpt.training.conversations_stage import ConversationsTask, FolderCache
from vargpt.training.recipe import Recipe, SftStage, Stage, TokenizerStage, load_recipe, save_recipe
from vargpt.training.tokenizer_stage import TokenizerTask
from vargpt.training.trainer import Trainer


def train(
    recipe_path: str | Path,
    data_dir: str | Path,
    output_dir: str | Path,
    overrides: Sequence[str] = (),
    stages: Sequence[str] = (),
    time_limit: float | None = None,
) -> Path:
    """Train the stages of a recipe in order and save the model in `output_dir/model`.

    Args:
        data_dir: folder with images and `metadata.jsonl` (see `vargpt.data.folder`).
        output_dir: resolved recipe, checkpoints, journals, curves and the final model; run again to go on.
        overrides: `stages.0.loop.steps=100` and the like.
        stages: train only these by name (the others are taken as far as they got); all when empty.
        time_limit: seconds for this call; training is saved and stopped then (`TimeLimitReached`).

    Returns:
        The folder of the saved model.

    Raises:
        ValueError: for a bad recipe, bad data, or an output folder of another recipe.
    """
    started = time.monotonic()
    recipe = load_recipe(recipe_path, list(overrides))
    unknown = set(stages) - {stage.name for stage in recipe.stages}
    if unknown:
        raise ValueError(f"no stage {sorted(unknown)[0]!r} in {recipe_path}; it has {[s.name for s in recipe.stages]}")
    folder = read_folder(data_dir, recipe.validation_fraction)
    output = Path(output_dir)
    _claim_output(recipe, output)
    processor = build_processor(recipe, folder)
    model = build_model(recipe, processor)
    schedule = ScaleSchedule(recipe.schedule.template, recipe.schedule.num_scales, recipe.model.image_tokenizer.stride)
    print(_summary(model, folder, schedule), file=sys.stderr)
    for stage in recipe.stages:
        trainer = _trainer(stage, recipe, model, processor, folder, schedule, output)
        if stages and stage.name not in stages:
            trainer.restore()
            continue
        left = None if time_limit is None else time_limit - (time.monotonic() - started)
        trainer.run(left)
    destination = output / "model"
    model.to(getattr(torch, recipe.export_dtype)).save_pretrained(destination)
    processor.save_pretrained(destination)
    save_recipe(recipe, destination / "recipe.yaml")
    return destination


def _claim_output(recipe: Recipe, output: Path) -> None:
    """Write the resolved recipe; refuse a folder whose finished or begun stages were set up otherwise."""
    path = output / "recipe.yaml"
    new = recipe.model_dump(mode="json")
    if path.exists():
        old = yaml.safe_load(path.read_text())
        for key in ("seed", "validation_fraction", "schedule", "text_tokenizer", "model"):
            _require_same(output, key, old.get(key), new[key])
        known = {stage["name"]: stage for stage in new["stages"]}
        for stage in old["stages"]:
            if stage["name"] in known and (output / stage["name"]).exists():
                _require_same(output, f"stage {stage['name']}", stage, known[stage["name"]])
    output.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, path)


def _require_same(output: Path, what: str, old: Any, new: Any) -> None:
    if old != new:
        raise ValueError(
            f"{output} was begun with another {what}: {old} there, {new} now; choose another output folder, "
            f"or restore the recipe to go on"
        )


def _trainer(
    stage: Stage,
    recipe: Recipe,
    model: VargptForConditionalGeneration,
    processor: VargptProcessor,
    folder: ImageFolder,
    schedule: ScaleSchedule,
    output: Path,
) -> Trainer[Any]:
    settings = stage.loop.settings(recipe.seed)
    directory = output / stage.name
    if isinstance(stage, TokenizerStage):
        model.image_tokenizer.requires_grad_(True)
        model.image_tokenizer.encoder.requires_grad_(stage.trainable == "all")
        tokenizer_task = TokenizerTask(model.image_tokenizer, folder, schedule, stage, recipe.seed)
        return Trainer(stage.name, tokenizer_task, settings, directory)
    assert isinstance(stage, SftStage)
    set_trainable(model, stage.trainable)
    cache = FolderCache(folder, processor, model.image_tokenizer, schedule)
    task = ConversationsTask(model, processor, folder, cache, schedule, stage, recipe.seed)
    return Trainer(stage.name, task, settings, directory)


def _summary(model: VargptForConditionalGeneration, folder: ImageFolder, schedule: ScaleSchedule) -> str:
    parts = {name: sum(p.numel() for p in module.parameters()) / 1e6 for name, module in model.named_children()}
    sizes = ", ".join(f"{name} {millions:.2f}M" for name, millions in parts.items())
    height, width = schedule.image_size
    train, validation = len(folder.split_images("train")), len(folder.split_images("validation"))
    return (
        f"model: {sizes}\n"
        f"data: {train} training and {validation} validation images at {height}x{width}, "
        f"{len(folder.split_edits('train'))} training and {len(folder.split_edits('validation'))} validation edits"
    )
