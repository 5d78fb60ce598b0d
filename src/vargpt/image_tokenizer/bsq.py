"""Binary spherical quantisation: sign bits and their codes (spec 4.3).

Invariant: a code has unit length over its d channels, and its signs are its bits. Bit order = channel order.
Legend: `B h w d` as in `vargpt.scales`; channel axis 1 for grids, last axis for tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bits_from_latent(latent_Bdhw: Tensor) -> Tensor:
    """Return the sign bits (1 where the value is > 0) as uint8 tokens [B, h*w, d].

    The published code l2-normalises first, which cannot change a sign; zero gives 0.
    """
    return (latent_Bdhw > 0).flatten(2).transpose(1, 2).to(torch.uint8)


def codes_from_bits(bits_Bld: Tensor, height: int, width: int) -> Tensor:
    """Return float32 codes [B, d, height, width]: +-1/sqrt(d), normalised once more (1 ulp; needed for exact sums)."""
    dim = bits_Bld.shape[-1]
    magnitude = 1.0 / dim**0.5
    codes_Bld = 2 * magnitude * bits_Bld.to(torch.float32) - magnitude
    codes_Bld = F.normalize(codes_Bld, dim=-1)
    return codes_Bld.transpose(1, 2).unflatten(2, (height, width))


def entropy_terms(latent_Bdhw: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Entropy of the soft bits of a residual grid, in bits per bit (0..1); both differentiable.

    A bit is 1 with probability sigmoid(2 * value * sqrt(d) / temperature): the BSQ soft assignment (arXiv
    2406.07548, eq. 9) for independent bits.

    Returns:
        confidence: mean entropy of each single bit (low = decided), and
        usage: mean over channels of the entropy of the batch-average bit (high = every bit is used).
    """
    dim = latent_Bdhw.shape[1]
    probability = torch.sigmoid(2.0 * latent_Bdhw.float() * dim**0.5 / temperature)
    return _binary_entropy(probability).mean(), _binary_entropy(probability.mean(dim=(0, 2, 3))).mean()


def _binary_entropy(probability: Tensor) -> Tensor:
    p = probability.clamp(1e-6, 1 - 1e-6)
    return -(p * torch.log2(p) + (1 - p) * torch.log2(1 - p))
