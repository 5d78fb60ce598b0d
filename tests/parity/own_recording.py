"""A goldens folder of other sizes, aspect and ids, recorded from our own code.

It proves nothing about exactness; it shows that `verify` assumes no size, id, prompt or aspect of one recording.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vargpt.checkpoint.official_keys import official_key_table
from vargpt.model.events import ImageDone, ScaleDone, TextDelta
from vargpt.sampling import Sampling, likelier_bits, pixels_to_uint8
from vargpt.verification.goldens import Goldens, pixels
from vargpt.verification.patches import recorded_patches, recorded_positions
from vargpt.verification.training import intermediate_values, run_training, training_inputs

START, END, PAD, IMAGE, EOS = 61, 63, 66, 70, 3


@dataclass(frozen=True)
class Sizes:
    """What differs between recordings."""

    template: float = 0.75
    num_scales: int = 4
    bits: int = 12
    width: int = 192
    heads: int = 3
    depth: int = 3
    chunks: int = 3
    text_width: int = 48
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 2)


def settings(sizes: Sizes) -> dict[str, Any]:
    """The recording's config.json."""
    return {
        "hf_config": {
            "model_type": "vargpt_qwen2_vl",
            "vocab_size": 90, "hidden_size": sizes.text_width, "intermediate_size": 80,
            "num_hidden_layers": 1,
            "num_attention_heads": sizes.text_width // 16, "num_key_value_heads": 1,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "rope_theta": 10000.0,
            "bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": 0, "image_token_id": IMAGE, "video_token_id": 71,
            "vision_start_token_id": 72, "vision_end_token_id": 73, "tie_word_embeddings": False,
            "vision_config": {
                "depth": 1, "embed_dim": 24, "hidden_size": sizes.text_width, "num_heads": 3, "mlp_ratio": 2,
                "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
            },
            "special_tokens": {
                "image_gen_start_token_id": START, "image_gen_end_token_id": END, "image_gen_pad_token_id": PAD,
            },
        },
        "decoder": {
            "embed_dim": sizes.width, "num_heads": sizes.heads, "depth": sizes.depth, "block_chunks": sizes.chunks,
            "text_maxlen": 40, "level_embeddings": 14, "mlp_ratio": 3,
        },
        "vae": {"bits": sizes.bits, "base_channels": 32, "channel_multipliers": list(sizes.multipliers)},
        "h_div_w_template": sizes.template,
        "generation": {"cfg": 2.0, "tau": 0.7},
        "training": {"lambda_image_loss": 2.0},
    }  # fmt: skip


