"""The output folder of a run: who it belongs to, what it depends on, and the finished model.

Invariant: a folder never mixes two recipes or two data sets, and `model/` is either a whole model or not there.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from vargpt.configuration import VargptConfig
from vargpt.inference.habits import FILE_NAME as HABITS_FILE
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.preferences.origin import origin
from vargpt.processing.processor import VargptProcessor
from vargpt.training.recipes.recipe import load_recipe, save_recipe
from vargpt.training.recipes.schema import Recipe

PROCESSOR = "processor"
"""Folder of the processor inside the output: text tokenizers are trained once per run."""

_FIXED = ("seed", "validation_fraction", "schedule", "text_tokenizer", "model", "init", "sources", "frozen_dtype")
"""Keys of a recipe that may not change once a run has begun."""


def claim_output(recipe: Recipe, data: dict[str, Any], output: Path) -> None:
    """Write the resolved recipe and `run.json`; refuse a folder that was begun with other settings or other data.

    Args:
        data: what identifies the records of each source that this call uses, by name.

    Raises:
        ValueError: naming what differs.
    """
    path, facts_path = output / "recipe.yaml", output / "run.json"
    new = recipe.model_dump(mode="json")
    if path.exists():
        old = load_recipe(path).model_dump(mode="json")  # with today's defaults for keys it did not have
        for key in _FIXED:
            _require_same(output, key, old[key], new[key])
        known = {stage["name"]: stage for stage in new["stages"]}
        for stage in old["stages"]:
            if stage["name"] in known and (output / stage["name"]).exists():
                _require_same(output, f"stage {stage['name']}", stage, known[stage["name"]])
    if facts_path.exists():
        known_data = json.loads(facts_path.read_text())["data"]
        for name in known_data.keys() & data.keys():
            _require_same(output, f"data in source {name}", known_data[name], data[name])
        data = {**known_data, **data}
    output.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, path)
    partial = output / f".run.json.{os.getpid()}"
    partial.write_text(json.dumps({"data": data, **run_facts()}, indent=1) + "\n")
    os.replace(partial, facts_path)


def run_facts() -> dict[str, Any]:
    """What a result depends on beside recipe and data: versions, commit, threads, device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {**origin(), "threads": torch.get_num_threads(), "device": device}


def save_result(
    config: VargptConfig,
    state: dict[str, torch.Tensor],
    processor: VargptProcessor,
    recipe: Recipe,
    destination: Path,
) -> Path:
    """Write model, processor and recipe into a new folder and put it in the place of the old one.

    Args:
        state: the whole weights by plain names (no adapters, not sharded).
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".model-", dir=destination.parent))
    dtype = getattr(torch, recipe.export_dtype)
    try:
        new, old = scratch / "new", scratch / "old"
        exported = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
        with torch.device("meta"):
            plain = VargptForConditionalGeneration(config)
        plain.save_pretrained(new, state_dict=exported)
        processor.save_pretrained(new)
        save_recipe(recipe, new / "recipe.yaml")
        habits = recipe.habits.model_dump(exclude_none=True)
        if habits:
            (new / HABITS_FILE).write_text(json.dumps(habits) + "\n", encoding="utf-8")
        if destination.exists():
            os.replace(destination, old)
        os.replace(new, destination)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return destination


def save_processor(processor: VargptProcessor, destination: Path) -> None:
    """Write a processor's folder, complete or not at all; nothing where it is there already."""
    if destination.exists():
        return
    scratch = Path(tempfile.mkdtemp(prefix=".processor-", dir=destination.parent))
    try:
        processor.save_pretrained(scratch / "new")
        os.replace(scratch / "new", destination)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _require_same(output: Path, what: str, old: Any, new: Any) -> None:
    if old != new:
        path, there, now = next(_differences(old, new))
        where = "".join(f" {name}" for name in path)
        raise ValueError(
            f"{output} was begun with another {what}:{where} {there} there, {now} now; choose another output folder, "
            f"or restore the recipe to go on"
        )


def _differences(old: Any, new: Any) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Where two values differ: the entry's names, what is there and what is new."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        yield (), old, new
        return
    for name in dict.fromkeys((*old, *new)):
        first, second = old.get(name), new.get(name)
        if first != second:
            yield from (((name, *path), there, now) for path, there, now in _differences(first, second))
