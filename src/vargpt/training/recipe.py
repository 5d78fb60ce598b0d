"""Recipes: the YAML files that say how a model is made, stage by stage.

Invariant: a recipe that parses is complete (every default is filled in, and the resolved form is written beside the
results), and a key that the schema does not know is refused with the nearest name that it does.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vargpt.image_tokenizer.training_loss import TokenizerLossWeights
from vargpt.training.trainer import LoopSettings

StageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
"""Lower-case letters, digits, - and _: it is the name of a folder."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ScheduleSection(_Section):
    """The grids that are trained: an aspect template and a prefix of its scales."""

    template: float = 1.0
    num_scales: int = 10


class TextTokenizerSection(_Section):
    """The byte-level BPE trained on the data's own words."""

    vocab_size: int = Field(1024, ge=300)
    system_prompt: str | None = None


class ImageTokenizerSection(_Section):
    """Sizes of the image tokenizer (`ImageTokenizerConfig`)."""

    bits: int = 32
    base_channels: int = 128
    channel_multipliers: list[int] = [1, 2, 4, 4, 4]
    num_res_blocks: int = 2
    stride: int = 16
    patch_size: int = 1


class VisionSection(_Section):
    """Sizes of the vision tower."""

    depth: int = 4
    embed_dim: int = 192
    num_heads: int = 4
    mlp_ratio: int = 4
    patch_size: int = 8
    image_side: int = 64


class BackboneSection(_Section):
    """Sizes of the language model."""

    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    mrope_section: list[int] = [8, 12, 12]


class DecoderSection(_Section):
    """Sizes of the next-scale decoder (`DecoderConfig`)."""

    hidden_size: int = 256
    num_heads: int = 4
    depth: int = 4
    drop_path_rate: float = 0.0


class ModelSection(_Section):
    """All sizes of a model that is trained from scratch, and its behaviour preset."""

    preset: Literal["vargpt", "official"] = "vargpt"
    image_tokenizer: ImageTokenizerSection = ImageTokenizerSection()
    vision: VisionSection = VisionSection()
    backbone: BackboneSection = BackboneSection()
    decoder: DecoderSection = DecoderSection()


class LoopSection(_Section):
    """The loop of one stage; see `LoopSettings` for units."""

    steps: int = Field(gt=0)
    stop_at: int | None = Field(None, gt=0)
    optimizer: Literal["adamw", "muon"] = "adamw"
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup: float = Field(0.02, ge=0, le=1)
    final_learning_rate: float = Field(0.02, ge=0, le=1)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = Field(1.0, gt=0)
    precision: Literal["bf16", "fp32"] = "bf16"
    log_every: int = Field(50, gt=0)
    evaluate_every: int = Field(500, gt=0)
    checkpoint_every: float = Field(120.0, gt=0)

    def settings(self, seed: int) -> LoopSettings:
        """The same as a plain dataclass for the trainer."""
        return LoopSettings(**self.model_dump(), seed=seed)


class TokenizerLossSection(_Section):
    """Weights of the image tokenizer's losses (`TokenizerLossWeights`)."""

    l1: float = 0.2
    laplacian: float = 0.2
    commitment: float = 0.02
    entropy: float = 0.02
    entropy_temperature: float = 1.0

    def weights(self) -> TokenizerLossWeights:
        """The same as a plain dataclass for the loss."""
        return TokenizerLossWeights(**self.model_dump())


class TokenizerStage(_Section):
    """Train the image tokenizer on the folder's images."""

    kind: Literal["tokenizer"]
    name: StageName = "tokenizer"
    loop: LoopSection
    trainable: Literal["all", "decoder"] = "all"
    loss: TokenizerLossSection = TokenizerLossSection()
    flip: bool = True
    zoom: float = Field(0.0, ge=0, lt=1)
    permute_colours: float = Field(0.0, ge=0, le=1)


TrainablePreset = Literal["all", "understanding", "generation", "projectors"]


