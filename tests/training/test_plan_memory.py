"""Memory of a plan against real tensors: exact for what is kept, within a tenth for what the backward needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from planning_helpers import loss_of, small_batch, small_config, small_model
from torch import Tensor, nn

from vargpt.model import VargptForConditionalGeneration
from vargpt.scales import ScaleSchedule
from vargpt.training.loop.averaging import MovingAverage
from vargpt.training.loop.optim import build_optimizers
from vargpt.training.loop.settings import LoopSettings
from vargpt.training.planning.flops import RowShape, WorkCounter
from vargpt.training.planning.plan_memory import (
    DECODER_BYTES,
    LANGUAGE_BYTES,
    VISION_BYTES,
    Sizes,
    activation_memory,
    gathered_memory,
    parameter_memory,
    tokenizer_activations,
)
from vargpt.training.recipes.schema import LoraSection, TrainablePreset
from vargpt.training.weights import adapters
from vargpt.training.weights.trainable import set_trainable

SCHEDULE = ScaleSchedule(1.0, 3, 4)
LOOP = LoopSettings(steps=2, batch_size=2, learning_rate=0.01)
LORA = LoraSection(rank=2, alpha=2.0, targets=r"backbone\.language_model\..*q_proj")


def float32(name: str, axes: int) -> torch.dtype:
    del name, axes
    return torch.float32


def nbytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("preset", ["all", "generation", "projectors", "language_and_merger"])
def test_what_is_kept_between_steps_is_counted_to_the_byte(preset: TrainablePreset, optimizer: str):
    model = small_model()
    set_trainable(model, preset)
    settings = LoopSettings(**{**vars(LOOP), "optimizer": optimizer, "ema": 0.9})
    planned = parameter_memory(model, Sizes(float32, 1, reference="copy"), settings)
    optimizers = build_optimizers(model, settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    average = MovingAverage(trained, 0.9)
    for one, _ in optimizers:
        one.step()
    state = [value for one, _ in optimizers for values in one.state.values() for value in values.values()]
    assert planned == {
        "weights": nbytes(list(model.parameters())),
        "gradients": nbytes([parameter.grad for parameter in trained if parameter.grad is not None]),
        "optimizer": nbytes([value for value in state if isinstance(value, Tensor)]),
        "averages": nbytes(list(average.tensors)),
        "reference": nbytes(trained),
    }


def test_ranks_share_everything_but_the_image_tokenizer():
    model = small_model()
    set_trainable(model, "generation")
    tokenizer = nbytes(list(model.image_tokenizer.parameters()))
    one = parameter_memory(model, Sizes(float32, 1), LOOP)
    four = parameter_memory(model, Sizes(float32, 4, reference="copy"), LOOP)
    assert four["weights"] == tokenizer + (one["weights"] - tokenizer) / 4
    assert four["gradients"] == one["gradients"] / 4
    assert four["reference"] == four["weights"]  # sharded weights are copied whole


def test_adapters_and_small_frozen_weights_are_counted():
    model = small_model()
    set_trainable(model, "none")
    size = adapters.adapter_size(model, LORA)
    assert size == 2 * 2 * (64 + 64)
    half = Sizes(lambda name, axes: torch.bfloat16 if axes > 1 else torch.float32, 1, adapters=3 * size,
                 trained_adapters=size)  # fmt: skip
    memory = parameter_memory(model, half, LOOP)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim < 2)
    assert memory["weights"] == 2 * matrices + 4 * vectors + 4 * 3 * size
    assert (memory["gradients"], memory["optimizer"]) == (4 * size, 8 * size)


def saved_bytes(function: Callable[[], object], module: nn.Module) -> int:
    """Bytes that autograd keeps for the backward, without the module's weights and their casts."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    matrices = {parameter.numel() for parameter in module.parameters() if parameter.ndim == 2}
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        cast = value.ndim == 2 and value.numel() in matrices and value.dtype == torch.bfloat16
        if storage.data_ptr() not in own and not cast:
            kept[storage.data_ptr()] = (storage.nbytes(), value)
        return value

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
        torch.autocast("cpu", torch.bfloat16),
    ):
        function()
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("trained", [True, False])
def test_a_layer_of_the_language_model_keeps_what_is_planned(trained: bool):
    config = small_config(hidden=320)
    config.backbone.text_config.rope_parameters["mrope_section"] = [8, 16, 16]
    layer = VargptForConditionalGeneration(config).backbone.language_model.layers[0].requires_grad_(trained)
    rope = VargptForConditionalGeneration(config).backbone.language_model.rotary_emb
    values = torch.randn(1, 150, 320, requires_grad=True)
    positions = torch.arange(150).expand(3, 1, 150)
    mask = torch.ones(1, 1, 150, 150, dtype=torch.bool).tril()
    found = saved_bytes(
        lambda: layer(values, attention_mask=mask, position_embeddings=rope(values, positions)), layer
    )  # fmt: skip
    width, hidden = LANGUAGE_BYTES[trained]
    rotary = 2 * 4 * 80 * 150  # one table for all layers
    assert found - rotary == pytest.approx(150 * (width * 320 + hidden * 160 + 2 * 150), rel=0.03)


