"""An evaluation during training: the model draws, a scorer judges, the mean is a validation metric.

Invariant: prompts and seeds are the same at every evaluation of a stage, so the curve shows the model and not the dice.
"""

from __future__ import annotations

import torch

from vargpt.inference.pipeline import VargptPipeline
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.preferences.prompts import PairPrompt
from vargpt.preferences.sample import ModelPainter, draw_samples, picture_seed
from vargpt.preferences.scorers import load_scorer, score_pictures
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training import distributed
from vargpt.training.recipes.schema import JudgeSection
from vargpt.training.stages.pairs_stage import StreamPrompts, sampling_of


class Judge:
    """Draws one picture per prompt and returns the scorer's mean as `score` (an `Evaluator` of the trainer).

    Raises:
        ValueError: for a scorer that cannot be loaded; for a model that is sharded over several ranks.
    """

    def __init__(
        self,
        section: JudgeSection,
        model: VargptForConditionalGeneration,
        processor: VargptProcessor,
        prompts: StreamPrompts,
        schedule: ScaleSchedule,
        seed: int,
    ) -> None:
        if distributed.is_sharded(model):
            raise ValueError(
                "a judge draws with the whole model, which is sharded here: take `judge` out, or train with --replicate"
            )
        self._section, self._model, self._processor = section, model, processor
        self._prompts, self._schedule, self._seed = prompts, schedule, seed
        self._scorer = load_scorer(section.scorer)

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Draw and judge."""
        pipeline = VargptPipeline(self._model, self._processor)
        painter = ModelPainter(pipeline, sampling_of(self._section.sampling), self._schedule)
        prompts: list[PairPrompt] = [self._prompts[number] for number in range(len(self._prompts))]
        seeds = [[picture_seed(self._seed, number, 0)] for number in range(len(prompts))]
        requests = [prompt.request for prompt in prompts]
        scores = []
        for batch in draw_samples(painter, requests, seeds, self._section.batch_size):
            for number, drawing in batch:
                scores += score_pictures(self._scorer, self._section.scorer, prompts[number], [drawing.image], pipeline)
        return {"score": sum(scores) / len(scores)}
