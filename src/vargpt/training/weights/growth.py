"""Growing a trained model: more layers, or another image tokenizer (`init` of a recipe).

Invariant: a deeper model computes what the one it came from computed. An added layer is a copy of the layer before it
whose outputs are zero, so that only the residual stream passes (block expansion, arXiv 2401.02415); its first step
moves the outputs, and from then on it learns like any other. With another image tokenizer only what touches bits, the
embedding of the canvas and the head, is new.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vargpt.configuration import VargptConfig
from vargpt.training.recipes.sizes import Part

BIT_WEIGHTS = ("image_tokenizer.", "decoder.word_embed.", "decoder.head.")
"""Beginnings of the names of weights that mean nothing to another image tokenizer."""

_LAYERS: dict[Part, str] = {
    "vision": "backbone.visual.blocks.",
    "backbone": "backbone.language_model.layers.",
    "decoder": "decoder.blocks.",
}
_OUTPUTS: dict[Part, tuple[str, ...]] = {
    "vision": ("attn.proj.", "mlp.fc2."),
    "backbone": ("self_attn.o_proj.", "mlp.down_proj."),
    "decoder": ("self_attention.proj.", "cross_attention.proj.", "ffn.fc2."),
}
"""What of a layer writes to the residual stream."""


def depth_of(config: VargptConfig, part: Part) -> int:
    """How many layers a part has."""
    if part == "backbone":
        return int(config.backbone.text_config.num_hidden_layers)
    return int(config.decoder.depth if part == "decoder" else config.backbone.vision_config.depth)


def set_depth(config: VargptConfig, part: Part, depth: int) -> None:
    """Give a part so many layers."""
    if part == "backbone":
        text = config.backbone.text_config
        text.num_hidden_layers, text.layer_types = depth, ["full_attention"] * depth
    elif part == "decoder":
        config.decoder.depth = depth
    else:
        config.backbone.vision_config.depth = depth


def origins(old: int, new: int) -> list[tuple[int, bool]]:
    """For each of the new layers the old one that it copies, and whether it is an added one; spread evenly.

    Raises:
        ValueError: for fewer layers than there are.
    """
    if new < old:
        raise ValueError(f"it has {old} layers and cannot be given fewer, got {new}")
    ends = [new * (index + 1) // old for index in range(old)]
    starts = [0, *ends[:-1]]
    return [(index, copy > start) for index, start in enumerate(starts) for copy in range(start, ends[index])]


def deepened(given: dict[str, Callable[[], Tensor]], part: Part, old: int, new: int) -> dict[str, Callable[[], Tensor]]:
    """How to read every weight of a model whose part has `new` layers, from how to read those of one with `old`."""
    prefix = _LAYERS[part]
    grown = {name: read for name, read in given.items() if not name.startswith(prefix)}
    for number, (origin, added) in enumerate(origins(old, new)):
        before = f"{prefix}{origin}."
        for name, read in given.items():
            if name.startswith(before):
                rest = name.removeprefix(before)
                silent = added and rest.startswith(_OUTPUTS[part])
                grown[f"{prefix}{number}.{rest}"] = _zeros(read) if silent else read
    return grown


def _zeros(read: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: torch.zeros_like(read())
