"""Losses that train the image tokenizer from scratch.

Reconstruction (L1 + L2), a perceptual term that needs no downloaded network (L1 between Laplacian pyramids: edges
count at every size), commitment of the latent to its code, and the two entropy terms of BSQ that keep bits decided
and used. Gradients pass the quantiser straight through.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vargpt.image_tokenizer import pyramid
from vargpt.image_tokenizer.bsq import entropy_terms
from vargpt.image_tokenizer.tokenizer import ImageTokenizer
from vargpt.scales import ScaleSchedule


@dataclass(frozen=True)
class TokenizerLossWeights:
    """Weights of the terms; reconstruction L2 has weight 1."""

    l1: float = 0.2
    laplacian: float = 0.2
    commitment: float = 0.25
    entropy: float = 0.02
    entropy_temperature: float = 1.0


def laplacian_l1(images_B3HW: Tensor, targets_B3HW: Tensor, levels: int = 3) -> Tensor:
    """Mean absolute difference of the Laplacian pyramids, averaged over `levels` band-pass levels."""
    difference = images_B3HW - targets_B3HW  # the pyramid is linear: that of the difference is enough
    total = difference.new_zeros(())
    for _ in range(levels):
        coarse = F.avg_pool2d(difference, 2)
        band = difference - F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        total = total + band.abs().mean()
        difference = coarse
    return total / levels


def tokenizer_loss(
    tokenizer: ImageTokenizer, images_B3HW: Tensor, schedule: ScaleSchedule, weights: TokenizerLossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the training loss on images in [-1, 1] and its parts (detached scalars; `psnr` in dB over the batch)."""
    latent_Bdhw = tokenizer.features(images_B3HW)
    with torch.no_grad():
        _, _, canvas_Bdhw, _ = pyramid.encode_latent(latent_Bdhw, schedule)
    straight_through = latent_Bdhw + (canvas_Bdhw - latent_Bdhw).detach()
    decoded_B3HW = tokenizer.decoder(straight_through).float()
    l2 = F.mse_loss(decoded_B3HW, images_B3HW)
    l1 = F.l1_loss(decoded_B3HW, images_B3HW)
    edges = laplacian_l1(decoded_B3HW, images_B3HW)
    commitment = F.mse_loss(latent_Bdhw, canvas_Bdhw) * latent_Bdhw.shape[1]
    confidence, usage = entropy_terms(latent_Bdhw, weights.entropy_temperature)
    loss = (
        l2
        + weights.l1 * l1
        + weights.laplacian * edges
        + weights.commitment * commitment
        + weights.entropy * (confidence - usage)
    )
    with torch.no_grad():
        errors_B = (decoded_B3HW.clamp(-1, 1) - images_B3HW).square().mean((1, 2, 3)) / 4
        psnr = (-10 * torch.log10(errors_B.clamp_min(1e-10))).mean()
    parts = {
        "l2": l2, "l1": l1, "laplacian": edges, "commitment": commitment,
        "bit_confidence": confidence, "bit_usage": usage, "psnr": psnr,
    }  # fmt: skip
    return loss, {name: value.detach() for name, value in parts.items()}
