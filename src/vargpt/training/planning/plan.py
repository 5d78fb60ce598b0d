"""The plan of a recipe before anything is trained: `vargpt train RECIPE --dry-run`.

Invariant: everything follows from the recipe, the modules' shapes (on the meta device, without weights or data) and the
assumptions, which are part of the plan and printed with it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vargpt.checkpoint.loading import CONFIG_NAME, read_config
from vargpt.checkpoint.official_keys import official_key_table
from vargpt.configuration import VargptConfig
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.processing.text import SPECIAL_TOKENS, SpecialIds
from vargpt.scales import ScaleSchedule
from vargpt.training.planning.flops import (
    Adapter,
    Flops,
    RowShape,
    WorkCounter,
    tokenizer_flops,
    tokenizer_training_flops,
)
from vargpt.training.planning.plan_memory import (
    WORKSPACE,
    Bytes,
    Sizes,
    activation_memory,
    gathered_memory,
    parameter_memory,
    sampling_memory,
    tokenizer_activations,
)
from vargpt.training.recipes.schema import DpoStage, PairsStage, Recipe, SftStage, Stage, TokenizerStage
from vargpt.training.weights.adapters import adapter_size, lora_stages, target_layers
from vargpt.training.weights.build import config_of
from vargpt.training.weights.init_weights import weight_dtype
from vargpt.training.weights.trainable import set_trainable

TASK_WORDS = {"draw": (50, 35), "caption": (45, 40), "edit": (45, 10), "question": (60, 25), "chat": (200, 160)}
"""Task -> text tokens before the answer and of the answer, chat format included."""
_QWEN_IDS = (151643, 151644, 151645, 151652, 151653, 151655, 151656, 151657, 151658, 151659)
"""Qwen2-VL's special tokens and the three after them, in the order of `SpecialIds` (spec 2.1)."""
_UNPROMPTED = 15
"""Text tokens of the conversation without its prompt, for guidance."""


@dataclass(frozen=True)
class Devices:
    """What the plan is for. `utilisation` is the share of `peak` (operations per second of one device, bfloat16) that
    training reaches over all operations, recomputed ones included; `sampling` the same for making pairs."""

    count: int = 8
    memory: float = 80e9
    peak: float = 990e12
    utilisation: float = 0.3
    sampling: float = 0.1

    def __post_init__(self) -> None:
        if self.count < 1 or self.memory <= 0 or self.peak <= 0:
            raise ValueError(f"a plan needs at least one device with memory, got {self.count} of {self.memory:g} bytes")
        if not (0 < self.utilisation <= 1 and 0 < self.sampling <= 1):
            raise ValueError(f"utilisation is a share of the peak between 0 and 1, got {self.utilisation}")


@dataclass(frozen=True)
class StagePlan:
    """One stage. `samples` are conversations, pairs or prompts; `flops` and `tokens` are of the whole stage.

    `memory` is that of one device with `micro_batch` samples at once; `most` is how many fit.
    """

    name: str
    kind: str
    height: int
    width: int
    image_tokens: int
    trainable: str
    trained: dict[str, int]
    steps: int
    batch: int
    samples: int
    tokens: float
    flops: dict[str, float]
    gpu_hours: float
    micro_batch: int
    memory: Bytes
    most: int

    @property
    def total_flops(self) -> float:
        """Operations of the stage."""
        return sum(self.flops.values())

    @property
    def total_memory(self) -> float:
        """Bytes of one device."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Plan:
    """The plan of all stages; `render` in `vargpt.training.planning.plan_text` prints it."""

    recipe: str
    devices: Devices
    parameters: dict[str, int]
    published_parameters: int | None
    stages: list[StagePlan]
    assumptions: list[str] = field(default_factory=list)

    @property
    def gpu_hours(self) -> float:
        """Of all stages."""
        return sum(stage.gpu_hours for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the totals."""
        values = dataclasses.asdict(self)
        for stage, own in zip(self.stages, values["stages"], strict=True):
            own |= {"total_flops": stage.total_flops, "total_memory": stage.total_memory}
        return {**values, "gpu_hours": self.gpu_hours}


