"""The one place where training draws at random: what a sample is worded like, what is dropped, cropped and flipped.

Invariant: every draw is a function of (seed, stage, position in its order, purpose) alone, so it does not depend
on batches, ranks or resumes, and two models that look at the same position see the same tensors.
"""

from __future__ import annotations

import hashlib
import random

import torch
from torch import Tensor

from vargpt.scales import ScaleSchedule


def stream_seed(seed: int, stage: str, position: int, purpose: str) -> int:
    """A 63-bit seed for one purpose at one position of a stage."""
    text = f"{seed}:{stage}:{position}:{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def chance_at(seed: int, stage: str, position: int, purpose: str) -> random.Random:
    """A generator of Python's for wording, drops and choices."""
    return random.Random(stream_seed(seed, stage, position, purpose))


def draw_flips(
    seed: int, stage: str, position: int, schedule: ScaleSchedule, bits: int, strength: float, purpose: str = "flips"
) -> Tensor:
    """Bit errors to inject into one image, bool [L, d]: one rate per scale, uniform in [0, `strength`] (spec 4.4)."""
    generator = torch.Generator().manual_seed(stream_seed(seed, stage, position, purpose))
    rates_K = torch.rand(schedule.num_scales, generator=generator) * strength
    return torch.rand(schedule.num_tokens, bits, generator=generator) < rates_K[schedule.scale_ids()][:, None]
