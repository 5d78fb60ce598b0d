"""The operations that a step reports are those that PyTorch counts while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode
from training_helpers import recipe_with, sft_task

from vargpt.processing.processor import VargptProcessor
from vargpt.training.recipes.schema import SftStage
from vargpt.training.weights import adapters
from vargpt.training.weights.build import build_model
from vargpt.training.weights.trainable import set_trainable


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        ({"trainable": "all"}, 0.03),
        ({"trainable": "generation"}, 0.03),
        ({"trainable": "language", "data": [{"task": "caption"}]}, 0.03),
        ({"trainable": "none", "lora": {"rank": 4}, "data": [{"task": "draw"}]}, 0.05),
    ],
    ids=str,
)
def test_counted_work_is_the_work_done(
    data: Path, processor: VargptProcessor, change: dict[str, Any], tolerance: float
):
    recipe = recipe_with(**{f"stages__2__{key}": value for key, value in change.items()})
    model = build_model(recipe, processor)
    adapters.inject_all(model, recipe)
    stage = recipe.stages[2]
    assert isinstance(stage, SftStage)
    set_trainable(model, stage.trainable)
    adapters.activate(model, recipe, stage.name)
    task = sft_task(recipe, data, processor, model)
    batch = task.batch(0)
    counts = task.counts(batch)
    with FlopCounterMode(display=False) as counter:
        for micro in batch:
            loss, _ = task.loss(micro, counts)
            if loss.requires_grad:
                loss.backward()
    assert counts["flops"] == pytest.approx(counter.get_total_flops(), rel=tolerance)
