"""The count of operations against PyTorch's own counter, forward and backward of a real model."""

from __future__ import annotations

import functools

import pytest
import torch
from planning_helpers import BITS, STRIDE, loss_of, small_batch, small_config, small_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_layers import GradientCheckpointingLayer

from vargpt.model import VargptForConditionalGeneration
from vargpt.scales import ScaleSchedule
from vargpt.training.planning.flops import (
    Adapter,
    Flops,
    RowShape,
    WorkCounter,
    tokenizer_flops,
    tokenizer_training_flops,
)
from vargpt.training.recipes.schema import LoraSection, TrainablePreset
from vargpt.training.weights import adapters
from vargpt.training.weights.trainable import set_trainable

SCHEDULE = ScaleSchedule(1.0, 6, STRIDE)  # 265 tokens
ROWS = 2


def counted(model: VargptForConditionalGeneration, drawing: bool, reading: bool, recompute: bool = False) -> Flops:
    """What PyTorch counts for a row of a batch."""
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for block in blocks:
        block.training = block.gradient_checkpointing = recompute
        block._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)
    inputs = small_batch(model, ROWS, SCHEDULE if drawing else None, words=30, answer=10,
                         read_grid=(8, 12) if reading else None)  # fmt: skip
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = loss_of(model, inputs)
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    model.zero_grad(set_to_none=True)
    return Flops(forward.get_total_flops() / ROWS, backward.get_total_flops() / ROWS)


def shape(model: VargptForConditionalGeneration, drawing: bool, reading: bool) -> RowShape:
    """The same row as sizes."""
    slots = SCHEDULE.padded_length(model.behaviour.image_slot_multiple) if drawing else 0
    read = 24 if reading else 0
    return RowShape(
        columns=read + 40 + (slots + 2 if drawing else 0), targets=12 if drawing else 10,
        schedule=SCHEDULE if drawing else None, slots=slots, context=read + 30 if drawing else 0,
        read_patches=(96.0,) if reading else (),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> VargptForConditionalGeneration:
    return small_model(small_config(layers=4, depth=4))


@pytest.mark.parametrize(
    ("preset", "drawing", "reading"),
    [
        ("all", True, True),
        ("all", False, True),
        ("generation", True, True),
        ("generation", True, False),
        ("projectors", True, False),
        ("language", True, False),
        ("language_and_merger", False, True),
        ("all_but_vision", True, True),
        ("understanding", False, True),
    ],
)
def test_forward_and_backward_are_what_pytorch_counts(
    model: VargptForConditionalGeneration, preset: TrainablePreset, drawing: bool, reading: bool
):
    set_trainable(model, preset)
    expected = counted(model, drawing, reading)
    got = WorkCounter(model).row(shape(model, drawing, reading))
    assert got.forward == pytest.approx(expected.forward, rel=0.01)
    assert got.backward == pytest.approx(expected.backward, rel=0.02)
    assert got.recompute == 0


@pytest.mark.parametrize("preset", ["all", "understanding", "generation"])
def test_a_convolutional_stem_is_counted(preset: TrainablePreset):
    model = small_model(small_config(stem="convolution"))
    set_trainable(model, preset)
    stem = model.backbone.visual.patch_embed
    images = torch.rand(1, 3, 8 * 4, 12 * 4, requires_grad=True)
    with FlopCounterMode(display=False) as real:
        hidden = stem.first(images)
        for norm, convolution in zip(stem.norms, stem.deeper, strict=True):
            hidden = convolution(norm(hidden))
    assert tuple(hidden.shape[2:]) == (8, 12)
    parts = WorkCounter(model)
    alone = sum((parts._linear(name, 96, False) for name in ("vision embed", "vision stem")), Flops())
    assert alone.forward == real.get_total_flops()
    expected, got = counted(model, True, True), parts.row(shape(model, True, True))
    assert got.forward == pytest.approx(expected.forward, rel=0.01)
    assert got.backward == pytest.approx(expected.backward, rel=0.02)


def test_padded_slots_are_counted():
    model = small_model(small_config(preset="official"))
    set_trainable(model, "all")
    expected, got = counted(model, True, False), WorkCounter(model).row(shape(model, True, False))
    assert shape(model, True, False).slots == 384
    assert got.total == pytest.approx(expected.total, rel=0.02)


@pytest.mark.parametrize("preset", ["all", "generation"])
def test_recomputed_forwards_are_counted(model: VargptForConditionalGeneration, preset: TrainablePreset):
    set_trainable(model, preset)
    plain = counted(model, True, True)
    again = counted(model, True, True, recompute=True)
    got = WorkCounter(model).row(shape(model, True, True), recompute=True)
    assert got.recompute == pytest.approx(again.total - plain.total, rel=0.01)


def test_adapters_are_counted():
    model = small_model(small_config(layers=4, depth=4))
    section = LoraSection(rank=8, alpha=8.0, targets=r"backbone\.language_model\..*_proj")
    layers = adapters.target_layers(model, section)
    described = {name: Adapter(*[8 * (layer.in_features + layer.out_features)] * 2) for name, layer in layers.items()}
    set_trainable(model, "none")
    got = WorkCounter(model, described).row(shape(model, True, False))
    adapters.inject(model, "s", section, 0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    for module in model.modules():
        if module.__class__.__module__.startswith("peft"):
            adapters._set_active(module, ["stage-s"]) if "Linear" in type(module).__name__ else None
    expected = counted(model, True, False)
    assert got.forward == pytest.approx(expected.forward, rel=0.01)
    assert got.backward == pytest.approx(expected.backward, rel=0.04)  # the first layer's inputs need no gradient


def test_the_image_tokenizer_is_counted(model: VargptForConditionalGeneration):
    """A hand count of one convolution, and training as three times the forward but for the first layer."""
    with torch.device("meta"):
        tokenizer = VargptForConditionalGeneration(small_config()).image_tokenizer
    encode, decode = tokenizer_flops(tokenizer, 32, 32)
    first = 2 * 32 * 32 * 3 * 32 * 9  # pixels, channels in and out, taps
    images = torch.rand(1, 3, 32, 32)
    with FlopCounterMode(display=False) as real:
        model.image_tokenizer.decoder(model.image_tokenizer.encoder(images))
    assert encode + decode == real.get_total_flops() and encode > first
    tokenizer.requires_grad_(True)
    assert tokenizer_training_flops(tokenizer, 32, 32) == Flops(encode + decode, 2 * (encode + decode) - first)
    tokenizer.encoder.requires_grad_(False)
    assert tokenizer_training_flops(tokenizer, 32, 32).backward < 2 * decode
    assert BITS == 8


def test_sums_and_multiples():
    assert (Flops(1, 2, 3) + Flops(10, 20, 30)).times(2) == Flops(22, 44, 66)
    assert Flops(1, 2, 3).total == 6
