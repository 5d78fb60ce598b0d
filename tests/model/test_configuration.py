"""Configurations: presets, switches, the published flat form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_config

from vargpt.configuration import Behaviour, DecoderConfig, VargptConfig


def test_presets_differ_in_every_switch_but_the_kernel_rounding() -> None:
    official, ours = Behaviour.official(), Behaviour.vargpt()
    same = [name for name in vars(official) if getattr(official, name) == getattr(ours, name)]
    assert same == ["cross_attention_dtype"]


def test_unknown_switch_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean guidance_context"):
        Behaviour.from_any({"guidance_contxt": "official"})
    with pytest.raises(ValueError, match="must be one of official, history, got 'cache'"):
        Behaviour.from_any({"guidance_backbone": "cache"})


def test_behaviour_survives_saving(tmp_path: Path) -> None:
    config = tiny_config({"image_slot_multiple": 8})
    config.save_pretrained(tmp_path)
    loaded = VargptConfig.from_pretrained(tmp_path)
    assert loaded.behaviour == config.behaviour
    assert loaded.decoder.hidden_size == 48
    assert loaded.backbone.text_config.rope_parameters["mrope_section"] == [1, 1, 2]


def test_published_flat_configuration(shared: Path) -> None:
    flat = json.loads((shared / "goldens" / "full-size-config.json").read_text())
    config = VargptConfig.from_dict({**flat, "a_field_of_the_future": 1})
    assert config.behaviour == Behaviour.official()
    text, vision = config.backbone.text_config, config.backbone.vision_config
    assert (text.hidden_size, text.num_hidden_layers, text.rms_norm_eps) == (3584, 28, 1e-6)
    # Absent in the file: the published class's own defaults.
    assert (vision.depth, vision.embed_dim, vision.hidden_size) == (32, 1280, 3584)
    assert text.rope_parameters["rope_type"] == "default"
    assert config.image_gen_pad_token_id == 151659


def test_both_spellings_of_mrope_mean_the_same(shared: Path) -> None:
    flat = json.loads((shared / "goldens" / "full-size-config.json").read_text())
    plain = VargptConfig.from_official(flat)
    flat["rope_scaling"] = {"type": "mrope", "mrope_section": [16, 24, 24]}
    other = VargptConfig.from_official(flat)
    assert plain.backbone.text_config.rope_parameters == other.backbone.text_config.rope_parameters


def test_sizes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        DecoderConfig(hidden_size=60, num_heads=6)
    with pytest.raises(ValueError, match="num_chunks"):
        DecoderConfig(depth=3, num_chunks=2)
    with pytest.raises(ValueError, match="below the 152064 embedding rows"):
        VargptConfig(image_gen_start_token_id=200000)
    assert DecoderConfig(hidden_size=160, num_heads=4).ffn_size == 512  # 2.5 rounds to even
