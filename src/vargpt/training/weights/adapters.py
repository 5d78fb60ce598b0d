"""Low-rank adapters of stages: one per stage with a `lora` section, put in before any stage runs (needs peft).

Invariant: an adapter starts as the exact identity (its second factor is 0), so putting it in changes no output; a
stage trains its own adapter only, on top of those of earlier stages, which stay in force and frozen; a finished model
is saved with plain weights, the adapters added to them in float32.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vargpt.training.recipes.schema import DpoStage, LoraSection, Recipe, SftStage
from vargpt.training.steps import stream_seed
from vargpt.training.weights.trainable import is_adapter

_NEVER = re.compile(r"decoder\.blocks\.\d+\.(self_attention\.qkv|cross_attention\.kv)|image_tokenizer\..*")
"""The decoder uses the weights of these layers directly (its biases are parts), so an adapter there would be skipped;
and the image tokenizer is frozen in all stages that may have adapters."""
_EXAMPLES = 5


def lora_stages(recipe: Recipe) -> dict[str, LoraSection]:
    """Names and sections of the stages that train an adapter, in order."""
    stages = [stage for stage in recipe.stages if isinstance(stage, SftStage | DpoStage)]
    return {stage.name: stage.lora for stage in stages if stage.lora is not None}


def target_layers(model: nn.Module, section: LoraSection) -> dict[str, nn.Linear]:
    """Linear layers whose whole name matches the section's `targets`, by their name without adapters.

    Raises:
        ValueError: for a bad expression, one that matches no linear layer, or one that matches layers that cannot
            carry an adapter.
    """
    try:
        pattern = re.compile(section.targets)
    except re.error as error:
        raise ValueError(f"lora.targets: {section.targets!r} is not a regular expression ({error})") from error
    linear = {
        name.removesuffix(".base_layer"): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not is_adapter(f"{name}.")
    }
    targets = {name: module for name, module in linear.items() if pattern.fullmatch(name)}
    if not targets:
        examples = ", ".join(list(linear)[:: max(1, len(linear) // _EXAMPLES)][:_EXAMPLES])
        raise ValueError(
            f"lora.targets: {section.targets!r} matches the whole name of no linear layer; names are such as {examples}"
        )
    never = [name for name in targets if _NEVER.fullmatch(name)]
    if never:
        raise ValueError(
            f"lora.targets: {section.targets!r} matches {len(never)} layers that cannot carry an adapter, first "
            f"{never[0]}; leave out image_tokenizer and the decoder's qkv and kv, as in "
            r"decoder\.blocks\..*\.(proj|q|fc1|fc2)"
        )
    return targets


def adapter_size(model: nn.Module, section: LoraSection) -> int:
    """How many numbers an adapter has: rank times (inputs plus outputs) of each of its layers."""
    layers = target_layers(model, section).values()
    return sum(section.rank * (layer.in_features + layer.out_features) for layer in layers)


def inject(model: nn.Module, stage_name: str, section: LoraSection, seed: int) -> None:
    """Put the adapter of a stage into the model, in place: inactive, frozen, float32, the identity.

    The first factor of each layer is uniform in +-1/sqrt(inputs), from (seed, stage, layer) alone.

    Raises:
        ValueError: for targets that fit no layer, see `target_layers`.
        RuntimeError: if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RuntimeError(f"stage {stage_name} has adapters, which need peft: pip install 'vargpt[train]'") from error
    names = list(target_layers(model, section))
    config = LoraConfig(
        r=section.rank, lora_alpha=section.alpha, lora_dropout=section.dropout, target_modules=names, bias="none"
    )
    adapter = _adapter_name(stage_name)
    trained = {name: parameter.requires_grad for name, parameter in _base_parameters(model)}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
        inject_adapter_in_model(config, model, adapter)
    for name, parameter in _base_parameters(model):
        parameter.requires_grad_(trained[name])
    for name in names:
        layer: Any = model.get_submodule(name)
        first, second = layer.lora_A[adapter], layer.lora_B[adapter]
        for factor in (first, second):
            factor.float().requires_grad_(False)
        _fill(first.weight, stream_seed(seed, stage_name, 0, f"adapter:{name}"))
        nn.init.zeros_(second.weight)
    for layer in _layers(model):
        _set_active(layer, [])


