"""Two-dimensional rotary embedding of image tokens (spec 5.6).

Invariant: angles, cosines and sines are computed in float32 and cast to the activation's dtype on use; no table is
stored in a module.

Legend: `L` image tokens · `N` heads · `E` head width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from vargpt.scales import ScaleSchedule

_BASE = 10000.0


@lru_cache(maxsize=64)
def rotary_table(schedule: ScaleSchedule, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin, float32 [L, E/2]: the first half of the pairs turns with the row, the second with the column.

    The result is shared between callers and must not be written to.
    """
    with torch.inference_mode(False), torch.no_grad():
        rows, columns, _ = schedule.rope_positions()
        quarter = head_dim // 4
        exponents = torch.arange(quarter, dtype=torch.float32) * 2 / (head_dim // 2)
        frequencies = 1.0 / (_BASE**exponents)
        angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=-1)
        return angles.cos().to(device), angles.sin().to(device)


def rotate(heads_BNLE: Tensor, cos_LP: Tensor, sin_LP: Tensor) -> Tensor:
    """Turn the adjacent channel pairs (2j, 2j+1) by the angles of pair j; P = E/2."""
    cos, sin = cos_LP.to(heads_BNLE.dtype), sin_LP.to(heads_BNLE.dtype)
    even, odd = heads_BNLE[..., 0::2], heads_BNLE[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