@pytest.mark.parametrize("trained", [True, False])
def test_a_block_of_the_vision_tower_keeps_what_is_planned(trained: bool):
    config = small_config()
    config.backbone.vision_config.embed_dim = 320
    block = VargptForConditionalGeneration(config).backbone.visual.blocks[0].requires_grad_(trained)
    values, angles = torch.randn(120, 320, requires_grad=True), torch.randn(120, 160)
    ends = torch.tensor([0, 120], dtype=torch.int32)
    found = saved_bytes(lambda: block(values, cu_seqlens=ends, position_embeddings=(angles, angles)), block)
    assert found == pytest.approx(120 * VISION_BYTES[trained] * 320, rel=0.05)


@pytest.mark.parametrize("trained", [True, False])
def test_a_block_of_the_decoder_keeps_what_is_planned(trained: bool):
    config = small_config()
    config.decoder.hidden_size, config.decoder.num_heads = 384, 3
    block = VargptForConditionalGeneration(config).decoder.blocks[0].requires_grad_(trained)
    values = torch.randn(1, 140, 384, requires_grad=True)
    context = torch.randn(1, 60, 384, dtype=torch.bfloat16, requires_grad=True)
    modulation = torch.randn(1, 6, 384, requires_grad=trained)
    angles, mask = torch.randn(140, 64), torch.ones(140, 140, dtype=torch.bool)

    def forward() -> object:
        pair = block.cross_attention.keys_values(context)  # type: ignore[operator, union-attr]
        return block(values, modulation, (angles, angles), mask, pair, None)

    image, rows = DECODER_BYTES[trained]
    planned = 140 * (image * 384 + 2 * 140) + 60 * rows * 384
    assert saved_bytes(forward, block) == pytest.approx(planned, rel=0.05)


def test_recomputed_activations_keep_the_inputs_of_blocks():
    """By hand, one layer of each kind: inputs of all blocks, twice the largest, embeddings, slots, logits."""
    model = small_model(small_config(layers=1, depth=1))
    set_trainable(model, "all")
    row = RowShape(columns=40, targets=6, schedule=SCHEDULE, slots=21, context=12)
    activations, logits = activation_memory(model, WorkCounter(model), row, True)
    language = 40 * (34 * 64 + 8 * 160 + 2 * 40)
    decoder = 21 * (67 * 96 + 2 * 21)
    inputs = 4 * 40 * 64 + 4 * 21 * 96
    rest = 8 * 40 * 64 + (21 + 12) * 14 * 64 + 21 * 24 * 96 + 12 * 6 * 96
    assert activations == inputs + 2 * max(language, decoder) + rest
    assert logits == 6 * 64 * 12 + 21 * 2 * 8 * 20
    whole, _ = activation_memory(model, WorkCounter(model), row, False)
    assert whole == language + decoder + max(language, decoder) + rest
    set_trainable(model, "none")
    untouched, _ = activation_memory(model, WorkCounter(model), row, False)
    assert untouched == rest - 12 * 6 * 96


def test_what_is_gathered_or_cast():
    model = small_model(small_config(layers=1, depth=1))
    set_trainable(model, "none")
    blocks = [model.backbone.language_model.layers[0], model.decoder.blocks[0], *model.backbone.visual.blocks]
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    whole = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("image_tokenizer."))
    root = whole - sum(sizes)
    assert gathered_memory(model, Sizes(float32, 8), True, trains=True) == 2 * root + 4 * max(sizes)
    set_trainable(model, "projectors")
    projectors = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert gathered_memory(model, Sizes(float32, 8), True, trains=True) == 2 * root + 4 * max(sizes) + 2 * projectors
    cast = sum(p.numel() for p in model.parameters() if p.requires_grad and p.ndim > 1)
    assert gathered_memory(model, Sizes(float32, 1), True, trains=True) == 2 * cast + 2 * max(sizes)


def test_activations_of_the_image_tokenizer_are_those_that_autograd_keeps():
    model = small_model()
    with torch.device("meta"):
        meta = VargptForConditionalGeneration(small_config()).image_tokenizer
    kept: dict[int, tuple[int, Tensor]] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.image_tokenizer.parameters()}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model.image_tokenizer.decoder(model.image_tokenizer.encoder(torch.rand(1, 3, 32, 32)))
    found = sum(size for size, _ in kept.values())
    assert tokenizer_activations(meta, 32, 32) == pytest.approx(found, rel=0.02)


def test_the_helpers_loss_reaches_everything():
    """A guard of these tests themselves: a batch with everything in it trains every part."""
    model = small_model()
    set_trainable(model, "all")
    loss_of(model, small_batch(model, 1, SCHEDULE, read_grid=(4, 4))).backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without <= {"decoder.unconditional"}