class Mixture(_Section):
    """Share of each task among the samples of a batch (normalised to sum 1)."""

    draw: float = Field(0.45, ge=0)
    caption: float = Field(0.3, ge=0)
    edit: float = Field(0.25, ge=0)

    @model_validator(mode="after")
    def _something_to_train(self) -> Self:
        if self.draw + self.caption + self.edit <= 0:
            raise ValueError("a mixture needs a share above 0 for draw, caption or edit")
        return self


class SftStage(_Section):
    """Supervised fine-tuning of the unified model on drawing, captioning and editing conversations."""

    kind: Literal["sft"]
    name: StageName = "sft"
    loop: LoopSection
    trainable: TrainablePreset = "all"
    mixture: Mixture = Mixture()
    guidance_drop: float = Field(0.1, ge=0, le=1)
    flip_strength: float = Field(0.3, ge=0, le=1)
    variety: float = Field(0.3, ge=0, le=1)
    image_loss_weight: float = Field(3.0, ge=0)


Stage = Annotated[TokenizerStage | SftStage, Field(discriminator="kind")]


class Recipe(_Section):
    """A whole schedule: what is built and which stages train it, in order."""

    name: str
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**31)
    validation_fraction: float = Field(0.05, ge=0, lt=1)
    schedule: ScheduleSection = ScheduleSection()
    text_tokenizer: TextTokenizerSection = TextTokenizerSection()
    model: ModelSection = ModelSection()
    export_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    stages: list[Stage] = Field(min_length=1)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe, applying overrides of the form `stages.0.loop.steps=100` (values are YAML).

    Raises:
        ValueError: for a file that is not there or not YAML, an unknown key, a wrong value or a bad override.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot read this recipe ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a recipe is a mapping with `name` and `stages`, got {type(data).__name__}")
    for override in overrides or []:
        _apply_override(data, override)
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{path}: {_explain(error)}") from error
    names = [stage.name for stage in recipe.stages]
    if len(set(names)) != len(names) or "model" in names:
        raise ValueError(f"{path}: stage names must differ and none may be 'model' (the result's folder), got {names}")
    return recipe


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    os.replace(partial, path)


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"override {override!r}: expected KEY=VALUE such as stages.0.loop.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r}: the value is not YAML") from error
    target: Any = data
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(target, list):
            target = target[_list_index(target, part, override)]
        elif isinstance(target, dict):
            target = target.setdefault(part, {})
        else:
            raise ValueError(f"override {override!r}: {part!r} is not inside a mapping or a list")
    if isinstance(target, list):
        target[_list_index(target, last, override)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise ValueError(f"override {override!r}: {last!r} is not inside a mapping or a list")


def _list_index(items: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise ValueError(f"override {override!r}: expected an index 0..{len(items) - 1}, got {part!r}")
    return int(part)


def _explain(error: ValidationError) -> str:
    """All that is wrong, each with its place as `--set` would write it."""
    messages = []
    for item in error.errors():
        place, section = _locate(item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), sorted(section.model_fields), n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(section.model_fields)}"
            messages.append(f"unknown key {place!r}; {hint}")
        elif item["type"] == "missing":
            messages.append(f"{place!r} is missing")
        else:
            messages.append(f"{place}: {item['msg'].removeprefix('Value error, ')}, got {item['input']!r}"[:300])
    return "; ".join(messages)


def _locate(loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel]]:
    """A pydantic location as a dotted path, and the innermost section that it passes through."""
    section: type[BaseModel] = Recipe
    place: list[str] = []
    for part in loc:
        if part in _STAGE_KINDS and place and place[-1].isdecimal():
            section = _STAGE_KINDS[str(part)]  # the tag of the union, which is no part of the path
            continue
        place.append(str(part))
        field = section.model_fields.get(str(part))
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            section = field.annotation
    return ".".join(place), section


_STAGE_KINDS: dict[str, type[BaseModel]] = {"tokenizer": TokenizerStage, "sft": SftStage}
