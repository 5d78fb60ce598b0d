"""The vision tower: images of one size as one batch, and convolutions as its stem.

Invariant: `equal_image_features` gives what transformers' own tower gives, up to rounding. That tower attends image by
image in a Python loop and makes positions from tensors on the device, which leaves a GPU waiting; on a CPU it costs
nothing and stays in use, as the readable path. A tower with a convolutional stem, which transformers does not know,
always goes through ours.

Legend: `n` images · `N` patches of an image · `c` width of the tower · `D` backbone width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VisionTransformerPretrainedModel,
    VisionAttention,
    apply_rotary_pos_emb_vision,
)

from vargpt.model.stem import ConvolutionalStem

Grid = tuple[int, int, int]


class ImagesAttention(VisionAttention):
    """Attention inside each image; images of one size, told by `images`, go through one kernel."""

    def forward(self, hidden_states: Tensor, *args: Any, images: int | None = None, **kwargs: Any) -> Tensor:
        """Attend; `images` equal stretches of the first axis, or without it as transformers does."""
        if images is None:
            return super().forward(hidden_states, *args, **kwargs)
        cos, sin = kwargs["position_embeddings"]
        q, k, v = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        q, k, v = (part.unflatten(0, (images, -1)).transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, scale=self.scaling)
        return self.proj(attended.transpose(1, 2).flatten(0, 1).flatten(1))


def prepare_vision(visual: Qwen2VisionTransformerPretrainedModel) -> None:
    """Let the tower's attention take batches of images of one size, and give it the stem that its configuration names.

    Raises:
        ValueError: for an unknown `stem`.
    """
    stem = getattr(visual.config, "stem", "patch")
    if stem not in ("patch", "convolution"):
        raise ValueError(f"vision_config.stem must be patch or convolution, got {stem!r}")
    if stem == "convolution":
        visual.patch_embed = ConvolutionalStem(visual.config)
    for block in visual.blocks:
        # The class alone is exchanged: weights, names and initial values stay as they are.
        block.attn.__class__ = ImagesAttention


def image_features(
    visual: Qwen2VisionTransformerPretrainedModel, pixel_values: Tensor, image_grid_thw: Tensor
) -> Tensor:
    """Features [sum of N / merge^2, D] of all images, in order.

    Args:
        pixel_values: patches of all images [sum of N, patch_dim].
        image_grid_thw: (1, rows, columns) of patches of each image, on the CPU (`ModelInputs.to` leaves it there).
    """
    values = pixel_values.to(visual.dtype)
    convolves = isinstance(visual.patch_embed, ConvolutionalStem)
    if convolves or values.device.type != "cpu":
        grids = [(int(t), int(h), int(w)) for t, h, w in image_grid_thw.tolist()]
        if convolves or len(set(grids)) == 1:
            return _features_by_size(visual, values, grids)
    return visual(values, grid_thw=image_grid_thw.to(values.device)).pooler_output


def _features_by_size(visual: Qwen2VisionTransformerPretrainedModel, values: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Features of all images in order, those of one size computed together."""
    if len(set(grids)) == 1:
        return equal_image_features(visual, values, grids[0])
    patches = values.split([times * rows * columns for times, rows, columns in grids])
    features: dict[int, Tensor] = {}
    for grid in dict.fromkeys(grids):
        alike = [index for index, other in enumerate(grids) if other == grid]
        together = equal_image_features(visual, torch.cat([patches[index] for index in alike]), grid)
        features.update(zip(alike, together.chunk(len(alike)), strict=True))
    return torch.cat([features[index] for index in range(len(grids))])


def equal_image_features(visual: Qwen2VisionTransformerPretrainedModel, values: Tensor, grid: Grid) -> Tensor:
    """Features of images that all have the same grid of patches."""
    times, rows, columns = grid
    if times != 1:
        raise ValueError(f"images have one frame, got a grid of {times} x {rows} x {columns} patches")
    images = values.shape[0] // (rows * columns)
    head_width = visual.blocks[0].attn.head_dim
    cos, sin = rotary_angles(rows, columns, visual.spatial_merge_size, head_width, values.device)
    positions = cos.repeat(images, 1), sin.repeat(images, 1)
    stem = visual.patch_embed
    hidden = stem(values, (rows, columns)) if isinstance(stem, ConvolutionalStem) else stem(values)
    for block in visual.blocks:
        hidden = block(hidden, cu_seqlens=None, position_embeddings=positions, images=images)
    return visual.merger(hidden)


def rotary_angles(rows: int, columns: int, merge: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, head_width] of the patches of one image in merge order (Qwen2-VL: theta 10,000, half of
    the frequencies for rows, half for columns)."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    in_merge_order = (
        side.reshape(rows // merge, merge, columns // merge, merge).transpose(1, 2).flatten() for side in (row, column)
    )
    half = head_width // 2
    frequencies = 1.0 / (10_000.0 ** (torch.arange(0, half, 2, dtype=torch.float) / half))
    angles = torch.cat([side[:, None].float() * frequencies for side in in_merge_order], dim=-1)
    angles = torch.cat([angles, angles], dim=-1).to(device)
    return angles.cos(), angles.sin()
