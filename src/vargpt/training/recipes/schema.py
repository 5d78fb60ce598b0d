"""The schema of a recipe: every key that a recipe may have, with its default and what it means.

Invariant: a section that validates is complete and consistent by itself; what needs the data or the model is checked by
`vargpt.training.run`. Keys that the schema does not know are refused (see `vargpt.training.recipes.recipe`).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from vargpt.image_tokenizer.training_loss import TokenizerLossWeights
from vargpt.scales import NUM_TEMPLATE_SCALES, ScaleSchedule
from vargpt.training.loop.settings import LoopSettings
from vargpt.training.recipes.sizes import ModelSection, Part, ScheduleSection, Section, TextTokenizerSection

StageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
"""Lower-case letters, digits, - and _: it is the name of a folder."""


class InitSection(Section):
    """Where weights come from before the first stage; without it the model is built from `model` and seeded.

    `model` is a folder or hub name of a whole model in our or the published layout; sizes, tokenizer and preset then
    come from there. The others fill one part of a model whose sizes `model:` gives: `backbone` a Qwen2-VL model,
    `image_tokenizer` and `decoder` files of tensors with the published names (without their prefix); where a file holds
    several groups of tensors, `FILE#GROUP` names one. `image_tokenizer` may also be a model's folder: its tokenizer.

    A whole model may grow (`vargpt.training.weights.growth`): `depths` gives parts of it more layers, which begin as
    doing nothing, and `image_tokenizer` (of the sizes in `model:`) replaces its own.
    """

    model: str | None = None
    backbone: str | None = None
    image_tokenizer: str | None = None
    decoder: str | None = None
    depths: dict[Part, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole_or_parts(self) -> Self:
        if self.model is not None and (self.backbone or self.decoder):
            raise ValueError("init.model is a whole model: leave out backbone and decoder")
        if self.model is None and self.depths:
            raise ValueError("init.depths are those of a whole model that grows: name it with init.model")
        return self


class SourceSection(Section):
    """Where examples come from; `path` is taken from `--data` where it is relative.

    `folder`: images with `metadata.jsonl` (and `edits.jsonl`). `scenes`: drawn on the fly, `count` of them.
    `conversations`: our JSON lines. `official`, `official-preferences`: the published JSON. `llava`: LLaVA-style JSON.
    `tar`, `parquet`: shards of captioned images or conversations (a glob pattern in `path`). `style` is the family of
    wordings that captions and edit pairs are made conversations with (`vargpt.data.instructions`). `kinds` of scenes
    (`vargpt.data.scenes.sampler.KIND_WEIGHTS`): all where it is left out. `questions` about one scene, in one
    conversation, where it is asked about, of `question_kinds` (`vargpt.data.scenes.questions`): all where it is left
    out. `long_captions`: share of captions that tell all there is in sentences.
    `drafts`: share of drawings and edits whose answer says first what it will show, of captions that say it,
    and of questions asked after it (`vargpt.data.scenes.drafts`). `inventories`: share of captions that say of every
    shape what it is like.
    """

    format: Literal["folder", "scenes", "conversations", "official", "official-preferences", "llava", "tar", "parquet"]
    path: str = "."
    images: str | None = None
    on_error: Literal["stop", "skip"] = "stop"
    style: Literal["short", "rich"] = "short"
    count: int | None = Field(None, gt=0)
    kinds: list[str] | None = None
    questions: int | None = Field(None, ge=1, le=12)
    question_kinds: list[str] | None = None
    long_captions: float | None = Field(None, ge=0, le=1)
    drafts: float | None = Field(None, ge=0, le=1)
    inventories: float | None = Field(None, ge=0, le=1)


class DataEntry(Section):
    """A share of the samples: which source, used for which task, with which weight (normalised over the stage).

    `chat` takes whole conversations as they are; the other tasks are made from captions, edit pairs and questions.
    """

    source: str = "data"
    task: Literal["draw", "caption", "edit", "question", "chat"] = "draw"
    weight: float = Field(1.0, gt=0)


class LoopSection(Section):
    """The loop of one stage; see `LoopSettings` for units."""

    steps: int = Field(gt=0)
    stop_at: int | None = Field(None, gt=0)
    optimizer: Literal["adamw", "muon"] = "adamw"
    batch_size: int = Field(gt=0)
    micro_batch_size: int = Field(12, gt=0)
    micro_batch_tokens: int | None = Field(None, gt=0)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(0.02, ge=0, le=1)
    final_learning_rate: float = Field(0.02, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = Field(1.0, gt=0)
    precision: Literal["bf16", "fp32"] = "bf16"
    ema: float | None = Field(None, gt=0, lt=1)
    activation_checkpointing: bool = False
    compile: bool = False
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] | None = None
    log_every: int = Field(50, gt=0)
    evaluate_every: int = Field(500, gt=0)
    checkpoint_every: float = Field(120.0, gt=0)

    def settings(self, seed: int) -> LoopSettings:
        """The same as a plain dataclass for the trainer."""
        return LoopSettings(**self.model_dump(), seed=seed)


class TokenizerLossSection(Section):
    """Weights of the image tokenizer's losses (`TokenizerLossWeights`)."""

    l1: float = 0.2
    laplacian: float = 0.2
    commitment: float = 0.02
    entropy: float = 0.02
    entropy_temperature: float = 1.0

    def weights(self) -> TokenizerLossWeights:
        """The same as a plain dataclass for the loss."""
        return TokenizerLossWeights(**self.model_dump())


