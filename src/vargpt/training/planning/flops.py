"""Arithmetic of one row through the model: products of forward and backward, counted from the modules' shapes.

Invariant: a product of an [a, b] by a [b, c] matrix is 2abc operations; nothing else (norms, activations, softmax) is
counted. It works on the meta device and agrees with `torch.utils.flop_counter` on a real model.

What is assumed: attention is computed over whole rectangles (masks hide results, they save nothing); the backward of
attention is twice its forward; the gradient of a weight costs as much as its forward, and only where it is trained; the
gradient of inputs costs the same again, only where something trained lies before. Rows hold at most one image to draw.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vargpt.image_tokenizer import ImageTokenizer
from vargpt.inputs import ModelInputs
from vargpt.losses import IGNORED
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.model.stem import StemConvolution
from vargpt.scales import ScaleSchedule

_LAST = re.compile(r"backbone\.(language_model\.layers\.\d+\.mlp\.down_proj|visual\.blocks\.\d+\.mlp\.fc2)")
"""The last product of a block, which recomputing leaves out: nothing needs its result (in the decoder a gate does)."""
_KV = re.compile(r"decoder\.blocks\.\d+\.cross_attention\.kv")


@dataclass(frozen=True)
class RowShape:
    """Sizes of one row of a batch.

    `columns` tokens in all, `targets` of them predicted words, `context` before the image to draw (of `schedule`, in
    `slots` slots), `read_patches` for each image to read.
    """

    columns: float
    targets: float = 0.0
    schedule: ScaleSchedule | None = None
    slots: int = 0
    context: float = 0.0
    read_patches: tuple[float, ...] = ()


@dataclass(frozen=True)
class Flops:
    """Operations by kind; `recompute` is the forward that activation checkpointing does again."""

    forward: float = 0.0
    backward: float = 0.0
    recompute: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.forward + self.backward + self.recompute

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward, self.recompute + other.recompute)

    def times(self, factor: float) -> Flops:
        """The same work `factor` times."""
        return Flops(self.forward * factor, self.backward * factor, self.recompute * factor)


@dataclass(frozen=True)
class Adapter:
    """Adapters on one layer: their weights in all, and those that the stage trains."""

    weights: int
    trained: int


@dataclass
class _Part:
    """Multiplications per token of some layers: all, those whose weights are trained, those never recomputed."""

    weights: int = 0
    trained: int = 0
    last: int = 0


class WorkCounter:
    """Counts the work of rows for a model as its parameters are set (`requires_grad`), with adapters by layer name.

    The model may lie on the meta device. Adapters are described, not put in.
    """

    def __init__(self, model: VargptForConditionalGeneration, adapters: Mapping[str, Adapter] | None = None) -> None:
        self._model = model
        self._parts: dict[str, _Part] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv3d) and not name.startswith("image_tokenizer."):
                adapter = (adapters or {}).get(name, Adapter(0, 0))
                weights = module.weight.numel()
                if isinstance(module, StemConvolution):
                    weights *= module.positions_per_patch
                trained = weights if module.weight.requires_grad else 0
                part = self._parts.setdefault(_part_of(name), _Part())
                part.weights += weights + adapter.weights
                part.trained += trained + adapter.trained
                part.last += weights if _LAST.fullmatch(name) else 0
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._trained = {prefix: any(name.startswith(prefix) for name in names) for prefix in _TRAINABLE_PARTS}
        for prefix, part_name in (("backbone.language_model.layers", "language"), ("decoder", "decoder blocks")):
            self._trained[prefix] |= self._parts[part_name].trained > 0
        self._trained["decoder"] |= self._parts["decoder kv"].trained > 0

    def gradients(self, row: RowShape) -> dict[str, bool]:
        """Whether the backward of a row passes through vision tower, language model and decoder."""
        trained = self._trained
        vision = trained["backbone.visual.blocks"] or trained["backbone.visual.patch_embed"]
        merger = vision or trained["backbone.visual.merger"]
        start = trained["decoder.word_embed"] or trained["decoder.start"] or trained["start_embedding"]
        slots = start or trained["in_projector"]
        draws, reads = row.schedule is not None, bool(row.read_patches)
        embedded = trained["backbone.language_model.embed_tokens"] or (draws and slots) or (reads and merger)
        language = embedded or trained["backbone.language_model.layers"]
        return {
            "vision": reads and vision,
            "merger": reads and merger,
            "start": draws and start,
            "slots": draws and slots,
            "language": language,
            "decoder in": draws and (language or trained["out_projector"]),
            "decoder": draws and (language or trained["out_projector"] or trained["decoder"]),
        }

    def row(self, row: RowShape, recompute: bool = False) -> Flops:
        """Return the work of one row: forward, backward to what is trained, and recomputed forwards of blocks."""
        vision, text = self._model.config.backbone.vision_config, self._model.config.backbone.text_config
        passes = self.gradients(row)
        patches = sum(row.read_patches)
        merged = patches / vision.spatial_merge_size**2
        work = self._linear("vision embed", patches, False)
        if "vision stem" in self._parts:
            work += self._linear("vision stem", patches, passes["vision"])
        work += self._linear("vision", patches, passes["vision"], recompute)
        squares = sum(count**2 for count in row.read_patches)
        work += _attention(4 * squares * vision.embed_dim * vision.depth, passes["vision"], recompute)
        work += self._linear("merger", merged, passes["merger"])
        work += self._linear("language", row.columns, passes["language"], recompute)
        square = 4 * row.columns**2 * text.hidden_size * text.num_hidden_layers
        work += _attention(square, passes["language"], recompute)
        work += self._linear("lm_head", row.targets, passes["language"])
        if row.schedule is not None:
            work += self._drawing(row, row.schedule, passes, recompute)
        return work

    def batch(self, inputs: ModelInputs, recompute: bool = False) -> Flops:
        """Return the work of a collated batch, padding included; each row is taken to draw at most one image."""
        rows, columns = inputs.input_ids_BT.shape
        targets = inputs.text_targets_BT
        words = 0 if targets is None else int((targets[:, 1:] != IGNORED).sum())
        reading = RowShape(columns, words / rows)
        work = Flops()
        drawn = min(rows, inputs.num_generated_images)
        if drawn and inputs.schedule is not None and inputs.image_start_I is not None:
            slots = inputs.schedule.padded_length(self._model.config.behaviour.image_slot_multiple)
            context = float(inputs.image_start_I.max())
            drawing = dataclasses.replace(reading, schedule=inputs.schedule, slots=slots, context=context)
            work += self.row(drawing, recompute).times(drawn)
        work += self.row(reading, recompute).times(rows - drawn)
        if inputs.image_grid_thw is not None:
            patches = tuple(float(count) for count in inputs.image_grid_thw.prod(-1))
            work += self.row(RowShape(0, read_patches=patches), recompute)
        return work

    def _drawing(self, row: RowShape, schedule: ScaleSchedule, passes: dict[str, bool], recompute: bool) -> Flops:
        """The work of an image to draw: slots, projectors, decoder."""
        decoder, tokens = self._model.config.decoder, schedule.num_tokens
        surplus = 1 if row.slots > tokens else 0
        work = self._linear("word", tokens - schedule.lengths[0], False)
        work += self._linear("condition", 1, passes["start"])
        work += self._linear("in_projector", tokens + surplus, passes["start"])
        work += self._linear("out_projector", tokens + row.context, passes["language"])
        work += self._linear("decoder kv", row.context, passes["decoder in"])
        work += self._linear("decoder blocks", tokens, passes["decoder"], recompute)
        rectangle = 4 * tokens * (tokens + row.context) * decoder.hidden_size * decoder.depth
        work += _attention(rectangle, passes["decoder"], recompute)
        return work + self._linear("decoder head", tokens, passes["decoder"])

    def _linear(self, name: str, tokens: float, into_inputs: bool, recompute: bool = False) -> Flops:
        part = self._parts[name]
        backward = 2 * tokens * (part.trained + (part.weights if into_inputs else 0))
        again = 2 * tokens * (part.weights - part.last) if recompute and into_inputs else 0.0
        return Flops(2 * tokens * part.weights, backward, again)

    def trains(self, part: str) -> bool:
        """Whether weights or adapters of a part are trained."""
        return self._parts[part].trained > 0


def _attention(forward: float, passes: bool, recompute: bool) -> Flops:
    return Flops(forward, 2 * forward if passes else 0.0, forward if passes and recompute else 0.0)


def _part_of(name: str) -> str:
    """Which tokens go through a layer."""
    if _KV.fullmatch(name):
        return "decoder kv"
    for prefix, part in _PREFIXES.items():
        if name.startswith(prefix):
            return part
    raise ValueError(f"{name}: no rule says which tokens go through this layer")


_TRAINABLE_PARTS = (
    "backbone.visual.blocks", "backbone.visual.patch_embed", "backbone.visual.merger",
    "backbone.language_model.embed_tokens", "backbone.language_model.layers", "in_projector", "out_projector",
    "decoder", "decoder.word_embed", "decoder.start", "start_embedding",
)  # fmt: skip
"""Where it matters to the backward whether something is trained."""

_PREFIXES = {
    "backbone.visual.patch_embed.deeper": "vision stem",
    "backbone.visual.patch_embed": "vision embed",
    "backbone.visual.blocks": "vision",
    "backbone.visual.merger": "merger",
    "backbone.language_model.layers": "language",
    "lm_head": "lm_head",
    "in_projector": "in_projector",
    "out_projector": "out_projector",
    "decoder.word_embed": "word",
    "decoder.blocks": "decoder blocks",
    "decoder.head_modulation": "condition",
    "decoder.head": "decoder head",
    "decoder.": "condition",
}


@functools.lru_cache(maxsize=64)
def _tokenizer_flops(tokenizer: ImageTokenizer, height: int, width: int) -> tuple[float, float]:
    with torch.no_grad(), FlopCounterMode(display=False) as encode:
        latent = tokenizer.encoder(torch.empty(1, 3, height, width, device="meta"))
    with torch.no_grad(), FlopCounterMode(display=False) as decode:
        tokenizer.decoder(latent)
    return float(encode.get_total_flops()), float(decode.get_total_flops())


def tokenizer_flops(tokenizer: ImageTokenizer, height: int, width: int) -> tuple[float, float]:
    """Work of encoding and of decoding one image, by running the autoencoder (on the meta device) without data."""
    return _tokenizer_flops(tokenizer, height, width)


def tokenizer_training_flops(tokenizer: ImageTokenizer, height: int, width: int) -> Flops:
    """Work of one image in a tokenizer stage, for what requires a gradient now."""
    images = torch.empty(1, 3, height, width, device="meta")
    with FlopCounterMode(display=False) as forward:
        output = tokenizer.decoder(tokenizer.encoder(images))
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    for parameter in tokenizer.parameters():
        parameter.grad = None
    return Flops(float(forward.get_total_flops()), float(backward.get_total_flops()))
