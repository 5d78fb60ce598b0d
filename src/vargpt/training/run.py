"""Run a recipe from start to end: `vargpt train RECIPE --data DIR --out DIR`, alone or under torchrun.

Invariant: the same command goes on where a killed run stopped; a stage that is finished is not repeated, and every
stage starts from what the one before it left.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from vargpt.data.pair_records import image_tokenizer_hash
from vargpt.data.pairs import PairFolder
from vargpt.data.sources.open import open_preferences
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.processing.processor import VargptProcessor
from vargpt.training import distributed
from vargpt.training.loop.trainer import StopRequest, Task, TimeLimitReached, Trainer
from vargpt.training.output import PROCESSOR, claim_output, save_processor, save_result
from vargpt.training.recipes.recipe import load_recipe
from vargpt.training.recipes.schema import DpoStage, PairsStage, Recipe, SftStage, Stage, TokenizerStage
from vargpt.training.samples.examples import SampleStream
from vargpt.training.samples.image_cache import ImageCache
from vargpt.training.stage_data import StageData
from vargpt.training.stages.judging import Judge
from vargpt.training.stages.pairs_stage import StreamPrompts, run_pairs_stage
from vargpt.training.stages.preference_batches import Pairs
from vargpt.training.stages.preference_stage import PreferenceTask
from vargpt.training.stages.published_pairs import PublishedPairs
from vargpt.training.stages.reference import Reference, make_reference
from vargpt.training.stages.sft_stage import SftTask
from vargpt.training.stages.tokenizer_stage import TokenizerTask
from vargpt.training.weights import adapters
from vargpt.training.weights.init_weights import make_model, make_processor
from vargpt.training.weights.trainable import set_trainable


def train(
    recipe_path: str | Path,
    data_dir: str | Path | None,
    output_dir: str | Path,
    overrides: Sequence[str] = (),
    stages: Sequence[str] = (),
    time_limit: float | None = None,
    replicate: bool = False,
) -> Path:
    """Train the stages of a recipe in order and save model, processor and recipe in `output_dir/model`.

    Args:
        data_dir: where the recipe's sources lie; its `data` source is this folder itself, with images and
            `metadata.jsonl` (see `vargpt.data.folder`).
        output_dir: resolved recipe, `run.json` (data, versions), checkpoints, journals, curves and the final model.
        overrides: `stages.0.loop.steps=100` and the like.
        stages: train only these by name (the others are taken as far as they got); all when empty.
        time_limit: seconds for this call, at least one step; training is saved and stopped then.
        replicate: under torchrun, every process keeps the whole model, and a step sends its gradients once. For models
            that are small beside the memory; without it they are sharded, and parts are sent as they are needed.

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
    device = distributed.setup()
    run = Run(recipe, None if data_dir is None else Path(data_dir), Path(output_dir), device, stages, replicate)
    with stop.installed():
        for stage in recipe.stages:
            run.stage(stage, stop, only_restore=bool(stages) and stage.name not in stages)
    return run.save()


