"""Memory of one device during a stage, by what takes it: an estimate made from shapes alone.

Invariant: weights, gradients, optimiser state and averages are exact (they are tensors of known shapes); activations
follow coefficients that were measured on small blocks under bfloat16 autocast (bytes saved for the backward per token,
in multiples of the widths) and that `tests/training/test_plan_memory.py` measures again.

Sharded is everything but the image tokenizer (`vargpt.training.distributed`). Activations are per micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.training.loop.optim import muon_takes
from vargpt.training.loop.settings import LoopSettings
from vargpt.training.planning.flops import RowShape, WorkCounter

Bytes = dict[str, float]
"""Kind of memory -> bytes on one device."""

WORKSPACE = 2e9
"""CUDA context, communication buffers and what the allocator cannot use."""

LANGUAGE_BYTES = {True: (34, 8), False: (16, 6)}
"""Trained or not -> saved bytes per token of a layer, in multiples of its width and of its hidden width."""
VISION_BYTES = {True: 51, False: 37}
"""The same for a block of the vision tower, in multiples of its width."""
DECODER_BYTES = {True: (67, 6), False: (37, 4)}
"""The same for a decoder block: per image token, and per context token (keys and values), in multiples of its width."""
_LOGIT_BYTES = 12
"""A text logit: bfloat16, float32 for the loss, and the gradients of both."""


@dataclass(frozen=True)
class Sizes:
    """What the memory of parameters follows from.

    `dtype_of(name, axes)` is the type a weight is kept in; `adapters` are all adapters' weights and `trained_adapters`
    those of the stage.
    """

    dtype_of: Callable[[str, int], torch.dtype]
    ranks: int
    adapters: int = 0
    trained_adapters: int = 0
    reference: Literal["copy", "adapters", "precomputed"] | None = None


def parameter_memory(model: VargptForConditionalGeneration, sizes: Sizes, loop: LoopSettings | None) -> Bytes:
    """Weights, gradients, optimiser state, averages and the reference's copy, for parameters as they are set.

    Args:
        loop: of the stage; None where nothing is trained.
    """
    shares = {name: 1 if name.startswith("image_tokenizer.") else sizes.ranks for name, _ in model.named_parameters()}
    weights = gradients = state = averages = copied = 0.0
    for name, parameter in model.named_parameters():
        size = parameter.numel() * sizes.dtype_of(name, parameter.ndim).itemsize / shares[name]
        trained = parameter.requires_grad and loop is not None
        weights += size
        copied += size if trained or sizes.ranks > 1 else 0.0  # on one rank, frozen weights are shared
        if trained and loop is not None:
            part = parameter.numel() / shares[name]
            gradients += 4 * part
            averages += 4 * part if loop.ema is not None else 0.0
            muon = loop.optimizer == "muon" and muon_takes(name, parameter)
            state += 4 * part if muon else 8 * part + 4
    adapters, trained_adapters = sizes.adapters / sizes.ranks, sizes.trained_adapters / sizes.ranks
    memory = {
        "weights": weights + 4 * adapters,
        "gradients": gradients + 4 * trained_adapters,
        "optimizer": state + 8 * trained_adapters,
        "averages": averages + (4 * trained_adapters if loop is not None and loop.ema is not None else 0.0),
    }
    if sizes.reference == "copy":
        memory["reference"] = copied + 4 * (adapters if sizes.ranks > 1 else trained_adapters)
    return memory


def gathered_memory(model: VargptForConditionalGeneration, sizes: Sizes, recompute: bool, trains: bool) -> float:
    """What is in bfloat16 beside the kept weights: gathered units on several ranks, casts of autocast on one.

    Several ranks: what is in no block stays gathered, and two blocks are at a time; gradients of a trained block, and
    of what is in no block, are whole until they are reduced in float32. One rank: autocast keeps a cast of every
    trained matrix, and the backward one of every frozen float32 matrix that it passes (of one block with `recompute`).
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    outside = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if id(parameter) not in inside and not name.startswith("image_tokenizer.")
    ]
    largest = max(_count(block.parameters()) for block in blocks)
    trained_block = max((_count(p for p in block.parameters() if p.requires_grad) for block in blocks), default=0)
    if sizes.ranks > 1:
        root = _count(parameter for _, parameter in outside)
        trained_root = _count(parameter for _, parameter in outside if parameter.requires_grad)
        gradients = 6 * trained_block + 2 * trained_root if trains else 0
        return 2 * root + 2 * 2 * largest + gradients
    matrices = [(n, p) for n, p in model.named_parameters() if p.ndim > 1 and "embed_tokens" not in n]
    whole = [(n, p) for n, p in matrices if sizes.dtype_of(n, p.ndim) == torch.float32]
    trained = _count(p for _, p in whole if p.requires_grad) if trains else 0
    frozen = _count(p for n, p in whole if not p.requires_grad and not n.startswith("image_tokenizer."))
    return 2 * (trained + (min(frozen, largest) if recompute or not trains else frozen))


