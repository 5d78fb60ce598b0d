"""The sections of a recipe that say how large a model is.

Invariant: plain sizes with defaults; what they mean together is checked where the model's configuration is built.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vargpt.configuration import Behaviour

Part = Literal["vision", "backbone", "decoder"]
"""Parts of a model that are stacks of layers."""


class Section(BaseModel):
    """A part of a recipe, which refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid")


class ScheduleSection(Section):
    """The grids that are trained: an aspect template and a prefix of its scales."""

    template: float = 1.0
    num_scales: int = 10


class TextTokenizerSection(Section):
    """The byte-level BPE trained on the data's own words."""

    vocab_size: int = Field(1024, ge=300)
    system_prompt: str | None = None


class ImageTokenizerSection(Section):
    """Sizes of the image tokenizer (`ImageTokenizerConfig`)."""

    bits: int = 32
    base_channels: int = 128
    channel_multipliers: list[int] = [1, 2, 4, 4, 4]
    num_res_blocks: int = 2
    stride: int = 16
    patch_size: int = 1


class VisionSection(Section):
    """Sizes of the vision tower; `stem: convolution` reads pictures by convolutions (`vargpt.model.stem`)."""

    stem: Literal["patch", "convolution"] = "patch"
    depth: int = 4
    embed_dim: int = 192
    num_heads: int = 4
    mlp_ratio: int = 4
    patch_size: int = 8
    image_side: int = 64


class BackboneSection(Section):
    """Sizes of the language model."""

    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    mrope_section: list[int] = [8, 12, 12]


class DecoderSection(Section):
    """Sizes of the next-scale decoder (`DecoderConfig`)."""

    hidden_size: int = 256
    num_heads: int = 4
    depth: int = 4
    drop_path_rate: float = 0.0


class ModelSection(Section):
    """All sizes of a model that is trained from scratch, its behaviour preset, and the switches that differ from it.

    The switches in `behaviour` (`vargpt.configuration.Behaviour`) hold for a model that `init` brings, too.
    """

    preset: Literal["vargpt", "official"] = "vargpt"
    behaviour: dict[str, str | int] = Field(default_factory=dict)
    image_tokenizer: ImageTokenizerSection = ImageTokenizerSection()
    vision: VisionSection = VisionSection()
    backbone: BackboneSection = BackboneSection()
    decoder: DecoderSection = DecoderSection()

    @field_validator("behaviour")
    @classmethod
    def _known_switches(cls, value: dict[str, str | int]) -> dict[str, str | int]:
        Behaviour.from_any(value)
        return value

    def switched(self, behaviour: Behaviour | None = None) -> Behaviour:
        """This behaviour, the preset's by default, with the recipe's switches."""
        return replace(behaviour or Behaviour.from_any(self.preset), **self.behaviour)  # type: ignore[arg-type]
