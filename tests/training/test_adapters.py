"""Adapters: the identity at first, alone in training, gone when saved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from planning_helpers import loss_of, small_batch, small_config, small_model
from torch import Tensor

from vargpt.inputs import ModelInputs
from vargpt.model import VargptForConditionalGeneration
from vargpt.scales import ScaleSchedule
from vargpt.training.recipes.schema import Recipe
from vargpt.training.weights import adapters
from vargpt.training.weights.trainable import is_adapter, set_trainable

LOOP = {"steps": 2, "batch_size": 2, "learning_rate": 0.01}
SFT: dict[str, Any] = {"kind": "sft", "loop": LOOP, "data": [{"task": "draw"}]}
LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0, "targets": r"backbone\.language_model\..*(q|v)_proj"}
WIDE: dict[str, Any] = {
    "rank": 2, "alpha": 8.0, "dropout": 0.5, "targets": r"backbone\..*\.(q|down)_proj|decoder\..*\.fc1",
}  # fmt: skip
RECIPE = Recipe.model_validate(
    {
        "name": "adapters",
        "stages": [
            {**SFT, "name": "first", "trainable": "none", "lora": LORA},
            {**SFT, "name": "plain", "trainable": "projectors"},
            {**SFT, "name": "train", "trainable": "generation", "lora": WIDE},  # also a name that modules have
            {"kind": "dpo", "name": "dpo", "loop": LOOP, "pairs": "folder", "trainable": "none", "lora": LORA,
             "reference": "adapters"},
        ],
    }
)  # fmt: skip
SCHEDULE = ScaleSchedule(1.0, 3, 4)


@pytest.fixture
def model() -> VargptForConditionalGeneration:
    """The small model with all adapters in."""
    model = small_model()
    adapters.inject_all(model, RECIPE)
    return model


@pytest.fixture(scope="module")
def inputs() -> ModelInputs:
    return small_batch(small_model(), 2, SCHEDULE)


@torch.no_grad()
def outputs_of(model: VargptForConditionalGeneration, inputs: ModelInputs) -> Tensor:
    output = model(inputs)
    assert output.text_logits_BTV is not None
    assert output.bit_logits_ILd2 is not None
    return torch.cat([output.text_logits_BTV.flatten(), output.bit_logits_ILd2.flatten()])


@torch.no_grad()
def train_adapter(model: VargptForConditionalGeneration, stage: str, seed: int) -> None:
    """Stand in for training: the adapter's second factors become random."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if f".lora_B.stage-{stage}." in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def test_new_adapters_change_no_output(model: VargptForConditionalGeneration, inputs: ModelInputs):
    expected = outputs_of(small_model(), inputs)
    for stage in RECIPE.stages:
        adapters.activate(model, RECIPE, stage.name)
        assert torch.equal(outputs_of(model, inputs), expected)


def test_putting_adapters_in_draws_nothing_and_freezes_nothing_else(inputs: ModelInputs):
    model = small_model()
    set_trainable(model, "generation")
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    torch.manual_seed(5)
    adapters.inject(model, "first", adapters.lora_stages(RECIPE)["first"], seed=0)
    after = {n.replace(".base_layer.", ".") for n, parameter in model.named_parameters() if parameter.requires_grad}
    assert after == before
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_the_first_factors_are_a_function_of_seed_stage_and_layer():
    name = "backbone.language_model.layers.1.self_attn.q_proj.lora_A.stage-first.weight"
    values = []
    for seed in (3, 3, 4):
        model = small_model(seed=seed)
        adapters.inject(model, "first", adapters.lora_stages(RECIPE)["first"], seed)
        values.append(model.get_parameter(name).detach())
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    assert values[0].shape == (4, 64) and 0.1 < float(values[0].abs().max()) <= 64**-0.5
    other = model.get_parameter(name.replace("layers.1", "layers.0"))
    assert not torch.equal(values[2], other)


def test_only_the_stages_own_adapter_and_its_preset_have_gradients(
    model: VargptForConditionalGeneration, inputs: ModelInputs
):
    for stage, own in (("first", "first"), ("train", "train"), ("dpo", "dpo")):
        model.zero_grad(set_to_none=True)
        preset = next(item.trainable for item in RECIPE.stages if item.name == stage)  # type: ignore[union-attr]
        set_trainable(model, preset)  # type: ignore[arg-type]
        adapters.activate(model, RECIPE, stage)
        loss_of(model, inputs).backward()
        with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        adapted = {name for name in with_gradient if is_adapter(name)}
        assert adapted == {name for name, _ in model.named_parameters() if f".stage-{own}." in name}
        rest = {name.split(".")[0] for name in with_gradient - adapted}
        expected = {"decoder", "in_projector", "out_projector", "start_embedding"} if stage == "train" else set()
        assert rest == expected


def test_earlier_adapters_stay_in_force_and_later_ones_wait(model: VargptForConditionalGeneration, inputs: ModelInputs):
    for number, stage in enumerate(("first", "train", "dpo")):
        train_adapter(model, stage, number)
    results = []
    for stage in ("first", "plain", "train", "dpo"):
        adapters.activate(model, RECIPE, stage)
        model.eval()
        results.append(outputs_of(model, inputs))
    first, plain, third, last = results
    assert torch.equal(first, plain)  # a stage without an adapter runs on those before it
    assert not torch.equal(plain, third) and not torch.equal(third, last)
    with adapters.disabled(model, "dpo"):
        assert torch.equal(outputs_of(model, inputs), third)
    assert torch.equal(outputs_of(model, inputs), last)