def activation_memory(
    model: VargptForConditionalGeneration, work: WorkCounter, row: RowShape, recompute: bool
) -> tuple[float, float]:
    """Bytes that one row keeps for the backward: activations, and logits with their gradients.

    With `recompute` a block keeps its input alone, and one block at a time all of its own; gradients inside a block
    take about as much as its activations.
    """
    config, passes = model.config, work.gradients(row)
    text, vision, decoder = config.backbone.text_config, config.backbone.vision_config, config.decoder
    patches, width, channels = sum(row.read_patches), text.hidden_size, decoder.hidden_size
    blocks: list[tuple[int, float, float]] = []  # how many, what each keeps for itself, what its input takes
    if passes["vision"]:
        kept = VISION_BYTES[work.trains("vision")] * patches * vision.embed_dim
        blocks.append((vision.depth, kept, 4 * patches * vision.embed_dim))
    if passes["language"]:
        wide, hidden = LANGUAGE_BYTES[work.trains("language")]
        kept = row.columns * (wide * width + hidden * text.intermediate_size + 2 * row.columns)
        blocks.append((text.num_hidden_layers, kept, 4 * row.columns * width))
    total = 8.0 * row.columns * width
    logits = row.targets * text.vocab_size * _LOGIT_BYTES
    if row.schedule is not None:
        tokens, bits = row.schedule.num_tokens, config.image_tokenizer.bits
        total += (tokens + row.context) * 14 * width + tokens * 24 * channels
        logits += tokens * 2 * bits * 20
        if passes["decoder"]:
            image, context = DECODER_BYTES[work.trains("decoder blocks")]
            total += decoder.depth * row.context * context * channels
            blocks.append((decoder.depth, tokens * (image * channels + 2 * tokens), 4 * tokens * channels))
    if recompute:
        total += sum(count * of_input for count, _, of_input in blocks)
        total += 2 * max((kept for _, kept, _ in blocks), default=0.0)
    else:
        total += sum(count * kept for count, kept, _ in blocks) + max((kept for _, kept, _ in blocks), default=0.0)
    return total, logits


def sampling_memory(model: VargptForConditionalGeneration, row: RowShape, branches: int) -> tuple[float, float]:
    """Bytes of caches, and of activations, per picture that is being sampled in bfloat16."""
    assert row.schedule is not None
    text, decoder = model.config.backbone.text_config, model.config.decoder
    head = text.hidden_size // text.num_attention_heads
    tokens, prompt = row.schedule.num_tokens, row.context + 1
    language = 4 * text.num_key_value_heads * head * text.num_hidden_layers * (tokens + prompt)
    image = 4 * decoder.hidden_size * decoder.depth * (tokens + prompt)
    last = row.schedule.lengths[-1]
    working = last * max(8 * text.intermediate_size, 40 * decoder.hidden_size)
    return branches * (language + image), float(branches * working)


def tokenizer_activations(tokenizer: nn.Module, height: int, width: int) -> float:
    """Bytes that one image keeps for the backward of a tokenizer stage, as if all were float32 (an upper bound)."""
    kept: dict[int, int] = {}
    storages = []

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        storages.append(storage)  # alive, so that addresses stay distinct
        kept[storage._cdata] = storage.nbytes()
        return value

    images = torch.empty(1, 3, height, width, device="meta")
    own = {parameter.untyped_storage()._cdata for parameter in tokenizer.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        tokenizer.decoder(tokenizer.encoder(images))  # type: ignore[operator]
    return float(sum(size for address, size in kept.items() if address not in own))


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
