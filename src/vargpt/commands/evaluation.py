"""`vargpt eval`: measure a model on a folder of captioned pictures."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from vargpt.commands.common import find_model, load_pipeline


def evaluate(
    model: str | None,
    data: Path,
    output: Path,
    limit: int | None,
    batch_size: int,
    guidance: float | None,
    temperature: float | None,
) -> None:
    """Run the four measures and write the report; the table and, last, one line of JSON go to stdout."""
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1, got {limit}")
    from vargpt.data.folder import read_folder
    from vargpt.evaluation.folder import FolderEvaluation
    from vargpt.evaluation.report import conditions, markdown_table, results, write_report

    folder = read_folder(data, trained_split(find_model(model)))
    pipeline = load_pipeline(model, None, None)
    sampling = pipeline.sampling
    if guidance is not None:
        sampling = replace(sampling, guidance_scale=guidance)
    if temperature is not None:
        sampling = replace(sampling, temperature=temperature)
    start = time.monotonic()
    evaluation = FolderEvaluation(pipeline.model, pipeline.processor, folder, sampling, batch_size, limit)
    outcomes = evaluation.run()
    dtype = str(pipeline.model.dtype).removeprefix("torch.")
    settings = conditions(pipeline.name, str(data.name), sampling, dtype, time.monotonic() - start)
    page = write_report(outcomes, settings, output)
    document = results(outcomes, settings)
    print(f"pictures: {page}", file=sys.stderr)
    print(markdown_table(document))
    print(json.dumps(document))


def trained_split(model: str) -> float:
    """Share of the pictures that a model's training set aside: by the recipe in its folder, else the default."""
    from vargpt.data.folder import VALIDATION_FRACTION
    from vargpt.training.recipes.recipe import load_recipe

    recipe = Path(model) / "recipe.yaml"
    return load_recipe(recipe).validation_fraction if recipe.is_file() else VALIDATION_FRACTION