def make_plan(recipe: Recipe, devices: Devices | None = None, only: Sequence[str] = ()) -> Plan:
    """Plan all stages of a recipe, or those named in `only`, on the given devices.

    Raises:
        ValueError: for sizes that make no model, adapters that fit no layer, or an unknown stage.
    """
    devices = devices or Devices()
    names = [stage.name for stage in recipe.stages]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ValueError(f"no stage {unknown[0]!r} in this recipe; it has {', '.join(names)}")
    config = planned_config(recipe)
    with torch.device("meta"):
        model = VargptForConditionalGeneration(config)
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    parameters["start_embedding"] = model.start_embedding.numel()
    planner = _Planner(recipe, devices, model)
    stages = [planner.stage(stage) for stage in recipe.stages if not only or stage.name in only]
    return Plan(recipe.name, devices, parameters, _published(config), stages, _assumptions(recipe, devices, config))


def planned_config(recipe: Recipe) -> VargptConfig:
    """The configuration of the model to train: of `init.model` where that is a folder here, else the recipe's sizes.

    A text tokenizer that is yet to be trained is counted with all of `text_tokenizer.vocab_size`.
    """
    if recipe.init.model is not None and (Path(recipe.init.model) / CONFIG_NAME).is_file():
        return read_config(Path(recipe.init.model))
    rows = recipe.text_tokenizer.vocab_size
    published = recipe.init.backbone is not None or recipe.init.model is not None
    special: Sequence[int] = (
        _QWEN_IDS if published and rows > _QWEN_IDS[-1] else range(rows - len(SPECIAL_TOKENS), rows)
    )
    return config_of(recipe, SpecialIds(*special), rows)


def _published(config: VargptConfig) -> int | None:
    """Parameters in the published layout, those without effect included; None where it cannot express the sizes."""
    try:
        table = official_key_table(config)
    except ValueError:
        return None
    return sum(math.prod(entry.official_shape) for entry in table if not entry.buffer)


