"""Run a recipe from start to end: `vargpt train RECIPE --data DIR --out DIR`.

Invariant: the same command goes on where a killed run stopped; a stage that is finished is not repeated, and an output
folder never mixes two recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from vargpt.configuration import ImageTokenizerConfig
from vargpt.data.folder import read_folder
from vargpt.image_tokenizer import ImageTokenizer
from vargpt.image_tokenizer.initialization import initialize
from vargpt.scales import ScaleSchedule
from vargpt.training.recipe import Recipe, load_recipe, save_recipe
from vargpt.training.tokenizer_stage import TokenizerTask
from vargpt.training.trainer import Trainer


def train(
    recipe_path: str | Path,
    data_dir: str | Path,
    output_dir: str | Path,
    overrides: Sequence[str] = (),
    time_limit: float | None = None,
) -> Path:
    """Train every stage of a recipe."""
    recipe = load_recipe(recipe_path, list(overrides))
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, output / "recipe.yaml")
    folder = read_folder(data_dir, recipe.validation_fraction)
    torch.manual_seed(recipe.seed)
    tokenizer = ImageTokenizer(ImageTokenizerConfig(**recipe.model.image_tokenizer.model_dump()))
    initialize(tokenizer)
    schedule = ScaleSchedule(recipe.schedule.template, recipe.schedule.num_scales)
    for stage in recipe.stages:
        task = TokenizerTask(tokenizer, folder, schedule, stage, recipe.seed)
        Trainer(stage.name, task, stage.loop.settings(recipe.seed), output / stage.name).run(time_limit)
    return output


if __name__ == "__main__":
    import sys

    train(*sys.argv[1:4])
