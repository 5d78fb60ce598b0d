"""The published names of all weights and ours, both ways, generic in sizes.

Invariant: every key of a published checkpoint is one `KeyEntry`: a weight of our model (possibly some rows of the
published tensor, possibly reshaped), a parameter without effect (spec 5.10) or a buffer with a known value. A
translation is `official[rows].reshape(shape)` and its inverse, nothing else, hence bit-exact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from vargpt.configuration import VargptConfig
from vargpt.image_tokenizer import ImageTokenizer

Shape = tuple[int, ...]
Initial = Literal["normal", "truncated", "zeros", "ones", "powers"]

_INITIAL_STD = 0.02
_OFFICIAL_PREFIXES = frozenset(
    ["visual", "model", "vae_local", "vargpt_gen", "image_gen_projector", "image_gen_projector_out", "sos_embedding"]
)
_OWN_PREFIXES = frozenset(
    ["backbone", "decoder", "image_tokenizer", "in_projector", "out_projector", "start_embedding"]
)

# Ours -> published; `{c}` and `{m}` are the chunk of a block and its place in the chunk.
_DECODER_NAMES = {
    "unconditional": "cfg_uncond",
    "start_position": "pos_start",
    "start_norm.weight": "text_norm.weight",
    "start_value.weight": "text_proj_for_sos.ca.mat_kv.weight",
    "start_value.bias": "text_proj_for_sos.ca.v_bias",
    "start_proj.weight": "text_proj_for_sos.ca.proj.weight",
    "start_proj.bias": "text_proj_for_sos.ca.proj.bias",
    "level_embedding.weight": "lvl_embed.weight",
    "word_embed.weight": "word_embed.weight",
    "word_embed.bias": "word_embed.bias",
    "shared_modulation.weight": "shared_ada_lin.1.weight",
    "shared_modulation.bias": "shared_ada_lin.1.bias",
    "head_modulation.weight": "head_nm.ada_lin.1.weight",
    "head_modulation.bias": "head_nm.ada_lin.1.bias",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}
_BLOCK_NAMES = {
    "modulation_offset": "ada_gss",
    "self_attention.qkv.weight": "sa.mat_qkv.weight",
    "self_attention.q_bias": "sa.q_bias",
    "self_attention.v_bias": "sa.v_bias",
    "self_attention.log_scale": "sa.scale_mul_1H11",
    "self_attention.proj.weight": "sa.proj.weight",
    "self_attention.proj.bias": "sa.proj.bias",
    "cross_norm.weight": "ca_norm.weight",
    "cross_norm.bias": "ca_norm.bias",
    "cross_attention.q.weight": "ca.mat_q.weight",
    "cross_attention.q.bias": "ca.mat_q.bias",
    "cross_attention.kv.weight": "ca.mat_kv.weight",
    "cross_attention.v_bias": "ca.v_bias",
    "cross_attention.proj.weight": "ca.proj.weight",
    "cross_attention.proj.bias": "ca.proj.bias",
    "ffn.fc1.weight": "ffn.fc1.weight",
    "ffn.fc1.bias": "ffn.fc1.bias",
    "ffn.fc2.weight": "ffn.fc2.weight",
    "ffn.fc2.bias": "ffn.fc2.bias",
}
# Ours -> published inside `image_tokenizer.`, applied in this order to the whole key.
_TOKENIZER_PATTERNS = (
    (r"\.blocks\.(\d+)\.", r".block.\1."),
    (r"\.mid\.0\.", r".mid.block_1."),
    (r"\.mid\.1\.", r".mid.block_2."),
    (r"\.(downsample|upsample)\.(weight|bias)$", r".\1.conv.conv.\2"),
    (r"\.shortcut\.(weight|bias)$", r".nin_shortcut.conv.\1"),
    (r"\.(conv1|conv2|conv_in|conv_out)\.(weight|bias)$", r".\1.conv.\2"),
    (r"\.(norm1|norm2|norm_out)\.(weight|bias)$", r".\1.norm.\2"),
)


@dataclass(frozen=True)
class KeyEntry:
    """One published key.

    `ours` is None for what our model does not have. `rows` are the rows of the published tensor that are ours (None
    = all). `initial` says how a published tensor, or its rows that are not ours, is filled when nothing better is
    known (spec 5.11).
    """

    official: str
    official_shape: Shape
    ours: str | None = None
    shape: Shape = ()
    rows: tuple[int, int] | None = None
    initial: Initial = "normal"
    buffer: bool = False

    def from_official(self, rows_of_official: Tensor) -> Tensor:
        """Return our tensor from the published one, already reduced to `rows`."""
        return rows_of_official.reshape(self.shape)

    def to_official(self, ours: Tensor, whole: Tensor | None = None) -> Tensor:
        """Return the published tensor; where it has more rows than ours, `whole` (or the initial value) holds them."""
        if self.rows is None:
            return ours.reshape(self.official_shape)
        table = self.initial_value(ours.dtype) if whole is None else whole.to(ours.dtype, copy=True)
        start, stop = self.rows
        table[start:stop] = ours.reshape(stop - start, *self.official_shape[1:])
        return table

    def initial_value(self, dtype: torch.dtype) -> Tensor:
        """Return the documented initial value of the published tensor; the random ones are the same every time."""
        if self.initial == "powers":
            return 2 ** torch.arange(self.official_shape[0] - 1, -1, -1, dtype=torch.int64)
        if self.initial in ("zeros", "ones"):
            return torch.full(self.official_shape, float(self.initial == "ones"), dtype=dtype)
        generator = torch.Generator().manual_seed(0)
        value = torch.empty(self.official_shape, dtype=dtype)
        if self.initial == "truncated":
            std = math.sqrt(1 / (3 * math.prod(self.official_shape)))
            return torch.nn.init.trunc_normal_(value, std=std, generator=generator)
        return value.normal_(std=_INITIAL_STD, generator=generator)


def backbone_entries(config: VargptConfig) -> list[KeyEntry]:
    """Vision tower, language model and text head: renamed only."""
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in Qwen2VLModel(config.backbone).state_dict().items()}
    prefixes = {"visual.": "visual.", "language_model.": "model."}
    entries = []
    for name, shape in shapes.items():
        prefix = next(p for p in prefixes if name.startswith(p))
        entries.append(KeyEntry(prefixes[prefix] + name.removeprefix(prefix), shape, "backbone." + name, shape))
    text = config.backbone.text_config
    head = (text.vocab_size, text.hidden_size)
    return [*entries, KeyEntry("lm_head.weight", head, "lm_head.weight", head)]


def image_tokenizer_entries(config: VargptConfig) -> list[KeyEntry]:
    """The autoencoder: every published conv and norm is wrapped once more than ours."""
    with torch.device("meta"):
        shapes = {
            name: tuple(value.shape) for name, value in ImageTokenizer(config.image_tokenizer).state_dict().items()
        }
    entries = []
    for name, shape in shapes.items():
        official = "." + name
        for pattern, replacement in _TOKENIZER_PATTERNS:
            official = re.sub(pattern, replacement, official)
        entries.append(KeyEntry("vae_local" + official, shape, "image_tokenizer." + name, shape))
    mask = (config.image_tokenizer.bits,)
    return [*entries, KeyEntry("vae_local.quantizer.lfq.mask", mask, initial="powers", buffer=True)]


def decoder_shapes(config: VargptConfig) -> dict[str, Shape]:
    """Our names and shapes of the next-scale decoder without the blocks' prefix (spec 5.1)."""
    decoder, bits, width = config.decoder, config.image_tokenizer.bits, config.decoder.hidden_size
    return {
        "unconditional": (decoder.unconditional_rows, width),
        "start_position": (width,),
        "start_norm.weight": (width,),
        "start_value.weight": (width, width), "start_value.bias": (width,),
        "start_proj.weight": (width, width), "start_proj.bias": (width,),
        "level_embedding.weight": (decoder.level_embeddings, width),
        "word_embed.weight": (width, bits), "word_embed.bias": (width,),
        "shared_modulation.weight": (6 * width, width), "shared_modulation.bias": (6 * width,),
        "head_modulation.weight": (2 * width, width), "head_modulation.bias": (2 * width,),
        "head.weight": (2 * bits, width), "head.bias": (2 * bits,),
    }  # fmt: skip


