"""Log-probabilities of images per scale, in float64: what policy and reference are compared by (spec 8.2, row 18).

Invariant: every reduction is a weighted sum over scales of the same numbers, so a reference keeps one number per scale
and image, whatever the reduction; a policy that equals its reference differs from it by exactly 0.

Legend: `I L d` images, image tokens, bits · `K` scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vargpt.losses import LogpReduction, bit_losses
from vargpt.scales import ScaleSchedule


def scale_logps(logits_ILd2: Tensor, labels_ILd: Tensor, schedule: ScaleSchedule) -> Tensor:
    """Sum of the bits' log-probabilities of every scale, float64 [I, K].

    Terms are float32, sums float64: the sum over a 512 px image is near -5e4, where float32 steps are 4e-3 wide.
    """
    logps_ILd = -bit_losses(logits_ILd2, labels_ILd)
    slices = [schedule.slice(scale_index) for scale_index in range(schedule.num_scales)]
    return torch.stack([logps_ILd[:, s].double().sum(dim=(1, 2)) for s in slices], dim=1)


def scale_weights(schedule: ScaleSchedule, bits: int, reduction: LogpReduction) -> Tensor:
    """Weight of every scale's sum in the log-probability of an image, float64 [K].

    `sum` counts every bit once, `mean` divides by all bits, `scale_mean` every scale by its own bits
    (`vargpt.losses.image_logps`).
    """
    if reduction == "sum":
        return torch.ones(schedule.num_scales, dtype=torch.float64)
    if reduction == "mean":
        return torch.full((schedule.num_scales,), 1 / (schedule.num_tokens * bits), dtype=torch.float64)
    return 1 / (torch.tensor(schedule.lengths, dtype=torch.float64) * bits)


def nats_per_bit(schedule: ScaleSchedule, bits: int, reduction: LogpReduction) -> float:
    """How much a log-probability changes when that of every bit changes by 1."""
    lengths = torch.tensor(schedule.lengths, dtype=torch.float64)
    return float((scale_weights(schedule, bits, reduction) * lengths * bits).sum())
