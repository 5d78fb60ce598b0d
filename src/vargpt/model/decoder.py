"""`NextScaleDecoder`: hidden states of image tokens to two-way logits for their bits (spec section 5).

Invariant: `forward` over all L tokens under the block-causal mask equals `forward` scale by scale with a cache.

Legend: `I` images · `R` sequences (images, or images times guidance branches) · `L` tokens of the call ·
`M` = L - n_0 · `P` context rows · `C` width · `d` bits per token.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vargpt.configuration import DecoderConfig
from vargpt.model.blocks import Block, plain_norm, round_to_bfloat16
from vargpt.model.cache import DecoderCache
from vargpt.model.rope2d import rotary_table
from vargpt.scales import ScaleSchedule

ContextKeysValues = list[tuple[Tensor, Tensor]]


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + eps) * weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, values: Tensor) -> Tensor:
        """Normalise over the last axis in float32."""
        wide = values.float()
        return ((wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)) * self.weight).to(values.dtype)


@lru_cache(maxsize=64)
def block_mask(schedule: ScaleSchedule, device: torch.device) -> Tensor:
    """Return the schedule's block-causal mask on a device, bool [L, L]; shared, not to be written to."""
    with torch.inference_mode(False), torch.no_grad():
        return schedule.block_causal_mask().to(device)


class NextScaleDecoder(nn.Module):
    """Transformer over image tokens: block-causal by scale, cross-attending to the image's own context."""

    def __init__(self, config: DecoderConfig, bits: int, cross_attention_dtype: Literal["model", "bfloat16"]) -> None:
        super().__init__()
        self.config = config
        self.cross_attention_dtype = cross_attention_dtype
        width = config.hidden_size
        self.unconditional = nn.Parameter(torch.zeros(config.unconditional_rows, width))
        self.start_position = nn.Parameter(torch.zeros(width))
        self.start_norm = RMSNorm(width, eps=1e-6)
        self.start_value = nn.Linear(width, width)
        self.start_proj = nn.Linear(width, width)
        self.level_embedding = nn.Embedding(config.level_embeddings, width)
        self.word_embed = nn.Linear(bits, width)
        self.shared_modulation = nn.Linear(width, 6 * width)
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, 2 * bits)
        last = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(Block(config, config.drop_path_rate * i / last) for i in range(config.depth))

    def block_list(self) -> list[Block]:
        """Return the blocks, first to last."""
        return cast(list[Block], list(self.blocks))

    def condition(self, start_embedding_C: Tensor, drop_R: Tensor) -> Tensor:
        """Return the condition vectors [R, C] (spec 5.2): from the start embedding, or from row 0 where dropped.

        The published attentive pool sees one token, so its softmax is 1 and only the value path remains.
        """
        sources = torch.stack([start_embedding_C, self.unconditional[0].to(start_embedding_C.dtype)])
        values = self.start_value(self.start_norm(sources))
        if self.cross_attention_dtype == "bfloat16":
            values = round_to_bfloat16(values)
        return self.start_proj(values)[drop_R.long()]

    def modulation(self, condition_RC: Tensor) -> Tensor:
        """Return the shared modulation [R, 6, C]: gates 1 2, scales 1 2, shifts 1 2 (spec 5.3)."""
        return self.shared_modulation(F.silu(condition_RC)).unflatten(-1, (6, -1))

    def embed_start(self, condition_RC: Tensor) -> Tensor:
        """Return the input of the first scale, [R, 1, C]."""
        return (condition_RC + self.start_position)[:, None]

    def embed_next(self, next_inputs_Rld: Tensor) -> Tensor:
        """Return the input of later scales from the canvas resized to them, [R, l, C]."""
        return self.word_embed(next_inputs_Rld.to(self.word_embed.weight.dtype))

    def context_keys_values(self, context_RPC: Tensor) -> ContextKeysValues:
        """Project the context for every block, once per image."""
        return [block.cross_attention.keys_values(context_RPC) for block in self.block_list()]

    def forward(
        self,
        values_RLC: Tensor,
        condition_RC: Tensor,
        schedule: ScaleSchedule,
        context: ContextKeysValues,
        context_mask_RP: Tensor | None,
        cache: DecoderCache | None = None,
        scale_index: int | None = None,
    ) -> Tensor:
        """Return logits [R, L, d, 2] for all tokens, or with a cache for the tokens of one scale.

        Args:
            values_RLC: projected backbone states of the image tokens, without level embeddings.
            context_mask_RP: bool, True on real context rows; None where all are real.
            cache, scale_index: both or neither.
        """
        device = values_RLC.device
        cos, sin = rotary_table(schedule, self.config.hidden_size // self.config.num_heads, device)
        if cache is None or scale_index is None:
            levels = self.level_embedding(schedule.scale_ids().to(device))
            mask: Tensor | None = block_mask(schedule, device)
        else:
            tokens = schedule.slice(scale_index)
            cos, sin, mask = cos[tokens], sin[tokens], None
            levels = self.level_embedding.weight[scale_index]
        values = values_RLC + levels
        modulation = self.modulation(condition_RC)
        context_mask = None if context_mask_RP is None else context_mask_RP[:, None, None, :]
        cross_dtype = self.cross_attention_dtype
        for index, block in enumerate(self.block_list()):
            layer_cache = None if cache is None else cache.layers[index]
            values = block(
                values,
                modulation,
                (cos, sin),
                mask,
                context[index],
                context_mask,
                cross_dtype,
                layer_cache,
            )
        return self.logits(values, condition_RC)

    def logits(self, values_RLC: Tensor, condition_RC: Tensor) -> Tensor:
        """Apply the modulated head: [R, L, d, 2], the last axis holding the values 0 and 1 of a bit (spec 5.9)."""
        scale, shift = self.head_modulation(F.silu(condition_RC))[:, None].chunk(2, dim=-1)
        normed = plain_norm(values_RLC, self.config.norm_eps) * (1 + scale) + shift
        return self.head(normed).unflatten(-1, (-1, 2))