class Run:
    """One recipe in one output folder: the model as it goes from stage to stage, and what the stages need."""

    def __init__(
        self,
        recipe: Recipe,
        data_dir: Path | None,
        output: Path,
        device: torch.device,
        stages: Sequence[str] = (),
        replicate: bool = False,
    ) -> None:
        """Build the model and check the data of the stages that will run (all of them when `stages` is empty)."""
        self._recipe, self._output = recipe, output
        self._data = StageData(recipe, data_dir)
        self._processor = self._make_processor()
        self._model = make_model(recipe, self._processor)
        adapters.inject_all(self._model, recipe)
        for stage in recipe.stages:
            if isinstance(stage, SftStage | TokenizerStage) and (not stages or stage.name in stages):
                self._task(stage)  # a stage that the data does not fit is refused before the first one starts
        if distributed.is_main():
            claim_output(recipe, self._data.facts(), output)
            save_processor(self._processor, output / PROCESSOR)
            print(self._summary(), file=sys.stderr)
        distributed.barrier()
        self._device = device
        self._model.to(device)
        self._sharded = distributed.world_size() > 1 and not replicate
        if self._sharded:
            distributed.shard(self._model, self._precision)

    def _make_processor(self) -> VargptProcessor:
        """The one of an earlier call where there is one; the text tokenizer is trained once."""
        folder = self._output / PROCESSOR
        if folder.is_dir():
            return VargptProcessor.from_pretrained(folder)
        return make_processor(self._recipe, self._data.texts())

    def stage(self, stage: Stage, stop: StopRequest, only_restore: bool = False) -> None:
        """Bring the model through a stage, or only as far as the stage got in earlier calls."""
        if isinstance(stage, PairsStage):
            if not only_restore:
                self._require_time(stage, stop)
                self._make_pairs(stage, stop)
            return
        set_trainable_for(self._model, self._recipe, stage)
        directory, settings = self._output / stage.name, stage.loop.settings(self._recipe.seed)
        if only_restore:  # its data need not be there
            module = self._model.image_tokenizer if isinstance(stage, TokenizerStage) else self._model
            Trainer(stage.name, cast(Task[Any], SimpleNamespace(module=module)), settings, directory).restore()
            return
        self._require_time(stage, stop)
        task = self._task(stage)
        hooks = [task.watch()] if isinstance(task, PreferenceTask) else []
        trainer = Trainer(stage.name, task, settings, directory, hooks, self._judges(stage))
        if isinstance(task, PreferenceTask):
            task.prepare()
        try:
            trainer.run(stop)
        finally:
            if isinstance(task, SftTask | TokenizerTask):
                task.close()
        if stage.keep:
            self._save_model(self._output / stage.name / "model")

    def _require_time(self, stage: Stage, stop: StopRequest) -> None:
        if stop.signal is not None:
            raise TimeLimitReached(f"stopped by {stop.signal} before stage {stage.name}; run again to go on")

    def _task(self, stage: TokenizerStage | SftStage | DpoStage) -> Task[Any]:
        """The task of a stage; it checks that the data has what the stage needs, and reads no picture yet."""
        recipe, model, schedule = self._recipe, self._model, self._recipe.stage_schedule(stage)
        if isinstance(stage, TokenizerStage):
            stream = SampleStream(stage.name, stage.data, self._data.sources(stage.data), 0.0, recipe.seed)
            pictures = [conversation.drawings[0].image for conversation in self._data.validation(stage.data)["draw"]]
            schedules = recipe.tokenizer_schedules(stage)
            return TokenizerTask(model.image_tokenizer, stream, pictures, schedules, stage, recipe.seed)
        disk = None if recipe.latent_cache is None else (self._data.root or Path()) / recipe.latent_cache
        cache = ImageCache(self._processor, model.image_tokenizer, disk)
        if isinstance(stage, SftStage):
            sources, held_out = self._data.sources(stage.data), self._data.validation(stage.data)
            return SftTask(model, self._processor, sources, cache, schedule, stage, recipe.seed, held_out)
        return self._preference_task(stage)

    def _judges(self, stage: TokenizerStage | SftStage | DpoStage) -> list[Judge]:
        if isinstance(stage, TokenizerStage) or stage.judge is None:
            return []
        seed, judge = self._recipe.seed, stage.judge
        stream = SampleStream(f"{stage.name} judge", judge.data, self._data.sources(judge.data), 0.0, seed)
        prompts = StreamPrompts(stream, judge.num_prompts)
        return [Judge(judge, self._model, self._processor, prompts, self._recipe.stage_schedule(stage), seed)]

    def _preference_task(self, stage: DpoStage) -> PreferenceTask:
        """Its reference is the model as it stands now, so it is made when the stage begins, before its checkpoint."""
        pairs, fits = self._pairs(stage)
        reference = self._reference(stage)
        seed, fraction = self._recipe.seed, self._recipe.validation_fraction
        return PreferenceTask(
            self._model, self._processor, pairs, stage, seed, reference, validation_fraction=fraction, bits_fit=fits
        )

    def _pairs(self, stage: DpoStage) -> tuple[Pairs, bool]:
        """The stage's pairs, and whether their bits are those of this model's image tokenizer."""
        root = self._data.root or Path()
        if stage.pairs in self._recipe.sources:
            records = open_preferences(stage.pairs, self._recipe.sources[stage.pairs], root)
            return PublishedPairs(records, self._processor, self._recipe.stage_schedule(stage)), False
        own = self._output / stage.pairs
        folder = PairFolder(own if own.is_dir() else root / stage.pairs)
        return folder, folder.image_tokenizer == image_tokenizer_hash(self._model.image_tokenizer)

    def _reference(self, stage: DpoStage) -> Reference:
        twin = None
        if stage.reference == "copy" and self._sharded:
            twin = self._twin()
            distributed.shard_like(twin, self._model, self._precision)
            set_trainable_for(twin, self._recipe, stage)  # adapters of earlier stages are in force in the copy, too
        return make_reference(stage, self._model, self._output / stage.name, twin)

    def _twin(self) -> VargptForConditionalGeneration:
        """A model of the same modules without values."""
        with torch.device("meta"):
            twin = VargptForConditionalGeneration(self._model.config)
        adapters.inject_all(twin, self._recipe)
        for own, parameter in zip(twin.parameters(), self._model.parameters(), strict=True):
            own.data = own.data.to(parameter.dtype)
        return twin

    @property
    def _precision(self) -> str:
        trained = [stage for stage in self._recipe.stages if not isinstance(stage, PairsStage)]
        return "bf16" if all(stage.loop.precision == "bf16" for stage in trained) else "fp32"

    def _make_pairs(self, stage: PairsStage, stop: StopRequest) -> None:
        stream = SampleStream(stage.name, stage.data, self._data.sources(stage.data), 0.0, self._recipe.seed)
        finished = run_pairs_stage(
            stage, self._whole_model(), self._processor, stream, self._recipe.stage_schedule(stage),
            self._output / stage.name, self._recipe.seed, lambda: stop.reason is not None,
        )  # fmt: skip
        if not finished:
            raise TimeLimitReached(f"{stage.name}: stopped by {stop.reason}; run again to go on")

    def _whole_model(self) -> VargptForConditionalGeneration:
        """The model itself, or where it is sharded a whole copy with plain weights on each rank."""
        if not self._sharded:
            return self._model
        state = distributed.broadcast_object(adapters.merged_state(distributed.full_state(self._model), self._recipe))
        whole = VargptForConditionalGeneration(self._model.config)
        distributed.load_full_state(whole, state)
        return whole.to(self._device)

    def save(self) -> Path:
        """Write the model as it now is, with plain weights in the recipe's dtype."""
        return self._save_model(self._output / "model")

    def _save_model(self, destination: Path) -> Path:
        state = adapters.merged_state(distributed.full_state(self._model), self._recipe)
        if distributed.is_main():
            save_result(self._model.config, state, self._processor, self._recipe, destination)
        distributed.barrier()
        return destination

    def _summary(self) -> str:
        parts = {
            name: sum(p.numel() for p in module.parameters()) / 1e6 for name, module in self._model.named_children()
        }
        sizes = ", ".join(f"{name} {millions:.2f}M" for name, millions in parts.items())
        lines = [f"source {name}: {text}" for name, text in self._data.summary().items()]
        return "\n".join([f"model: {sizes}", *lines])


def set_trainable_for(
    model: VargptForConditionalGeneration, recipe: Recipe, stage: TokenizerStage | SftStage | DpoStage
) -> None:
    """Leave only a stage's parameters trainable, with the adapters that are in force in it."""
    if isinstance(stage, TokenizerStage):
        model.requires_grad_(False)
        model.image_tokenizer.decoder.requires_grad_(True)
        model.image_tokenizer.encoder.requires_grad_(stage.trainable == "all")
    else:
        set_trainable(model, stage.trainable)
        adapters.activate(model, recipe, stage.name)
