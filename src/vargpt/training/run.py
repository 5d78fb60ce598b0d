"""Run a recipe from start to end: `vargpt train RECIPE --data DIR --out DIR`.

Invariant: the same command goes on where a killed run stopped; a stage that is finished is not repeated, and an output
folder never mixes two recipes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vargpt.data.folder import ImageFolder, read_folder
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.build import build_model, build_processor, set_trainable
from vargpt.training.conversations_stage import ConversationsTask, FolderCache
from vargpt.training.recipe import Recipe, Stage, TokenizerStage, load_recipe, save_recipe
from vargpt.training.tokenizer_stage import TokenizerTask
from vargpt.training.trainer import StopRequest, Task, TimeLimitReached, Trainer


def train(
    recipe_path: str | Path,
    data_dir: str | Path,
    output_dir: str | Path,
    overrides: Sequence[str] = (),
    stages: Sequence[str] = (),
    time_limit: float | None = None,
) -> Path:
    """Train the stages of a recipe in order and save model, processor and recipe in `output_dir/model`.

    Args:
        data_dir: folder with images and `metadata.jsonl` (see `vargpt.data.folder`).
        output_dir: resolved recipe, `run.json` (data, versions), checkpoints, journals, curves and the final model.
        overrides: `stages.0.loop.steps=100` and the like.
        stages: train only these by name (the others are taken as far as they got); all when empty.
        time_limit: seconds for this call, at least one step; training is saved and stopped then.

    Returns:
        The folder of the saved model.

    Raises:
        ValueError: for a bad recipe, bad data, or an output folder of another recipe or other data.
        TimeLimitReached: stopped and saved because of the limit, SIGTERM or Ctrl-C; the same call goes on.
        RuntimeError: if training diverges, or no checkpoint of a stage can be read or written.
    """
    stop = StopRequest(time_limit)
    recipe = load_recipe(recipe_path, list(overrides))
    unknown = set(stages) - {stage.name for stage in recipe.stages}
    if unknown:
        raise ValueError(f"no stage {sorted(unknown)[0]!r} in {recipe_path}; it has {[s.name for s in recipe.stages]}")
    folder = read_folder(data_dir, recipe.validation_fraction)
    schedule = ScaleSchedule(recipe.schedule.template, recipe.schedule.num_scales, recipe.model.image_tokenizer.stride)
    processor = build_processor(recipe, folder)
    model = build_model(recipe, processor)
    tasks = {stage.name: _task(stage, recipe, model, processor, folder, schedule) for stage in recipe.stages}
    output = Path(output_dir)
    _claim_output(recipe, folder, output)
    print(_summary(model, folder, schedule), file=sys.stderr)
    with stop.installed():
        for stage in recipe.stages:
            _freeze(model, stage)
            trainer = Trainer(stage.name, tasks.pop(stage.name), stage.loop.settings(recipe.seed), output / stage.name)
            if stages and stage.name not in stages:
                trainer.restore()
                continue
            if stop.signal is not None:
                raise TimeLimitReached(f"stopped by {stop.signal} before stage {stage.name}; run again to go on")
            trainer.run(stop)
    return _save_result(model, processor, recipe, output / "model")


def _save_result(
    model: VargptForConditionalGeneration, processor: VargptProcessor, recipe: Recipe, destination: Path
) -> Path:
    """Write model, processor and recipe into a new folder and put it in the place of the old one."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".model-", dir=destination.parent))
    try:
        new, old = scratch / "new", scratch / "old"
        model.to(getattr(torch, recipe.export_dtype)).save_pretrained(new)
        processor.save_pretrained(new)
        save_recipe(recipe, new / "recipe.yaml")
        if destination.exists():
            os.replace(destination, old)
        os.replace(new, destination)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return destination


def _claim_output(recipe: Recipe, folder: ImageFolder, output: Path) -> None:
    """Write the resolved recipe and `run.json`; refuse a folder that was begun with other settings or other data."""
    path, facts_path = output / "recipe.yaml", output / "run.json"
    new, facts = recipe.model_dump(mode="json"), run_facts(folder)
    if path.exists():
        old = load_recipe(path).model_dump(mode="json")  # with today's defaults for keys it did not have
        for key in ("seed", "validation_fraction", "schedule", "text_tokenizer", "model"):
            _require_same(output, key, old[key], new[key])
        known = {stage["name"]: stage for stage in new["stages"]}
        for stage in old["stages"]:
            if stage["name"] in known and (output / stage["name"]).exists():
                _require_same(output, f"stage {stage['name']}", stage, known[stage["name"]])
    if facts_path.exists():
        _require_same(output, "data folder", json.loads(facts_path.read_text())["data"], facts["data"])
    output.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, path)
    partial = output / f".run.json.{os.getpid()}"
    partial.write_text(json.dumps(facts, indent=1) + "\n")
    os.replace(partial, facts_path)


def run_facts(folder: ImageFolder) -> dict[str, Any]:
    """What a result depends on beside the recipe: the data's records, versions, threads."""
    records = [record.model_dump() for record in (*folder.images, *folder.edits)]
    digest = hashlib.sha256(json.dumps(records).encode("utf-8", "surrogatepass")).hexdigest()
    return {
        "data": {"images": len(folder.images), "edits": len(folder.edits), "sha256": digest},
        "vargpt": _version("vargpt"), "commit": _commit(), "torch": torch.__version__,
        "transformers": _version("transformers"), "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that this code runs from; None for an installed package."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _require_same(output: Path, what: str, old: Any, new: Any) -> None:
    if old != new:
        raise ValueError(
            f"{output} was begun with another {what}: {old} there, {new} now; choose another output folder, "
            f"or restore the recipe to go on"
        )


def _task(
    stage: Stage,
    recipe: Recipe,
    model: VargptForConditionalGeneration,
    processor: VargptProcessor,
    folder: ImageFolder,
    schedule: ScaleSchedule,
) -> Task[Any]:
    """The task of a stage; it checks that the data has what the stage needs, and reads no picture yet."""
    if isinstance(stage, TokenizerStage):
        return TokenizerTask(model.image_tokenizer, folder, schedule, stage, recipe.seed)
    cache = FolderCache(folder, processor, model.image_tokenizer, schedule)
    return ConversationsTask(model, processor, folder, cache, schedule, stage, recipe.seed)


def _freeze(model: VargptForConditionalGeneration, stage: Stage) -> None:
    """Leave only the stage's parameters trainable."""
    if isinstance(stage, TokenizerStage):
        model.requires_grad_(False)
        model.image_tokenizer.decoder.requires_grad_(True)
        model.image_tokenizer.encoder.requires_grad_(stage.trainable == "all")
    else:
        set_trainable(model, stage.trainable)


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
