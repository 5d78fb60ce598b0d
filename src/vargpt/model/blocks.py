"""Blocks of the next-scale decoder: modulated self-attention, plain cross-attention, modulated feed-forward.

Invariant: sub-modules return values before their gate; the residual stream is only written in `Block.forward`.

Legend: `R` sequences (images, or images times guidance branches) · `L` tokens of the call · `P` context rows ·
`C` width · `N E` heads and head width.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from vargpt.configuration import DecoderConfig
from vargpt.model.cache import LayerCache
from vargpt.model.rope2d import rotate

MAX_LOG_SCALE = math.log(100.0)


def split_heads(values_RLC: Tensor, num_heads: int) -> Tensor:
    """[R, L, N*E] to [R, N, L, E]; heads are contiguous slices of the channel axis."""
    return values_RLC.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(values_RNLE: Tensor) -> Tensor:
    """[R, N, L, E] to [R, L, N*E]."""
    return values_RNLE.transpose(1, 2).flatten(2)


def plain_norm(values: Tensor, eps: float) -> Tensor:
    """LayerNorm without weights; statistics are float32 inside the kernel, the result has the input's dtype."""
    return F.layer_norm(values, values.shape[-1:], eps=eps)


class SelfAttention(nn.Module):
    """Cosine attention with a learned scale per head and 2-D rotary positions (spec 5.5)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, self.num_heads = config.hidden_size, config.num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.full((self.num_heads,), math.log(4.0)))
        self.proj = nn.Linear(width, width)

    def forward(
        self, values_RLC: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor | None, cache: LayerCache | None = None
    ) -> Tensor:
        """Attend inside the sequence.

        Args:
            rotary: cos and sin [L, E/2] of the tokens of this call.
            mask: bool [L, L], True = may attend; None with a cache, where everything stored may be seen.
            cache: keys (already rotated) and values of earlier scales; extended by this call.
        """
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = F.linear(values_RLC, self.qkv.weight, bias).chunk(3, dim=-1)
        q, k, v = (split_heads(part, self.num_heads) for part in (q, k, v))
        scale = self.log_scale.clamp(max=MAX_LOG_SCALE).exp()[:, None, None]
        q = rotate(F.normalize(q, dim=-1) * scale, *rotary).to(v.dtype)
        k = rotate(F.normalize(k, dim=-1), *rotary).to(v.dtype)
        if cache is not None:
            k, v = cache.append(k, v)
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)))


class CrossAttention(nn.Module):
    """Attention from image tokens to the rows of their own context; no mask but padding, no positions (spec 5.7)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width, self.num_heads = config.hidden_size, config.num_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def keys_values(self, context_RPC: Tensor) -> tuple[Tensor, Tensor]:
        """Project the context once; [R, N, P, E] each."""
        bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        k, v = F.linear(context_RPC, self.kv.weight, bias).chunk(2, dim=-1)
        return split_heads(k, self.num_heads), split_heads(v, self.num_heads)

    def forward(
        self,
        values_RLC: Tensor,
        keys_values: tuple[Tensor, Tensor],
        mask_R11P: Tensor | None,
        dtype: Literal["model", "bfloat16"] = "model",
    ) -> Tensor:
        """Attend to the context; `dtype="bfloat16"` rounds inputs and output as the published kernel (spec 5.8)."""
        q = split_heads(self.q(values_RLC), self.num_heads)
        k, v = keys_values
        if dtype == "bfloat16":
            q, k, v = (round_to_bfloat16(part) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_R11P)
        if dtype == "bfloat16":
            attended = round_to_bfloat16(attended)
        return self.proj(merge_heads(attended))


def round_to_bfloat16(values: Tensor) -> Tensor:
    """Round to bfloat16 precision, keeping the dtype."""
    return values.to(torch.bfloat16).to(values.dtype)


class FeedForward(nn.Module):
    """fc2(GELU_tanh(fc1(x)))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.ffn_size)
        self.fc2 = nn.Linear(config.ffn_size, config.hidden_size)

    def forward(self, values: Tensor) -> Tensor:
        """Apply position-wise."""
        return self.fc2(F.gelu(self.fc1(values), approximate="tanh"))


class DropPath(nn.Module):
    """Drop a whole residual branch per sequence, in training mode only; kept ones are scaled up.

    It is the one source of randomness inside the model. Put the decoder in `eval()` mode where it must be off
    (a frozen decoder, preference training); there is no other dropout.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        """Return `values` scaled by 0 or 1 / (1 - rate) per first-axis entry."""
        if not self.training or self.rate == 0:
            return values
        keep = 1 - self.rate
        mask = torch.rand(values.shape[0], *[1] * (values.ndim - 1), device=values.device) < keep
        return values * (mask.to(values.dtype) / keep)


class Block(GradientCheckpointingLayer):
    """One decoder block (spec 5.4)."""

    def __init__(self, config: DecoderConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.modulation_offset = nn.Parameter(torch.zeros(6, config.hidden_size))
        self.self_attention = SelfAttention(config)
        self.cross_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.cross_attention = CrossAttention(config)
        self.ffn = FeedForward(config)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self,
        values_RLC: Tensor,
        modulation_R6C: Tensor,
        rotary: tuple[Tensor, Tensor],
        self_mask: Tensor | None,
        context: tuple[Tensor, Tensor],
        context_mask: Tensor | None,
        cross_dtype: Literal["model", "bfloat16"] = "model",
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Return the block's output; `context` holds this block's cross-attention keys and values."""
        parts = (self.modulation_offset + modulation_R6C).unsqueeze(2).unbind(1)
        gate1, gate2, scale1, scale2, shift1, shift2 = parts
        attended = self.self_attention(
            plain_norm(values_RLC, self.eps) * (1 + scale1) + shift1, rotary, self_mask, cache
        )
        values = values_RLC + self.drop_path(gate1 * attended)
        values = values + self.cross_attention(self.cross_norm(values), context, context_mask, cross_dtype)
        return values + self.drop_path(gate2 * self.ffn(plain_norm(values, self.eps) * (1 + scale2) + shift2))