class _StageSection(Section):
    """What stages have in common.

    `resolution` is the side in pixels of a square image; slots, scales and grids all follow from it. None: the recipe's
    `schedule`.
    """

    name: StageName
    resolution: int | None = Field(None, gt=0)


class _TrainedStage(_StageSection):
    """A stage that changes weights; `keep` saves the model as it leaves it, in `STAGE/model`, to compare stages."""

    keep: bool = False


class TokenizerStage(_TrainedStage):
    """Train the image tokenizer on the pictures that its data draws.

    `resolutions`: further sides in pixels; steps take turns between them and `resolution`. `workers`: see `SftStage`.
    """

    kind: Literal["tokenizer"]
    name: StageName = "tokenizer"
    loop: LoopSection
    data: list[DataEntry] = Field([DataEntry()], min_length=1)
    trainable: Literal["all", "decoder"] = "all"
    loss: TokenizerLossSection = TokenizerLossSection()
    flip: bool = True
    zoom: float = Field(0.0, ge=0, lt=1)
    permute_colours: float = Field(0.0, ge=0, le=1)
    resolutions: list[int] = Field(default_factory=list)
    workers: int = Field(0, ge=0, le=256)


TrainablePreset = Literal[
    "all",
    "all_but_vision",
    "understanding",
    "language",
    "language_and_merger",
    "generation",
    "projectors",
    "projectors_and_start",
    "none",
]
"""Named sets of parameters (spec 9.1); see `vargpt.training.weights.build.TRAINABLE`."""


class LoraSection(Section):
    """Low-rank adapters on the linear layers whose names match `targets` (a regular expression), beside `trainable`."""

    rank: int = Field(16, gt=0)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str = r"backbone\.language_model\..*_proj"


class SamplingSection(Section):
    """How pictures are sampled."""

    guidance_scale: float = 1.0
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)


class JudgeSection(Section):
    """Draw at evaluations and let a scorer judge (`vargpt.preferences.scorers`); the mean is `validation/score`."""

    scorer: str
    data: list[DataEntry] = Field(min_length=1)
    num_prompts: int = Field(32, gt=0)
    batch_size: int = Field(32, gt=0)
    sampling: SamplingSection = SamplingSection()


