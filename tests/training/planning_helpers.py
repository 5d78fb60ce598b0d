"""A small model, random weights everywhere, and batches of chosen geometry for it, without any file."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Qwen2VLConfig

from vargpt.configuration import Behaviour, DecoderConfig, ImageTokenizerConfig, VargptConfig
from vargpt.inputs import ModelInputs
from vargpt.losses import IGNORED
from vargpt.model import VargptForConditionalGeneration
from vargpt.scales import ScaleSchedule

PAD, EOS, START, END, SLOT, IMAGE = 0, 1, 2, 3, 4, 5
BITS, STRIDE, PATCH = 8, 4, 4


def small_config(
    hidden: int = 64,
    layers: int = 2,
    depth: int = 2,
    vocabulary: int = 64,
    preset: str = "vargpt",
    stem: str = "patch",
) -> VargptConfig:
    """A backbone of width 64 and a decoder of width 96 with chosen depths."""
    backbone = Qwen2VLConfig(
        text_config={
            "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": 160, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": PAD, "eos_token_id": EOS,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": hidden, "num_heads": 2, "mlp_ratio": 4,
                       "patch_size": PATCH, "stem": stem},
        image_token_id=IMAGE, video_token_id=6, vision_start_token_id=7, vision_end_token_id=8,
    )  # fmt: skip
    return VargptConfig(
        backbone=backbone,
        decoder=DecoderConfig(hidden_size=96, num_heads=3, depth=depth, num_chunks=1, unconditional_rows=8,
                              drop_path_rate=0.0),
        image_tokenizer=ImageTokenizerConfig(bits=BITS, base_channels=32, channel_multipliers=[1, 2, 2], stride=STRIDE),
        behaviour=Behaviour.from_any(preset),
        num_scales=3,
        image_gen_start_token_id=START,
        image_gen_end_token_id=END,
        image_gen_pad_token_id=SLOT,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )  # fmt: skip


def small_model(config: VargptConfig | None = None, seed: int = 0) -> VargptForConditionalGeneration:
    """The model in evaluation mode; every parameter is random, so nothing is neutral."""
    torch.manual_seed(seed)
    model = VargptForConditionalGeneration(config or small_config()).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("image_tokenizer."):
                size = 0.3 if parameter.ndim < 2 else 0.5 * parameter.shape[-1] ** -0.5
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return model


def small_batch(
    model: VargptForConditionalGeneration,
    rows: int,
    schedule: ScaleSchedule | None,
    *,
    words: int = 12,
    answer: int = 4,
    read_grid: tuple[int, int] | None = None,
    seed: int = 0,
) -> ModelInputs:
    """Rows of equal length: an image of `read_grid` patches to read, words, an image to draw, an answer."""
    generator = torch.Generator().manual_seed(seed)
    read = read_grid[0] * read_grid[1] // 4 if read_grid else 0
    slots = schedule.padded_length(model.behaviour.image_slot_multiple) if schedule else 0
    drawing = [START, *[SLOT] * slots, END] if schedule else []
    text = torch.randint(10, 60, (rows, words + answer), generator=generator).tolist()
    ids = torch.tensor([[*[IMAGE] * read, *row[:words], *drawing, *row[words:]] for row in text])
    targets = ids.clone()
    targets[:, : read + words] = IGNORED
    targets[targets == SLOT] = IGNORED
    columns = ids.shape[1]
    inputs = ModelInputs(
        ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(columns).expand(3, rows, columns),
        text_targets_BT=targets,
    )  # fmt: skip
    if read_grid:
        grid = torch.tensor([[1, *read_grid]] * rows)
        size = 3 * 2 * PATCH * PATCH
        inputs.pixel_values = torch.randn(rows * read_grid[0] * read_grid[1], size, generator=generator)
        inputs.image_grid_thw = grid
    if schedule:
        tokens = schedule.num_tokens
        inputs.schedule = schedule
        inputs.image_sample_I = torch.arange(rows)
        inputs.image_start_I = torch.full((rows,), read + words)
        inputs.labels_ILd = torch.randint(0, 2, (rows, tokens, BITS), generator=generator, dtype=torch.uint8)
        inputs.next_inputs_IMd = torch.randn(rows, tokens - schedule.lengths[0], BITS, generator=generator)
    return inputs


def loss_of(model: VargptForConditionalGeneration, inputs: ModelInputs) -> Tensor:
    """A scalar that depends on every output of a training forward."""
    output = model(inputs, text_logits="targets")
    assert output.target_logits_SV is not None
    loss = output.target_logits_SV.square().mean()
    return loss if output.bit_logits_ILd2 is None else loss + output.bit_logits_ILd2.square().mean()
