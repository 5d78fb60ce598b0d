"""A goldens folder: sizes, weights under the published names, and recorded tensors of the published code.

Invariant: nothing about sizes, ids, prompts or aspect is assumed; all of it is read from the folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vargpt.checkpoint.tensor_files import SINGLE_NAME
from vargpt.configuration import DecoderConfig, ImageTokenizerConfig, VargptConfig
from vargpt.model import VargptForConditionalGeneration
from vargpt.scales import BUDGETS, NUM_TEMPLATE_SCALES, TEMPLATES, ScaleSchedule

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Goldens:
    """One recording."""

    folder: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The recording's own `config.json`.

        Raises:
            ValueError: if the folder is no goldens folder.
        """
        path = self.folder / "config.json"
        if not path.is_file():
            raise ValueError(f"{self.folder} is no goldens folder: it has no config.json")
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no goldens config: it is not JSON") from error
        needed = ("hf_config", "decoder", "vae")
        if not isinstance(settings, dict) or not all(isinstance(settings.get(name), dict) for name in needed):
            raise ValueError(f"{path} is no goldens config: expected the sections {', '.join(needed)}")
        if not (self.folder / "weights.safetensors").is_file():
            raise ValueError(f"{self.folder} is no goldens folder: it has no weights.safetensors")
        return settings

    def has(self, scenario: str) -> bool:
        """Whether the scenario was recorded."""
        return (self.folder / f"{scenario}.safetensors").is_file()

    def names(self) -> list[str]:
        """Recorded scenarios (files of tensors), sorted."""
        return sorted(path.stem for path in self.folder.glob("*.safetensors") if path.stem != "weights")

    def tensors(self, scenario: str) -> Tensors:
        """All tensors of a scenario."""
        return load_file(self.folder / f"{scenario}.safetensors")

    def norms(self, name: str) -> dict[str, float | None]:
        """Gradient norms by published parameter name."""
        return json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))

    @cached_property
    def config(self) -> VargptConfig:
        """Our configuration of the recorded model, with the published behaviour."""
        decoder, vae = self.settings["decoder"], self.settings["vae"]
        return VargptConfig.from_official(
            self.settings["hf_config"],
            DecoderConfig(
                hidden_size=decoder["embed_dim"],
                num_heads=decoder["num_heads"],
                depth=decoder["depth"],
                num_chunks=decoder["block_chunks"],
                level_embeddings=decoder.get("level_embeddings", 15),
                unconditional_rows=decoder.get("text_maxlen", 512),
                norm_eps=decoder.get("norm_eps", 1e-6),
                mlp_ratio=decoder.get("mlp_ratio", 4),
            ),
            ImageTokenizerConfig(
                bits=vae["bits"],
                base_channels=vae["base_channels"],
                channel_multipliers=list(vae["channel_multipliers"]),
                num_res_blocks=vae.get("num_res_blocks", 2),
                stride=vae.get("patch_size", 2 ** (len(vae["channel_multipliers"]) - 1)),
            ),
        )

    @cached_property
    def template(self) -> float:
        """Key of the aspect template (height over width)."""
        key = float(self.settings.get("h_div_w_template", 1.0))
        return min(TEMPLATES, key=lambda known: abs(known - key))

    def schedule(self, num_scales: int) -> ScaleSchedule:
        """The recording's schedule of this many scales."""
        return ScaleSchedule.from_template(self.template, num_scales, self.config.image_tokenizer.stride)

    def schedule_of_tokens(self, num_tokens: int) -> ScaleSchedule:
        """The schedule with exactly this many image tokens."""
        for num_scales in range(1, NUM_TEMPLATE_SCALES + 1):
            schedule = self.schedule(num_scales)
            if schedule.num_tokens == num_tokens:
                return schedule
        raise ValueError(f"no prefix of the template {self.template:g} has {num_tokens} tokens")

    def recorded_schedules(self) -> dict[str, dict[str, Any]]:
        """The recording's own scale tables by budget name."""
        return {name: value for name, value in self.settings.get("schedules", {}).items() if name in BUDGETS}

    def load(self) -> VargptForConditionalGeneration:
        """Load the weights through `from_pretrained`, float32, in evaluation mode."""
        with tempfile.TemporaryDirectory(prefix="vargpt-goldens-") as scratch:
            os.symlink((self.folder / "weights.safetensors").resolve(), Path(scratch) / SINGLE_NAME)
            return VargptForConditionalGeneration.from_pretrained(scratch, config=self.config, dtype=torch.float32)


@contextmanager
def bfloat16_cross_attention(model: VargptForConditionalGeneration) -> Iterator[None]:
    """Round cross-attention as the published kernel does, for a while."""
    before = model.behaviour
    model.set_behaviour(dataclasses.replace(before, cross_attention_dtype="bfloat16"))
    try:
        yield
    finally:
        model.set_behaviour(before)


def pixels(images_u8: Tensor) -> Tensor:
    """Recorded bytes [B, H, W, 3] as images [B, 3, H, W] in [-1, 1]."""
    return images_u8.permute(0, 3, 1, 2).float() / 255 * 2 - 1
