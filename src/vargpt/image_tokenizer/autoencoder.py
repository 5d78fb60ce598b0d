"""Convolutional encoder and decoder of the image tokenizer (spec 4.1, 4.2).

Invariant: with `patch_size` 1, five levels and stride 16 the arithmetic is that of the published autoencoder; a
`patch_size` above 1 puts a space-to-depth stem in front (and its inverse behind), which small models use.
Shapes: `images_B3HW`, features NCHW, `latent_Bdhw`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vargpt.configuration import ImageTokenizerConfig

_NORM_EPS = 1e-6


def num_resamplings(config: ImageTokenizerConfig) -> int:
    """Number of 2x resamplings between the stem and the latent, checked against the number of levels."""
    factor, remainder = divmod(config.stride, config.patch_size)
    if remainder or factor < 1 or factor & (factor - 1):
        raise ValueError(
            f"stride / patch_size must be a power of two, got stride {config.stride} and patch_size {config.patch_size}"
        )
    count = factor.bit_length() - 1
    levels = len(config.channel_multipliers)
    if levels != count + 1:
        raise ValueError(
            f"stride {config.stride} with patch_size {config.patch_size} needs {count + 1} channel_multipliers "
            f"(one per level), got {levels}: {tuple(config.channel_multipliers)}"
        )
    return count


def _group_norm(channels: int) -> nn.GroupNorm:
    for groups in (32, 24):
        if channels % groups == 0:
            return nn.GroupNorm(groups, channels, eps=_NORM_EPS)
    raise ValueError(f"GroupNorm needs a channel count divisible by 32 or 24, got {channels}; change base_channels")


class ResidualUnit(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), with a 1x1 shortcut when the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.shortcut(x) + hidden


class _EncoderLevel(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, num_units: int, downsample: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_units
        self.blocks = nn.ModuleList(ResidualUnit(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.downsample = nn.Conv2d(out_channels, out_channels, 3, stride=2) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(F.pad(x, (0, 1, 0, 1)))  # one column right, one row below: asymmetric as published
        return x


class _DecoderLevel(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, num_units: int, upsample: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_units
        self.blocks = nn.ModuleList(ResidualUnit(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.upsample = nn.Conv2d(out_channels, out_channels, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        if self.upsample is not None:
            x = self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class Encoder(nn.Module):
    """Images in [-1, 1] to the latent before quantisation."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        downs = num_resamplings(config)
        widths = [config.base_channels * m for m in config.channel_multipliers]
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(3 * config.patch_size**2, widths[0], 3, padding=1)
        inputs = [widths[0], *widths[:-1]]
        self.down = nn.ModuleList(
            _EncoderLevel(a, b, config.num_res_blocks, downsample=i < downs)
            for i, (a, b) in enumerate(zip(inputs, widths, strict=True))
        )
        self.mid = nn.ModuleList(ResidualUnit(widths[-1], widths[-1]) for _ in range(2))
        self.norm_out = _group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.bits, 3, padding=1)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        x = F.pixel_unshuffle(images_B3HW, self.patch_size) if self.patch_size > 1 else images_B3HW
        x = self.conv_in(x)
        for module in (*self.down, *self.mid):
            x = module(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Canvas (sum of codes) to images, not clamped."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        ups = num_resamplings(config)
        widths = [config.base_channels * m for m in config.channel_multipliers]
        self.patch_size = config.patch_size
        self.conv_in = nn.Conv2d(config.bits, widths[-1], 3, padding=1)
        self.mid = nn.ModuleList(ResidualUnit(widths[-1], widths[-1]) for _ in range(2))
        inputs = [*widths[1:], widths[-1]]
        # Stored by level (0 = finest), run from the coarsest level down, as the published keys have it.
        self.up = nn.ModuleList(
            _DecoderLevel(a, b, config.num_res_blocks + 1, upsample=1 <= i <= ups)
            for i, (a, b) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out = _group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3 * config.patch_size**2, 3, padding=1)

    def forward(self, canvas_Bdhw: Tensor) -> Tensor:
        x = self.conv_in(canvas_Bdhw)
        for module in (*self.mid, *reversed(self.up)):
            x = module(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return F.pixel_shuffle(x, self.patch_size) if self.patch_size > 1 else x
