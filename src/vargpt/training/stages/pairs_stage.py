"""The stage that makes preference pairs with the model as it now is, for the DPO stages after it.

Invariant: the pairs are a function of the model, the recipe and the data: a stage that was stopped or killed ends with
bytewise the same shards, and on several ranks each makes its own share of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from vargpt.inference.pipeline import VargptPipeline
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.preferences.build import PairPlan, make_pairs
from vargpt.preferences.prompts import PairPrompt, from_conversation
from vargpt.preferences.report import finish_pairs
from vargpt.preferences.sample import ModelPainter
from vargpt.preferences.scorers import load_scorer
from vargpt.processing.processor import VargptProcessor
from vargpt.sampling import Sampling
from vargpt.scales import ScaleSchedule
from vargpt.training import distributed
from vargpt.training.recipes.schema import PairsStage, SamplingSection
from vargpt.training.samples.examples import SampleStream


def sampling_of(section: SamplingSection) -> Sampling:
    """The recipe's settings as the model takes them."""
    return Sampling(guidance_scale=section.guidance_scale, temperature=section.temperature, top_p=section.top_p)


def half_precision(model: VargptForConditionalGeneration) -> torch.autocast:
    """Bfloat16 products on a GPU, and where weights are of two types (`frozen_dtype`); no casts are kept."""
    mixed = len({parameter.dtype for parameter in model.parameters()}) > 1
    device = model.device.type
    return torch.autocast(device, torch.bfloat16, enabled=mixed or device == "cuda", cache_enabled=False)


class StreamPrompts:
    """The first samples of a stage's data as prompts; a key is the number and the sample's own key."""

    def __init__(self, stream: SampleStream, count: int) -> None:
        self._stream, self._count = stream, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> PairPrompt:
        sample = self._stream.at(index)
        return from_conversation(f"{index}: {sample.key}", sample.conversation)


def run_pairs_stage(
    stage: PairsStage,
    model: VargptForConditionalGeneration,
    processor: VargptProcessor,
    stream: SampleStream,
    schedule: ScaleSchedule,
    directory: Path,
    seed: int,
    should_stop: Callable[[], bool],
) -> bool:
    """Make the stage's pairs in `directory`; return False if it was stopped before the end (the same call goes on).

    Args:
        model: whole on this rank; it is left in evaluation mode.
        stream: of prompts; `chosen: given` takes their own pictures.

    Raises:
        ValueError: for a scorer that cannot be loaded, unusable prompts, or a folder that was begun otherwise.
        RuntimeError: for a scorer that is a service and does not answer.
    """
    pipeline = VargptPipeline(model, processor)
    plan = PairPlan(
        num_samples=stage.num_samples,
        margin=stage.margin,
        chosen=stage.chosen,
        seed=seed,
        batch_size=stage.batch_size,
        prompts_per_shard=max(PairPlan.prompts_per_shard, stage.batch_size // stage.num_samples),
        workers=stage.workers,
        share=(distributed.rank(), distributed.world_size()),
    )
    with torch.no_grad(), half_precision(model):
        made = make_pairs(
            ModelPainter(pipeline, sampling_of(stage.sampling), schedule),
            None if stage.scorer is None else load_scorer(stage.scorer),
            StreamPrompts(stream, stage.num_prompts),
            directory,
            plan,
            scorer_name=stage.scorer,
            identity={"data": [entry.model_dump() for entry in stage.data], "stage": stage.name},
            pipeline=pipeline,
            should_stop=should_stop,
        )
    finished = all(distributed.gather_objects(made.finished))
    if finished and distributed.world_size() > 1 and distributed.is_main():
        finish_pairs(directory)
    distributed.barrier()
    return finished