class SftStage(_TrainedStage):
    """Supervised fine-tuning of the unified model on drawing, captioning, editing and any other conversations.

    `aspect_ratios: buckets` draws each picture at the nearest of the 15 aspect templates instead of a square. `workers`
    processes prepare steps ahead of the loop; they change no sample. The text loss is a mean over `tokens` (the
    published one), or over `conversations`, where an answer of one word counts as much as a description.
    """

    kind: Literal["sft"]
    name: StageName = "sft"
    loop: LoopSection
    trainable: TrainablePreset = "all"
    lora: LoraSection | None = None
    data: list[DataEntry] = Field(min_length=1)
    aspect_ratios: Literal["square", "buckets"] = "square"
    workers: int = Field(0, ge=0, le=256)
    guidance_drop: float = Field(0.1, ge=0, le=1)
    flip_strength: float = Field(0.3, ge=0, le=1)
    variety: float = Field(0.3, ge=0, le=1)
    text_loss_over: Literal["tokens", "conversations"] = "tokens"
    image_loss_weight: float = Field(3.0, ge=0)
    judge: JudgeSection | None = None


class PairsStage(_StageSection):
    """Make preference pairs with the model as it now is.

    `chosen: sampled` draws `num_samples` pictures per prompt, scores them and pairs best and worst where their scores
    differ by `margin`; `chosen: given` takes the data's own picture as chosen and a sampled one as
    rejected (the paper). `workers` processes score (a scorer that asks the model, `self`, needs 0).
    """

    kind: Literal["pairs"]
    name: StageName = "pairs"
    data: list[DataEntry] = Field(min_length=1)
    num_prompts: int = Field(gt=0)
    chosen: Literal["sampled", "given"] = "sampled"
    num_samples: int = Field(8, gt=0)
    scorer: str | None = None
    margin: float = Field(0.0, ge=0)
    batch_size: int = Field(16, gt=0)
    workers: int = Field(0, ge=0, le=256)
    sampling: SamplingSection = SamplingSection()

    @model_validator(mode="after")
    def _can_choose(self) -> Self:
        if self.chosen == "sampled" and (self.scorer is None or self.num_samples < 2):
            raise ValueError("pairs of sampled pictures need a scorer and num_samples of at least 2")
        if self.chosen == "given" and self.scorer is None and self.num_samples > 1:
            raise ValueError("without a scorer one sample per prompt is used: set num_samples to 1, or give a scorer")
        return self


class DpoStage(_TrainedStage):
    """Direct preference optimisation on the pairs of a `pairs` stage (its name), of an `official-preferences` source
    (its name), or of a folder of pair shards.

    The reference is the model as the stage finds it: a frozen `copy`, the base under disabled `adapters`, or its
    log-probabilities `precomputed` before the first step. `reference_noise: independent` gives policy and reference
    different bit flips, as the published code does (spec 8.4).
    """

    kind: Literal["dpo"]
    name: StageName = "dpo"
    loop: LoopSection
    trainable: TrainablePreset = "generation"
    lora: LoraSection | None = None
    pairs: str
    beta: float = Field(0.1, gt=0)
    loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    logp_reduction: Literal["sum", "mean", "scale_mean"] | None = None
    sft_weight: float = Field(0.0, ge=0)
    reference: Literal["copy", "adapters", "precomputed"] = "copy"
    reference_noise: Literal["shared", "independent"] = "shared"
    flip_strength: float = Field(0.3, ge=0, le=1)
    judge: JudgeSection | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.reference == "adapters" and (self.lora is None or self.trainable != "none"):
            raise ValueError("reference: adapters needs lora and trainable: none, so that the base is the reference")
        if self.loss != "sigmoid" and self.label_smoothing:
            raise ValueError(f"label_smoothing is defined for the sigmoid loss only, got it with {self.loss}")
        if self.loss == "ipo" and self.logp_reduction == "sum":
            raise ValueError("the ipo loss is defined for averages: use logp_reduction mean or scale_mean")
        return self


Stage = Annotated[TokenizerStage | SftStage | PairsStage | DpoStage, Field(discriminator="kind")]