class _Planner:
    """Plans one stage after the other on a model without memory."""

    def __init__(self, recipe: Recipe, devices: Devices, model: VargptForConditionalGeneration) -> None:
        self._recipe, self._devices, self._model = recipe, devices, model
        self._sections = lora_stages(recipe)

    def stage(self, stage: Stage) -> StagePlan:
        schedule = self._recipe.stage_schedule(stage)
        if isinstance(stage, TokenizerStage):
            return self._tokenizer(stage, schedule)
        if isinstance(stage, PairsStage):
            return self._pairs(stage, schedule)
        return self._training(stage, schedule)

    def _training(self, stage: SftStage | DpoStage, schedule: ScaleSchedule) -> StagePlan:
        model, loop, ranks = self._model, stage.loop.settings(self._recipe.seed), self._devices.count
        set_trainable(model, stage.trainable)
        own = self._sections.get(stage.name)
        trained = self._trained()
        if own is not None:
            trained["adapters"] = adapter_size(model, own)
        work = WorkCounter(model, self._adapters(stage.name))
        mixture = self._mixture(stage, schedule)
        recompute = loop.activation_checkpointing
        sides = 1 if isinstance(stage, SftStage) else 2
        per_sample = Flops()
        for share, row in mixture:
            per_sample += work.row(row, recompute).times(share * sides)
        samples = loop.last_step * loop.batch_size
        flops = {
            "forward": per_sample.forward * samples,
            "backward": per_sample.backward * samples,
            "recompute": per_sample.recompute * samples,
        }
        if isinstance(stage, DpoStage):
            flops["reference"] = per_sample.forward * samples
        else:
            encode = tokenizer_flops(model.image_tokenizer, *schedule.image_size)[0]
            flops["encode"] = encode * samples * sum(share for share, row in mixture if row.schedule)
        sizes = self._sizes(stage)
        micro = min(loop.micro_batch_size, math.ceil(loop.batch_size / ranks))
        rows = [activation_memory(model, work, row, recompute) for _, row in mixture]
        activations, logits = (sides * max(values) for values in zip(*rows, strict=True))
        memory = parameter_memory(model, sizes, loop)
        memory["gathered"] = gathered_memory(model, sizes, recompute, trains=True)
        return self._plan(
            stage, schedule, stage.trainable + (" + adapters" if own else ""), trained, loop.last_step, loop.batch_size,
            sum(share * row.columns for share, row in mixture) * sides * samples, flops, self._devices.utilisation,
            micro, memory, {"activations": activations, "logits": logits},
        )  # fmt: skip

    def _pairs(self, stage: PairsStage, schedule: ScaleSchedule) -> StagePlan:
        """Sampling by the plain cached forward: every picture on its own, in the branches that guidance needs."""
        model = self._model
        set_trainable(model, "none")
        pictures = stage.num_samples
        branches = 1 if stage.sampling.guidance_scale == 1 else 2
        work = WorkCounter(model, self._adapters(stage.name))
        mixture = self._mixture(stage, schedule)
        encode, decode = tokenizer_flops(model.image_tokenizer, *schedule.image_size)
        sampling = columns = 0.0
        for share, row in mixture:
            free = dataclasses.replace(row, columns=_UNPROMPTED + row.slots + 2, context=_UNPROMPTED, read_patches=())
            for branch in (row, free)[:branches]:
                sampling += share * work.row(dataclasses.replace(branch, targets=0)).forward
                columns += share * branch.columns
        samples = stage.num_prompts
        flops = {"sampling": sampling * pictures * samples, "decode": decode * pictures * samples}
        flops["encode"] = encode * samples if stage.chosen == "given" else 0.0
        sizes = self._sizes(stage)
        memory = parameter_memory(model, sizes, None)
        if self._devices.count > 1:  # every rank samples with a whole copy in float32
            memory["gathered"] = 4.0 * sum(parameter.numel() for parameter in model.parameters())
        caches = [sampling_memory(model, row, branches) for _, row in mixture]
        cache, activations = (max(values) for values in zip(*caches, strict=True))
        share = min(stage.batch_size, math.ceil(samples * pictures / self._devices.count))
        return self._plan(
            stage, schedule, "-", {}, math.ceil(samples * pictures / stage.batch_size), stage.batch_size,
            columns * pictures * samples, flops, self._devices.sampling, share, memory,
            {"cache": cache, "activations": activations}, samples=samples,
        )  # fmt: skip

    def _tokenizer(self, stage: TokenizerStage, schedule: ScaleSchedule) -> StagePlan:
        model, loop = self._model, stage.loop.settings(self._recipe.seed)
        set_trainable(model, "none")
        model.image_tokenizer.decoder.requires_grad_(True)
        model.image_tokenizer.encoder.requires_grad_(stage.trainable == "all")
        work = tokenizer_training_flops(model.image_tokenizer, *schedule.image_size)
        samples = loop.last_step * loop.batch_size
        flops = {"forward": work.forward * samples, "backward": work.backward * samples}
        memory = parameter_memory(model, self._sizes(stage), loop)
        micro = min(loop.micro_batch_size, math.ceil(loop.batch_size / self._devices.count))
        activations = tokenizer_activations(model.image_tokenizer, *schedule.image_size)
        trained = {"image_tokenizer": sum(p.numel() for p in model.parameters() if p.requires_grad)}
        plan = self._plan(
            stage, schedule, stage.trainable, trained, loop.last_step, loop.batch_size, 0.0, flops,
            self._devices.utilisation, micro, memory, {"activations": activations},
        )  # fmt: skip
        model.image_tokenizer.requires_grad_(False)
        return plan

    def _plan(
        self, stage: Stage, schedule: ScaleSchedule, trainable: str, trained: dict[str, int], steps: int, batch: int,
        tokens: float, flops: dict[str, float], utilisation: float, micro: int, memory: Bytes, per_sample: Bytes,
        samples: int | None = None,
    ) -> StagePlan:  # fmt: skip
        """Put a stage's plan together; `per_sample` is memory that grows with the micro-batch."""
        fixed = sum(memory.values()) + WORKSPACE
        most = max(0, int((self._devices.memory - fixed) / max(1.0, sum(per_sample.values()))))
        memory = {**memory, **{name: micro * value for name, value in per_sample.items()}, "workspace": WORKSPACE}
        flops = {name: value for name, value in flops.items() if value}
        hours = sum(flops.values()) / (self._devices.peak * utilisation) / 3600
        return StagePlan(
            stage.name, stage.kind, *schedule.image_size, schedule.num_tokens, trainable, trained, steps, batch,
            steps * batch if samples is None else samples, tokens, flops, hours, micro, memory, most,
        )  # fmt: skip

    def _sizes(self, stage: Stage) -> Sizes:
        own = self._sections.get(stage.name)
        return Sizes(
            lambda name, axes: weight_dtype(self._recipe, name, axes),
            self._devices.count,
            adapters=sum(adapter_size(self._model, section) for section in self._sections.values()),
            trained_adapters=0 if own is None else adapter_size(self._model, own),
            reference=stage.reference if isinstance(stage, DpoStage) else None,
        )

    def _adapters(self, stage_name: str) -> dict[str, Adapter]:
        """Adapters in force in a stage, by layer."""
        order = [stage.name for stage in self._recipe.stages]
        found: dict[str, Adapter] = {}
        for name, section in self._sections.items():
            if order.index(name) <= order.index(stage_name):
                for layer, module in target_layers(self._model, section).items():
                    weights = section.rank * (module.in_features + module.out_features)
                    before = found.get(layer, Adapter(0, 0))
                    trained = before.trained + (weights if name == stage_name else 0)
                    found[layer] = Adapter(before.weights + weights, trained)
        return found

    def _trained(self) -> dict[str, int]:
        """Trained parameters by module, as the model is set now."""
        counts: dict[str, int] = {}
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                parts = name.split(".")
                module = ".".join(parts[:2]) if parts[0] == "backbone" else parts[0]
                module = "backbone.visual.merger" if name.startswith("backbone.visual.merger") else module
                counts[module] = counts.get(module, 0) + parameter.numel()
        return counts

    def _mixture(
        self, stage: SftStage | DpoStage | PairsStage, schedule: ScaleSchedule
    ) -> list[tuple[float, RowShape]]:
        """Shares of a stage's rows and their sizes."""
        if isinstance(stage, DpoStage):
            return [(1.0, dataclasses.replace(self._row("draw", schedule), targets=0.0))]
        total = sum(entry.weight for entry in stage.data)
        return [(entry.weight / total, self._row(entry.task, schedule)) for entry in stage.data]

    def _row(self, task: str, schedule: ScaleSchedule) -> RowShape:
        """Sizes of a task's conversation: at most one image to read, at most one to draw."""
        config, side = self._model.config, self._recipe.model.vision.image_side
        vision = config.backbone.vision_config
        before, answer = TASK_WORDS[task]
        cell = vision.patch_size * vision.spatial_merge_size
        merged = max(1, side // cell) ** 2 if task != "draw" else 0
        draws = task in ("draw", "edit")
        slots = schedule.padded_length(config.behaviour.image_slot_multiple) if draws else 0
        columns = before + merged + answer + (slots + 2 if draws else 0)
        targets = answer + (2 if draws else 0)
        if config.behaviour.text_targets == "official":
            targets = columns - slots
        return RowShape(
            columns, targets, schedule if draws else None, slots, before + merged + answer if draws else 0,
            (merged * vision.spatial_merge_size**2,) if merged else (),
        )  # fmt: skip


def _assumptions(recipe: Recipe, devices: Devices, config: VargptConfig) -> list[str]:
    vision, side = config.backbone.vision_config, recipe.model.vision.image_side
    cell = vision.patch_size * vision.spatial_merge_size
    words = ", ".join(f"{task} {before}+{answer}" for task, (before, answer) in TASK_WORDS.items())
    lines = [
        f"devices: {devices.peak / 1e12:.0f} TFLOP/s peak each in bfloat16, of which training reaches "
        f"{devices.utilisation:.0%} (recomputed work included) and sampling {devices.sampling:.0%}; loading data, "
        f"evaluation and checkpoints take no time",
        f"text tokens before and in the answer: {words}; an image to read is {side}x{side} pixels at most, "
        f"{max(1, side // cell) ** 2} tokens; rows are not padded",
        "operations: products of the forward (2 per weight and token, attention over whole rectangles), gradients of "
        "weights where they are trained and of inputs where something trained lies before them",
        "a pairs stage samples with the whole model, in float32, on every one of several GPUs",
        "a pair is two rows for the policy and two for the reference, from stored bits; a picture to draw is encoded "
        "every time it is seen; the work of scorers is not counted",
        "memory: AdamW in float32 (8 bytes a trained weight), gradients in float32, everything but the image tokenizer "
        "sharded evenly; activations by coefficients measured on small blocks; 2 GB more for context and buffers",
    ]
    if recipe.init.model is not None and not (Path(recipe.init.model) / CONFIG_NAME).is_file():
        lines.append(f"{recipe.init.model} is not here: sizes are those of the recipe's model section")
    return lines
