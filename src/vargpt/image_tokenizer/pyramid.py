"""The multi-scale residual pyramid: how scales of codes add up to a canvas (spec 4.3, 4.4).

Invariant: there is one traversal, `advance`; encoding a picture and sampling one both loop over it, so teacher
inputs equal sampling inputs by construction.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vargpt.image_tokenizer.bsq import bits_from_latent, codes_from_bits
from vargpt.scales import Grid, ScaleSchedule


def resize_down(grid_Bdhw: Tensor, size: Grid) -> Tensor:
    """Area (adaptive average) resampling, used only to bring a residual to its scale."""
    return F.interpolate(grid_Bdhw, size=size, mode="area")


def resize_up(grid_Bdhw: Tensor, size: Grid) -> Tensor:
    """Bilinear resampling with half-pixel centres and no antialiasing, also where it shrinks (spec 4.3, quirk 37)."""
    return F.interpolate(grid_Bdhw, size=size, mode="bilinear", align_corners=False)


def advance(
    canvas_Bdhw: Tensor | None, bits_Bld: Tensor, scale_index: int, schedule: ScaleSchedule
) -> tuple[Tensor, Tensor | None]:
    """Add the bits of one scale to the canvas and make the input of the next scale.

    Args:
        canvas_Bdhw: float32 sum of the coarser scales at the last grid, or None before the first scale.
        bits_Bld: bits of this scale, tokens row-major.

    Returns:
        The new canvas, and the next scale's input [B, l_next, d] float32 (None after the last scale).
    """
    height, width = schedule.sizes[scale_index]
    if bits_Bld.shape[1] != height * width:
        raise ValueError(
            f"scale {scale_index} of this schedule is {height}x{width} = {height * width} tokens, "
            f"got bits for {bits_Bld.shape[1]}"
        )
    step = resize_up(codes_from_bits(bits_Bld, height, width), schedule.grid)
    canvas = step if canvas_Bdhw is None else canvas_Bdhw + step
    if scale_index + 1 == schedule.num_scales:
        return canvas, None
    return canvas, resize_up(canvas, schedule.sizes[scale_index + 1]).flatten(2).transpose(1, 2)


def residual_at(latent_Bdhw: Tensor, canvas_Bdhw: Tensor | None, scale_index: int, schedule: ScaleSchedule) -> Tensor:
    """What the coarser scales left of the latent, at the grid of this scale (not resampled at the last one)."""
    residual = latent_Bdhw if canvas_Bdhw is None else latent_Bdhw - canvas_Bdhw
    if scale_index + 1 == schedule.num_scales:
        return residual
    return resize_down(residual, schedule.sizes[scale_index])


def encode_latent(
    latent_Bdhw: Tensor, schedule: ScaleSchedule, flips_BLd: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Write a latent as K scales of bits (spec 4.4, bitwise self-correction).

    The labels of a scale come from the residual that the *flipped* bits of the coarser scales left, so a model
    trained on them learns to repair errors. Flips of the last scale change only the canvas.

    Returns:
        labels uint8 [B, L, d]; next-scale inputs float32 [B, L - n_0, d]; canvas float32 [B, d, h, w]; and the
        residual grids that were quantised, one per scale (for entropy terms).
    """
    canvas: Tensor | None = None
    labels, next_inputs, residuals = [], [], []
    for scale_index in range(schedule.num_scales):
        residual = residual_at(latent_Bdhw, canvas, scale_index, schedule)
        bits_Bld = bits_from_latent(residual)
        labels.append(bits_Bld)
        residuals.append(residual)
        if flips_BLd is not None:
            bits_Bld = bits_Bld ^ flips_BLd[:, schedule.slice(scale_index)].to(torch.uint8)
        canvas, next_input = advance(canvas, bits_Bld, scale_index, schedule)
        if next_input is not None:
            next_inputs.append(next_input)
    assert canvas is not None
    batch, dim = latent_Bdhw.shape[:2]
    inputs = torch.cat(next_inputs, 1) if next_inputs else canvas.new_zeros(batch, 0, dim)
    return torch.cat(labels, 1), inputs, canvas, residuals
