"""A dozen pictures, edits between them, and recipes of a few thousand weights that train on them in a second."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.processing.processor import VargptProcessor
from vargpt.training.recipes.schema import Recipe, SftStage, TokenizerStage
from vargpt.training.samples.examples import SampleStream
from vargpt.training.samples.image_cache import ImageCache
from vargpt.training.stage_data import StageData
from vargpt.training.stages.sft_stage import SftTask
from vargpt.training.stages.tokenizer_stage import TokenizerTask
from vargpt.training.weights.build import build_model

COUNT = 12
LOOP = {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "log_every": 1, "evaluate_every": 2, "precision": "fp32"}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "validation_fraction": 0.2,
    "schedule": {"num_scales": 2},
    "text_tokenizer": {"vocab_size": 300},
    "model": {
        "image_tokenizer": {"bits": 8, "base_channels": 32, "channel_multipliers": [1], "num_res_blocks": 1,
                            "patch_size": 16},
        "vision": {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8, "image_side": 32},
        "backbone": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "num_key_value_heads": 1, "mrope_section": [2, 3, 3]},
        "decoder": {"hidden_size": 128, "num_heads": 2, "depth": 2, "drop_path_rate": 0.5},
    },
    "export_dtype": "float32",
    "stages": [
        {"kind": "tokenizer", "loop": LOOP, "zoom": 0.2, "permute_colours": 0.5},
        {"kind": "sft", "name": "names", "trainable": "understanding", "loop": {**LOOP, "steps": 2},
         "data": [{"task": "caption"}]},
        {"kind": "sft", "loop": {**LOOP, "batch_size": 5}, "data": [
            {"task": "draw", "weight": 0.45}, {"task": "caption", "weight": 0.3}, {"task": "edit", "weight": 0.25}]},
    ],
}  # fmt: skip
STAGES = ("tokenizer", "names", "sft")


def recipe_with(**changes: Any) -> Recipe:
    """The tiny recipe with other values, keys as in `--set` with `__` for the dots: `stages__0__zoom=0`."""
    data = copy.deepcopy(RECIPE)
    for key, value in changes.items():
        target: Any = data
        *parents, last = key.split("__")
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
        target[last] = value
    return Recipe.model_validate(data)


def write_recipe(path: Path, **changes: Any) -> Path:
    """Write the tiny recipe as a file."""
    path.write_text(yaml.safe_dump(recipe_with(**changes).model_dump(mode="json")))
    return path


def write_data(folder: Path) -> Path:
    """Write twelve two-coloured pictures with captions and edits."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{index}.png" for index in range(COUNT)]
    for index, name in enumerate(names):
        picture = Image.new("RGB", (40, 40), (20 * index, 255 - 20 * index, 70 * index % 256))
        picture.paste((255, 0, 60), (0, 0, 20, 10 + index))
        picture.save(folder / name)
    captions = [{"file_name": name, "text": f"colour {index}"} for index, name in enumerate(names)]
    edits = [
        {"source": name, "target": names[(index + 1) % COUNT], "instruction": f"make it colour {(index + 1) % COUNT}"}
        for index, name in enumerate(names)
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in captions))
    (folder / "edits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in edits))
    return folder


def sft_task(
    recipe: Recipe,
    data: Path,
    processor: VargptProcessor,
    model: VargptForConditionalGeneration | None = None,
    stage_index: int = 2,
) -> SftTask:
    """The task of an SFT stage, on a fresh model if none is given."""
    stage = recipe.stages[stage_index]
    assert isinstance(stage, SftStage)
    model = model or build_model(recipe, processor)
    sources = StageData(recipe, data)
    cache = ImageCache(processor, model.image_tokenizer)
    schedule = recipe.stage_schedule(stage)
    return SftTask(
        model,
        processor,
        sources.sources(stage.data),
        cache,
        schedule,
        stage,
        recipe.seed,
        sources.validation(stage.data),
    )


def tokenizer_task(recipe: Recipe, data: Path, processor: VargptProcessor, model: Any = None) -> TokenizerTask:
    """The task of the tokenizer stage, on a fresh model if none is given."""
    stage = recipe.stages[0]
    assert isinstance(stage, TokenizerStage)
    tokenizer = (model or build_model(recipe, processor)).image_tokenizer
    sources = StageData(recipe, data)
    stream = SampleStream(stage.name, stage.data, sources.sources(stage.data), 0.0, recipe.seed)
    pictures = [conversation.drawings[0].image for conversation in sources.validation(stage.data)["draw"]]
    return TokenizerTask(tokenizer, stream, pictures, recipe.tokenizer_schedules(stage), stage, recipe.seed)


def step_values(task: Any, step: int = 0) -> dict[str, float]:
    """Loss and metrics of one step: the shares of its micro-batches added up."""
    batch = task.batch(step)
    counts = task.counts(batch)
    total: dict[str, float] = {}
    for micro in batch:
        loss, metrics = task.loss(micro, counts)
        for name, value in {"loss": loss, **metrics}.items():
            total[name] = total.get(name, 0.0) + float(value.detach())
    return total


def result_of(output: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights of the finished model and the journal of every stage."""
    journals = {stage: (output / stage / "journal.jsonl").read_text() for stage in STAGES}
    return load_file(output / "model" / "model.safetensors"), journals


def require_same(first: Path, second: Path) -> None:
    """Two outputs have bitwise the same weights and the same journals."""
    (weights, journals), (other_weights, other_journals) = result_of(first), result_of(second)
    assert journals == other_journals
    assert weights.keys() == other_weights.keys()
    different = [name for name, value in weights.items() if not torch.equal(value, other_weights[name])]
    assert not different
