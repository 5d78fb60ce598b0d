"""A small model's configuration and a checkpoint of it in the published layout, without any recording."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen2VLConfig

from vargpt.checkpoint.convert import official_config
from vargpt.checkpoint.official_keys import official_key_table
from vargpt.configuration import Behaviour, DecoderConfig, ImageTokenizerConfig, VargptConfig


def small_config(hidden_size: int = 32, depth: int = 4) -> VargptConfig:
    """Sizes that the published layout can express, with ids unlike the published ones."""
    backbone = Qwen2VLConfig(
        text_config={
            "vocab_size": 96, "hidden_size": hidden_size, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": hidden_size, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=85, video_token_id=86, vision_start_token_id=87, vision_end_token_id=88,
    )  # fmt: skip
    return VargptConfig(
        backbone=backbone,
        decoder=DecoderConfig(hidden_size=128, num_heads=4, depth=depth, num_chunks=2, unconditional_rows=24),
        image_tokenizer=ImageTokenizerConfig(bits=8, base_channels=32, channel_multipliers=[1, 1, 2], stride=4),
        behaviour=Behaviour.official(),
        num_scales=3,
        image_gen_start_token_id=90,
        image_gen_end_token_id=91,
        image_gen_pad_token_id=92,
        eos_token_id=2,
        pad_token_id=1,
    )


def official_tensors(config: VargptConfig, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random weights under the published names; buffers at their known values."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for entry in official_key_table(config):
        value = torch.randn(entry.official_shape, generator=generator, dtype=torch.float32).to(dtype)
        tensors[entry.official] = entry.initial_value(dtype) if entry.buffer else value
    return tensors


def write_official(folder: Path, config: VargptConfig, tensors: dict[str, torch.Tensor]) -> Path:
    """A folder in the published layout."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(official_config(config)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