def write_weights(folder: Path) -> None:
    """Random weights under the published names, small enough for sane activations."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for entry in official_key_table(Goldens(folder).config):
        fan_in = max(1, entry.official_shape[-1])
        value = torch.randn(entry.official_shape, generator=generator) * fan_in**-0.5
        if entry.official.endswith("norm.weight") or (".norm" in entry.official and entry.official.endswith("weight")):
            value = 1 + 0.1 * value
        tensors[entry.official] = entry.initial_value(torch.float32) if entry.buffer else value
    (folder / "weights.safetensors").unlink(missing_ok=True)
    save_file(tensors, folder / "weights.safetensors")


def write_recording(folder: Path, sizes: Sizes) -> Path:
    """Record training, drawing and editing."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(settings(sizes)))
    (folder / "weights.safetensors").touch()
    write_weights(folder)
    goldens = Goldens(folder)
    model = goldens.load()
    generator = torch.Generator().manual_seed(6)
    schedule = goldens.schedule(sizes.num_scales)
    height, width = schedule.image_size
    images = torch.randint(0, 256, (2, height, width, 3), generator=generator, dtype=torch.uint8)
    picture = torch.randint(0, 256, (56, 84, 3), generator=generator, dtype=torch.uint8)

    with torch.no_grad():
        encoded = model.image_tokenizer.encode(pixels(images), schedule)
    tokenizer = {"images_u8": images, "clean.x_BLC_wo_prefix": encoded.next_inputs_BMd}
    for scale in range(sizes.num_scales):
        tokenizer[f"clean.bits_{scale}"] = encoded.labels_BLd[:, schedule.slice(scale)].contiguous()
    save_file(tokenizer, folder / "tokenizer.safetensors")

    slots = [PAD] * schedule.padded_length(128)
    rows = [[5, 6, 7, START, *slots, END, EOS, 0, 0], [5, 6, 7, 8, 9, START, *slots, END, EOS]]
    batch = {
        "images_u8": images,
        "input_ids": torch.tensor(rows, dtype=torch.int32),
        "attention_mask": (torch.tensor(rows) != 0).to(torch.uint8),
    }
    with torch.no_grad():
        run = run_training(model, training_inputs(goldens, model, batch), 2.0)
        values = intermediate_values(model, run)
    kept = ("gen_logits", "image_gen_labels", "cross_kv", "cond_BD", "total_loss", "llm_hidden", "decoder_in", "x_BLC")
    save_file({**batch, **{name: values[name].contiguous() for name in kept}}, folder / "train.safetensors")

    save_file(record_generation(goldens, sizes, [5, 6, 7, 8], [11, START], None), folder / "gen_t2i.safetensors")
    prompt = [5, 72, *[IMAGE] * 6, 73, 6]
    save_file(record_generation(goldens, sizes, prompt, [START], picture), folder / "gen_edit.safetensors")
    return folder


def record_generation(
    goldens: Goldens, sizes: Sizes, prompt: list[int], forced: list[int], picture: Tensor | None
) -> dict[str, Tensor]:
    """One drawing with forced words and the likelier bits."""
    from vargpt.inputs import ModelInputs

    model, ids = goldens.load(), torch.tensor([prompt])
    recorded: dict[str, Tensor] = {"input_ids": ids.int(), "forced_tokens": torch.tensor(forced)}
    patches = grid = None
    if picture is not None:
        patches, grid = recorded_patches(model.config, picture)
        recorded |= {"input_image_u8": picture, "pixel_values": patches, "image_grid_thw": grid}
    mask = torch.ones_like(ids, dtype=torch.bool)
    positions, _ = recorded_positions(model.config, ids, mask, grid)
    remaining = list(forced)
    sequence = list(prompt)

    def choose_token(logits_V: Tensor, sequence: int, step: int) -> int:
        return remaining.pop(0) if remaining else int(logits_V.argmax())

    def choose_bits(logits_ld2: Tensor, sequence: int, image: int, scale_index: int) -> Tensor:
        return likelier_bits(logits_ld2)

    events = model.generate(
        ModelInputs(ids, mask, positions, patches, grid),
        Sampling.official(guidance_scale=2.0, temperature=0.7, max_new_tokens=len(forced)),
        schedule=goldens.schedule(sizes.num_scales),
        bit_sampler=choose_bits,
        token_sampler=choose_token,
        trace=True,
    )
    for event in events:
        if isinstance(event, TextDelta):
            sequence.append(event.token_id)
        elif isinstance(event, ScaleDone):
            assert event.trace is not None
            recorded[f"scale{event.scale_index}.bits"] = event.bits_ld
            recorded[f"scale{event.scale_index}.guided_logits"] = event.trace.guided_logits_ld2
            recorded[f"scale{event.scale_index}.cond_past_len"] = torch.tensor(event.trace.past_length)
        elif isinstance(event, ImageDone):
            assert event.stray_token_id is not None
            recorded["summed_codes"] = event.canvas_1dhw
            recorded["image"] = event.image_3HW[None]
            recorded["image_u8_rgb"] = pixels_to_uint8(event.image_3HW[None], "official")[0]
            recorded["sequences"] = torch.tensor([[*sequence, START, event.stray_token_id]])
    return {name: value.contiguous() for name, value in recorded.items()}