def block_shapes(config: VargptConfig) -> dict[str, Shape]:
    """Our names and shapes inside one decoder block (spec 5.1)."""
    width, heads = config.decoder.hidden_size, config.decoder.num_heads
    hidden = config.decoder.ffn_size
    return {
        "modulation_offset": (6, width),
        "self_attention.qkv.weight": (3 * width, width),
        "self_attention.q_bias": (width,), "self_attention.v_bias": (width,),
        "self_attention.log_scale": (heads,),
        "self_attention.proj.weight": (width, width), "self_attention.proj.bias": (width,),
        "cross_norm.weight": (width,), "cross_norm.bias": (width,),
        "cross_attention.q.weight": (width, width), "cross_attention.q.bias": (width,),
        "cross_attention.kv.weight": (2 * width, width), "cross_attention.v_bias": (width,),
        "cross_attention.proj.weight": (width, width), "cross_attention.proj.bias": (width,),
        "ffn.fc1.weight": (hidden, width), "ffn.fc1.bias": (hidden,),
        "ffn.fc2.weight": (width, hidden), "ffn.fc2.bias": (width,),
    }  # fmt: skip


def decoder_entries(config: VargptConfig) -> list[KeyEntry]:
    """The next-scale decoder, with its unused prompt projections and zero key biases."""
    width, depth, chunks = config.decoder.hidden_size, config.decoder.depth, config.decoder.num_chunks
    if depth % chunks:
        raise ValueError(
            f"the published layout needs depth divisible by num_chunks, got depth {depth} and {chunks} chunks"
        )
    official_shapes: dict[str, Shape] = {"start_position": (1, 1, width), "start_value.weight": (2 * width, width)}
    entries = []
    for name, shape in decoder_shapes(config).items():
        rows = (width, 2 * width) if name == "start_value.weight" else None
        official = "vargpt_gen." + _DECODER_NAMES[name]
        entries.append(KeyEntry(official, official_shapes.get(name, shape), "decoder." + name, shape, rows))
    pool_heads = width // (64 if width > 4096 else 128)
    entries += [
        KeyEntry(
            "vargpt_gen.text_proj_for_sos.ca.mat_q", (1, pool_heads, width // max(pool_heads, 1)), initial="truncated"
        ),
        KeyEntry("vargpt_gen.text_proj_for_sos.ca.zero_k_bias", (width,), initial="zeros", buffer=True),
    ]
    for layer in (0, 2):
        entries += [
            KeyEntry(f"vargpt_gen.text_proj_for_ca.{layer}.weight", (width, width)),
            KeyEntry(f"vargpt_gen.text_proj_for_ca.{layer}.bias", (width,), initial="zeros"),
        ]
    block_official = {
        "modulation_offset": (1, 1, 6, width),
        "self_attention.log_scale": (1, config.decoder.num_heads, 1, 1),
    }
    for index in range(depth):
        chunk, place = divmod(index, depth // chunks)
        prefix = f"vargpt_gen.block_chunks.{chunk}.module.{place}."
        for name, shape in block_shapes(config).items():
            official = prefix + _BLOCK_NAMES[name]
            entries.append(KeyEntry(official, block_official.get(name, shape), f"decoder.blocks.{index}.{name}", shape))
        for attention in ("sa", "ca"):
            entries.append(KeyEntry(f"{prefix}{attention}.zero_k_bias", (width,), initial="zeros", buffer=True))
    return entries


def projector_entries(config: VargptConfig) -> list[KeyEntry]:
    """The two projectors (with their unused norms) and the start table."""
    width, text_width = config.decoder.hidden_size, config.backbone.text_config.hidden_size
    entries = []
    for ours, official, inner, outer in (
        ("in_projector", "image_gen_projector", width, text_width),
        ("out_projector", "image_gen_projector_out", text_width, width),
    ):
        for name, layer, size in (("fc1", 0, inner), ("fc2", 2, outer)):
            for kind, shape in (("weight", (size, inner)), ("bias", (size,))):
                entries.append(KeyEntry(f"{official}.mlp.{layer}.{kind}", shape, f"{ours}.{name}.{kind}", shape))
        entries += [
            KeyEntry(f"{official}.ln_q.weight", (inner,), initial="ones"),
            KeyEntry(f"{official}.ln_q.bias", (inner,), initial="zeros"),
        ]
    row = config.image_gen_start_token_id
    entries.append(KeyEntry("sos_embedding.weight", (row + 1, width), "start_embedding", (width,), (row, row + 1)))
    return entries


def is_official(names: Iterable[str]) -> bool:
    """Whether these keys are mostly published ones (`vargpt_gen.`, ...) rather than ours (`backbone.`, ...)."""
    prefixes = [name.split(".", 1)[0] for name in names]
    return sum(p in _OFFICIAL_PREFIXES for p in prefixes) > sum(p in _OWN_PREFIXES for p in prefixes)


def official_key_table(config: VargptConfig) -> tuple[KeyEntry, ...]:
    """Return every published key for a model of these sizes (1,706 at full size).

    Raises:
        ValueError: if the published layout cannot express these sizes.
    """
    if config.image_tokenizer.patch_size != 1:
        raise ValueError(
            "the published layout has no space-to-depth stem: expected image_tokenizer.patch_size 1, "
            f"got {config.image_tokenizer.patch_size}; keep this model in the vargpt layout"
        )
    if config.decoder.hidden_size < 128:
        raise ValueError(
            "the published layout needs a decoder width of at least 128 (its start pool has width // 128 heads), "
            f"got {config.decoder.hidden_size}; keep this model in the vargpt layout"
        )
    return (
        *backbone_entries(config),
        *image_tokenizer_entries(config),
        *decoder_entries(config),
        *projector_entries(config),
    )