STAGE_KINDS: dict[str, type[BaseModel]] = {
    "tokenizer": TokenizerStage,
    "sft": SftStage,
    "pairs": PairsStage,
    "dpo": DpoStage,
}


def stage_entries(stage: TokenizerStage | SftStage | PairsStage | DpoStage) -> list[DataEntry]:
    """All that a stage takes from sources, its judge's prompts among it."""
    judge = None if isinstance(stage, TokenizerStage | PairsStage) else stage.judge
    return ([] if isinstance(stage, DpoStage) else stage.data) + ([] if judge is None else judge.data)


class HabitsSection(Section):
    """What the finished model recommends for talking to it (`vargpt.inference.habits`); left out is not said."""

    guidance_scale: float | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    bare_names: bool | None = None
    memory: Literal["all", "picture"] | None = None
    domains: list[Literal["scenes", "emoji"]] | None = None
    draft: bool | None = None


class Recipe(Section):
    """A whole schedule: what is built and which stages train it, in order.

    `sources` names what the stages' data refer to; `data` always exists and is the folder of `--data`. `frozen_dtype`
    is the type of weights that no stage trains (not of the image tokenizer's, which stay float32: bits depend on them).
    """

    name: str
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**31)
    validation_fraction: float = Field(0.05, ge=0, lt=1)
    schedule: ScheduleSection = ScheduleSection()
    text_tokenizer: TextTokenizerSection = TextTokenizerSection()
    model: ModelSection = ModelSection()
    init: InitSection = InitSection()
    sources: dict[str, SourceSection] = Field(default_factory=dict)
    latent_cache: str | None = None
    export_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    habits: HabitsSection = HabitsSection()
    frozen_dtype: Literal["bfloat16", "float32"] = "float32"
    stages: list[Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names) or "model" in names:
            raise ValueError(f"stage names must differ and none may be 'model' (the result's folder), got {names}")
        self.sources.setdefault("data", SourceSection(format="folder"))
        pairs: list[str] = []
        for stage in self.stages:
            self.stage_schedule(stage)
            if isinstance(stage, TokenizerStage):
                self.tokenizer_schedules(stage)
            for entry in stage_entries(stage):
                if entry.source not in self.sources:
                    raise ValueError(
                        f"stage {stage.name}: no source {entry.source!r}; known: {', '.join(self.sources)}"
                    )
                if isinstance(stage, TokenizerStage) and entry.task not in ("draw", "edit"):
                    raise ValueError(f"stage {stage.name}: the image tokenizer needs pictures drawn, not {entry.task}")
            if isinstance(stage, DpoStage) and stage.pairs in names and stage.pairs not in pairs:
                raise ValueError(f"stage {stage.name}: {stage.pairs!r} is no pairs stage before it")
            pairs += [stage.name] if isinstance(stage, PairsStage) else []
        return self

    def stage_schedule(self, stage: Stage) -> ScaleSchedule:
        """Grids of a stage's images: of its resolution, or the recipe's own.

        Raises:
            ValueError: for a resolution that is no side of a square schedule.
        """
        if stage.resolution is None:
            return ScaleSchedule(self.schedule.template, self.schedule.num_scales, self.model.image_tokenizer.stride)
        return self._schedule_of_side(stage.name, stage.resolution)

    def tokenizer_schedules(self, stage: TokenizerStage) -> list[ScaleSchedule]:
        """Grids that the steps of a tokenizer stage take turns between, its own first."""
        return [self.stage_schedule(stage), *(self._schedule_of_side(stage.name, side) for side in stage.resolutions)]

    def _schedule_of_side(self, stage: str, side: int) -> ScaleSchedule:
        stride = self.model.image_tokenizer.stride
        sides = {ScaleSchedule(1.0, count, stride).image_size[0]: count for count in range(1, NUM_TEMPLATE_SCALES + 1)}
        if side not in sides:
            raise ValueError(
                f"stage {stage}: resolution must be one of {', '.join(map(str, sides))} at stride {stride}, got {side}"
            )
        return ScaleSchedule(self.schedule.template, sides[side], stride)
