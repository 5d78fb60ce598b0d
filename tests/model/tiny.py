"""A tiny model in which no parameter is at a neutral value, and inputs for it, without any file."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Qwen2VLConfig

from vargpt.configuration import Behaviour, DecoderConfig, ImageTokenizerConfig, VargptConfig
from vargpt.inputs import ModelInputs
from vargpt.losses import all_token_targets
from vargpt.model import VargptForConditionalGeneration
from vargpt.scales import ScaleSchedule

BOS, EOS, START, END, SLOT, IMAGE = 0, 1, 2, 3, 4, 5
VOCABULARY = 64
SCHEDULE = ScaleSchedule.from_template(1.0, 3, stride=2)  # 1x1, 2x2, 4x4: 21 tokens, 8x8 pixels
BITS = 6


def tiny_config(behaviour: Behaviour | dict | str = "vargpt") -> VargptConfig:
    """A backbone of width 32, a decoder of width 48 with 8 unconditional rows, 8x8 pixels."""
    backbone = Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": BOS, "eos_token_id": EOS,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4},
        image_token_id=IMAGE, video_token_id=6, vision_start_token_id=7, vision_end_token_id=8,
    )  # fmt: skip
    return VargptConfig(
        backbone=backbone,
        decoder=DecoderConfig(hidden_size=48, num_heads=3, depth=2, num_chunks=1, unconditional_rows=8),
        image_tokenizer=ImageTokenizerConfig(bits=BITS, base_channels=32, channel_multipliers=[1, 1], stride=2),
        behaviour=Behaviour.from_any(behaviour),
        num_scales=3,
        image_gen_start_token_id=START,
        image_gen_end_token_id=END,
        image_gen_pad_token_id=SLOT,
        eos_token_id=EOS,
        pad_token_id=BOS,
    )


def tiny_model(behaviour: Behaviour | dict | str = "vargpt", seed: int = 0) -> VargptForConditionalGeneration:
    """A model in evaluation mode whose every parameter is random."""
    model = VargptForConditionalGeneration(tiny_config(behaviour)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("image_tokenizer."):
                size = 0.5 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return model


def random_tokens(length: int, seed: int) -> list[int]:
    """Ordinary words."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, VOCABULARY, (length,), generator=generator).tolist()


def image_tokens(behaviour: Behaviour, schedule: ScaleSchedule = SCHEDULE) -> list[int]:
    """Start, slots and end of one generated image."""
    return [START] + [SLOT] * schedule.padded_length(behaviour.image_slot_multiple) + [END]


def prompts(rows: list[list[int]], pad_left: int = 0) -> ModelInputs:
    """Left-padded prompts with consecutive positions."""
    longest = max(len(row) for row in rows) + pad_left
    ids = torch.full((len(rows), longest), BOS)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    positions = torch.ones(3, len(rows), longest, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, longest - len(row) :] = torch.tensor(row)
        mask[index, longest - len(row) :] = True
        positions[:, index, longest - len(row) :] = torch.arange(len(row))
    return ModelInputs(ids, mask, positions)


def conversations(
    model: VargptForConditionalGeneration, rows: list[list[int]], bits_ILd: Tensor, drop: list[bool] | None = None
) -> ModelInputs:
    """Right-padded conversations; every START in a row begins an image, whose bits are given in order."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [BOS] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
    samples, starts = (ids == START).nonzero(as_tuple=True)
    canvas, following = None, []
    for scale_index in range(SCHEDULE.num_scales):
        bits = bits_ILd[:, SCHEDULE.slice(scale_index)]
        canvas, next_inputs = model.image_tokenizer.advance(canvas, bits, scale_index, SCHEDULE)
        if next_inputs is not None:
            following.append(next_inputs)
    return ModelInputs(
        ids,
        mask,
        torch.arange(longest).expand(3, len(rows), longest),
        schedule=SCHEDULE,
        image_sample_I=samples,
        image_start_I=starts,
        labels_ILd=bits_ILd,
        next_inputs_IMd=torch.cat(following, dim=1),
        drop_start_I=torch.tensor(drop or [False] * len(samples)),
        text_targets_BT=all_token_targets(ids, SLOT),
    )


def random_bits(images: int, seed: int = 0) -> Tensor:
    """Bits of whole images, uint8 [I, L, d]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (images, SCHEDULE.num_tokens, BITS), generator=generator, dtype=torch.uint8)
