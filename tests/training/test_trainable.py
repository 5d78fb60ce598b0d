"""Trainable presets: which parameters of the full-size model each of them names (spec 1.1 and 9.1)."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from transformers import Qwen2VLConfig

from vargpt.configuration import VargptConfig
from vargpt.model import VargptForConditionalGeneration
from vargpt.training.recipes.schema import TrainablePreset
from vargpt.training.weights.trainable import TRAINABLE, is_adapter, set_trainable

VISION, MERGER, LANGUAGE, HEAD = 675_759_104, 44_575_744, 7_070_619_136, 544_997_376
DECODER, PROJECTORS, START, TOKENIZER = 2_191_974_976, 11_539_968 + 20_190_720, 2048, 110_118_051
TEXT = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> VargptForConditionalGeneration:
    """The 7B+2B model without memory."""
    backbone = Qwen2VLConfig(text_config=TEXT, vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 3584})
    with torch.device("meta"):
        return VargptForConditionalGeneration(VargptConfig(backbone=backbone))


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("projectors", PROJECTORS),
        ("projectors_and_start", PROJECTORS + START),
        ("language", LANGUAGE + HEAD),
        ("language_and_merger", LANGUAGE + HEAD + MERGER),
        ("generation", DECODER + PROJECTORS + START),
        ("all_but_vision", LANGUAGE + HEAD + DECODER + PROJECTORS + START),
        ("understanding", VISION + LANGUAGE + HEAD),
        ("all", VISION + LANGUAGE + HEAD + DECODER + PROJECTORS + START),
        ("none", 0),
    ],
)
def test_a_preset_trains_exactly_its_parameters(
    model: VargptForConditionalGeneration, preset: TrainablePreset, expected: int
):
    model.requires_grad_(True)
    set_trainable(model, preset)
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == expected


def test_every_preset_of_the_schema_is_defined_and_none_touches_the_image_tokenizer(
    model: VargptForConditionalGeneration,
):
    assert set(TRAINABLE) == set(get_args(TrainablePreset))
    assert sum(parameter.numel() for parameter in model.image_tokenizer.parameters()) == TOKENIZER
    for preset in get_args(TrainablePreset):
        model.requires_grad_(True)
        set_trainable(model, preset)
        assert not any(parameter.requires_grad for parameter in model.image_tokenizer.parameters())


def test_adapters_are_told_from_the_weights_they_sit_on():
    layer = "backbone.language_model.layers.0.self_attn.q_proj"
    assert is_adapter(f"{layer}.lora_A.sft.weight") and is_adapter(f"{layer}.lora_B.sft.weight")
    assert not is_adapter(f"{layer}.base_layer.weight") and not is_adapter(f"{layer}.weight")
