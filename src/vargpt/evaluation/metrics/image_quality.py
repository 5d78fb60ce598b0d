"""How near a picture is to its original: PSNR and SSIM on 8-bit levels.

Invariant: one number per pair of pictures, the same whatever else is in the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PSNR_LIMIT = 100.0
"""PSNR in dB that identical pictures get (theirs is infinite, which no mean survives)."""

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2, _PEAK = 0.01, 0.03, 255.0


def psnr(first_nHW3: Tensor, second_nHW3: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pairs of uint8 pictures, float32 [n].

    10 log10(255^2 / mean squared difference over pixels and channels), at most `PSNR_LIMIT`.

    Raises:
        ValueError: not uint8 [n, H, W, 3] twice, of one shape.
    """
    _check(first_nHW3, second_nHW3)
    error = (first_nHW3.double() - second_nHW3.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(_PEAK**2 / error)).clamp_max(PSNR_LIMIT).float()


def ssim(first_nHW3: Tensor, second_nHW3: Tensor) -> Tensor:
    """Structural similarity of pairs of uint8 pictures, float32 [n], 1 for identical ones.

    Wang, Bovik, Sheikh and Simoncelli 2004: Gaussian window of 11 x 11 with deviation 1.5, K1 = 0.01, K2 = 0.03, where
    the whole window fits; the mean over places and over the three colour channels (the paper has one channel).

    Raises:
        ValueError: not uint8 [n, H, W, 3] twice, of one shape, or a side below 11 pixels.
    """
    _check(first_nHW3, second_nHW3)
    height, width = first_nHW3.shape[1:3]
    if min(height, width) < _WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {_WINDOW}x{_WINDOW} pixels, got {height}x{width}")
    first, second = first_nHW3.permute(0, 3, 1, 2).double(), second_nHW3.permute(0, 3, 1, 2).double()
    mean_1, mean_2 = _local_mean(first), _local_mean(second)
    variance_1 = _local_mean(first * first) - mean_1 * mean_1
    variance_2 = _local_mean(second * second) - mean_2 * mean_2
    covariance = _local_mean(first * second) - mean_1 * mean_2
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    similarity = ((2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)) / (
        (mean_1 * mean_1 + mean_2 * mean_2 + c1) * (variance_1 + variance_2 + c2)
    )
    return similarity.mean((1, 2, 3)).float()


def _local_mean(images_n3HW: Tensor) -> Tensor:
    """Gaussian-weighted means where the window fits."""
    places = torch.arange(_WINDOW, device=images_n3HW.device, dtype=images_n3HW.dtype) - _WINDOW // 2
    weights = torch.exp(-places.square() / (2 * _SIGMA**2))
    rows = (weights / weights.sum()).view(1, 1, -1, 1).expand(3, 1, -1, 1)
    return F.conv2d(F.conv2d(images_n3HW, rows, groups=3), rows.transpose(2, 3), groups=3)


def _check(first: Tensor, second: Tensor) -> None:
    for images in (first, second):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"expected pictures uint8 [n, H, W, 3], got {images.dtype} {tuple(images.shape)}")
    if first.shape != second.shape:
        raise ValueError(f"expected two batches of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