def test_disabled_is_the_base_and_leaves_what_is_trained_alone(
    model: VargptForConditionalGeneration, inputs: ModelInputs
):
    train_adapter(model, "first", 1)
    set_trainable(model, "none")
    adapters.activate(model, RECIPE, "first")
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with adapters.disabled(model, "first"):
        assert torch.equal(outputs_of(model, inputs), outputs_of(small_model(), inputs))
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained
    assert not torch.equal(outputs_of(model, inputs), outputs_of(small_model(), inputs))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == trained


def test_a_frozen_adapter_has_no_dropout(model: VargptForConditionalGeneration, inputs: ModelInputs):
    train_adapter(model, "train", 1)
    adapters.activate(model, RECIPE, "train")
    model.train()
    assert not torch.equal(outputs_of(model, inputs), outputs_of(model, inputs))
    adapters.activate(model, RECIPE, "dpo")
    model.train()
    assert torch.equal(outputs_of(model, inputs), outputs_of(model, inputs))


def test_a_merged_model_answers_alike_under_plain_names(
    model: VargptForConditionalGeneration, inputs: ModelInputs, tmp_path: Path
):
    for number, stage in enumerate(("first", "train", "dpo")):
        train_adapter(model, stage, number)
    adapters.activate(model, RECIPE, "dpo")
    model.eval()
    expected = outputs_of(model, inputs)
    state = adapters.merged_state(model.state_dict(), RECIPE)
    with torch.device("meta"):
        plain = VargptForConditionalGeneration(small_config())
    plain.save_pretrained(tmp_path, state_dict=state)
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "peft"}
    for name in hidden:
        del sys.modules[name]
    try:
        loaded = VargptForConditionalGeneration.from_pretrained(tmp_path)
        assert not any(name.partition(".")[0] == "peft" for name in sys.modules)
    finally:
        sys.modules.update(hidden)
    got = outputs_of(loaded, inputs)
    assert float((got - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert not torch.allclose(got, outputs_of(small_model(), inputs), rtol=1e-3)


def test_merging_untrained_adapters_gives_the_weights_back_bitwise(model: VargptForConditionalGeneration):
    state = adapters.merged_state(model.state_dict(), RECIPE)
    expected = small_model().state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_merging_sums_in_float32_and_keeps_the_type():
    """Two steps of 0.75 half-units in the last place: bfloat16 sums would lose both."""
    layer = "backbone.language_model.layers.0.self_attn.q_proj"
    small = {
        f"{layer}.lora_{factor}.stage-{stage}.weight": torch.full((1, 1), value)
        for stage in ("first", "dpo")  # alpha / rank = 2
        for factor, value in (("A", 0.5), ("B", 0.75 * 2**-8))
    }
    state = {
        f"{layer}.base_layer.weight": torch.ones(1, 1, dtype=torch.bfloat16),
        f"{layer}.base_layer.bias": torch.ones(1),
        **small,
    }
    merged = adapters.merged_state(state, RECIPE)
    assert set(merged) == {f"{layer}.weight", f"{layer}.bias"}
    assert merged[f"{layer}.weight"].item() == 1 + 2**-7 and merged[f"{layer}.weight"].dtype == torch.bfloat16


def test_the_size_of_an_adapter_is_what_is_put_in(model: VargptForConditionalGeneration):
    for stage, section in adapters.lora_stages(RECIPE).items():
        put_in = sum(p.numel() for name, p in model.named_parameters() if f".stage-{stage}." in name)
        assert adapters.adapter_size(small_model(), section) == adapters.adapter_size(model, section) == put_in
    # q and v of two layers: (64 -> 64) and (64 -> 32) at rank 4
    assert adapters.adapter_size(model, adapters.lora_stages(RECIPE)["first"]) == 2 * 4 * (128 + 96)


def test_a_model_without_adapters_is_left_alone(inputs: ModelInputs):
    recipe = RECIPE.model_copy(update={"stages": [RECIPE.stages[1]]})
    model = small_model()
    adapters.inject_all(model, recipe)
    set_trainable(model, "projectors")
    adapters.activate(model, recipe, "plain")
    with adapters.disabled(model, "plain"):
        loss_of(model, inputs).backward()
    state = adapters.merged_state(model.state_dict(), recipe)
    assert state.keys() == small_model().state_dict().keys()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (r"backbone\.(", "is not a regular expression"),
        (r"q_proj", "matches the whole name of no linear layer; names are such as backbone."),
        (r"backbone\.language_model\.embed_tokens", "matches the whole name of no linear layer"),
        (r"decoder\..*", "cannot carry an adapter, first decoder.blocks.0.self_attention.qkv"),
    ],
)
def test_targets_that_fit_nothing_are_refused(targets: str, message: str):
    section = adapters.lora_stages(RECIPE)["first"].model_copy(update={"targets": targets})
    with pytest.raises(ValueError) as caught:
        adapters.inject(small_model(), "first", section, 0)
    assert message in str(caught.value)