def inject_all(model: nn.Module, recipe: Recipe) -> None:
    """Put in the adapters of all stages of a recipe; none where it has none."""
    for name, section in lora_stages(recipe).items():
        inject(model, name, section, recipe.seed)


def activate(model: nn.Module, recipe: Recipe, stage_name: str) -> None:
    """Set the model up for a stage: adapters up to it in force, its own (if it has one) trained, earlier ones frozen.

    Call it after `set_trainable`, which freezes all adapters. Frozen adapters run without dropout.
    """
    sections = lora_stages(recipe)
    order = [stage.name for stage in recipe.stages]
    upto = [name for name in order[: order.index(stage_name) + 1] if name in sections]
    own = _adapter_name(stage_name)
    for layer in _layers(model):
        _set_active(layer, [_adapter_name(name) for name in upto])
        for name, section in sections.items():
            adapter = _adapter_name(name)
            if adapter in layer.lora_dropout:
                rate = section.dropout if adapter == own else 0.0
                layer.lora_dropout[adapter] = nn.Dropout(rate) if rate else nn.Identity()
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            parameter.requires_grad_(f".{own}." in name)


@contextmanager
def disabled(model: nn.Module, stage_name: str) -> Iterator[None]:
    """Switch off the adapter of this stage alone: base weights and earlier adapters are the stage's reference."""
    own = _adapter_name(stage_name)
    before = [(layer, list(layer.active_adapters)) for layer in _layers(model)]
    for layer, active in before:
        _set_active(layer, [adapter for adapter in active if adapter != own])
    try:
        yield
    finally:
        for layer, active in before:
            _set_active(layer, active)


def merged_state(state: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """Return a state dict under the plain names of a model without adapters, each adapter added to its weight.

    The sum is made in float32 and keeps the weight's type. An adapter of a stage that has not run adds exactly 0.

    Args:
        state: whole tensors by the names of a model with the recipe's adapters, as `state_dict` or a gathered one.
    """
    scales = {_adapter_name(name): section.alpha / section.rank for name, section in lora_stages(recipe).items()}
    merged = {}
    for name, value in state.items():
        if is_adapter(name):
            continue
        layer, base, rest = name.rpartition(".base_layer.")
        if not base:
            merged[name] = value
            continue
        total = value
        if rest == "weight":
            for adapter, scale in scales.items():
                first, second = (state.get(f"{layer}.lora_{factor}.{adapter}.weight") for factor in "AB")
                if first is not None and second is not None:
                    total = total.float() + scale * (second.float() @ first.float())
        merged[f"{layer}.{rest}"] = total.to(value.dtype)
    return merged


def _adapter_name(stage_name: str) -> str:
    """A stage may be called `train` or `keys`; a module dictionary cannot have these as keys."""
    return f"stage-{stage_name}"


def _layers(model: nn.Module) -> list[Any]:
    """The layers of peft inside the model; without adapters there are none, and peft is not needed."""
    if not any(is_adapter(name) for name, _ in model.named_parameters()):
        return []
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _base_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters that are no adapter's, under their plain names."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if not is_adapter(name)]
    return [(name.replace(".base_layer.", "."), parameter) for name, parameter in named]


def _set_active(layer: Any, adapters: list[str]) -> None:
    """Choose the adapters in force without touching what requires a gradient (peft would change both)."""
    trained = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
    layer.set_adapter(adapters)
    for parameter, requires_grad in trained:
        parameter.requires_grad_(requires_grad)


@torch.no_grad()
def _fill(weight: Tensor, seed: int) -> None:
    if weight.is_meta:
        return
    bound = 1 / math.sqrt(weight.shape[1])
    generator = torch.Generator().manual_seed(seed)
    weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
