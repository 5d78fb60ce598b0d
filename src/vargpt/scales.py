"""Scale schedules: the only place that knows the grids of next-scale prediction.

Invariant: everything that depends on a grid (token counts, slices, masks, rotary positions, pixel size) is
derived from one `ScaleSchedule`; no other file contains a list of grid sizes.

Glossary of shape suffixes used across the package:
`B` batch · `I` generated images in a batch · `H W` pixels · `h w` grid of a scale · `L` all image tokens ·
`M` image tokens after the first scale (L - n_0) · `l` tokens of one scale · `K` scales · `d` bits per token ·
`C` decoder width · `D` backbone width · `T` text tokens · `V` vocabulary · `N` heads · `E` head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Grid = tuple[int, int]

BUDGETS: dict[str, int] = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
"""Published pixel budgets -> number of scales (spec section 3)."""

NUM_TEMPLATE_SCALES = 13


def _parse(text: str) -> tuple[Grid, ...]:
    return tuple((int(a), int(b)) for a, b in (item.split("x") for item in text.split()))


# Height/width ratio -> 13 grids (height x width), for ratios >= 1 (spec section 3).
_TALL: dict[float, tuple[Grid, ...]] = {
    1.000: _parse("1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64"),
    1.250: _parse("1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56"),
    1.333: _parse("1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54"),
    1.500: _parse("1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52"),
    1.750: _parse("1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48"),
    2.000: _parse("1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45"),
    2.500: _parse("1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40"),
    3.000: _parse("1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37"),
}


def _all_templates() -> dict[float, tuple[Grid, ...]]:
    """All 15 templates in the published order, which decides ties; inverse keys are truncated to 3 decimals."""
    templates: dict[float, tuple[Grid, ...]] = {}
    for key, grids in _TALL.items():
        templates[key] = grids
        if key != 1.0:
            templates[int(1000 / key) / 1000] = tuple((w, h) for h, w in grids)
    return templates


TEMPLATES: dict[float, tuple[Grid, ...]] = _all_templates()
"""Height/width ratio -> its 13 grids (height, width), in the published order."""


def nearest_template(height: float, width: float) -> float:
    """Return the template key nearest to height/width (L1 on the ratio, the first one on ties; spec section 3)."""
    if height <= 0 or width <= 0:
        raise ValueError(f"an image size must be positive, got {height}x{width} (height x width)")
    ratio = height / width
    return min(TEMPLATES, key=lambda key: abs(ratio - key))


@dataclass(frozen=True)
class ScaleSchedule:
    """The grids, coarse to fine, on which one image is predicted.

    `template` is the height/width key of a row of the published table and `num_scales` the length of the prefix
    that is used (7, 10, 12 or 13 for the published pixel budgets; any prefix is a valid schedule). One cell of the
    last grid covers `stride` x `stride` pixels.
    """

    template: float
    num_scales: int
    stride: int = 16

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            known = ", ".join(f"{key:g}" for key in TEMPLATES)
            raise ValueError(f"unknown aspect template {self.template!r}: expected one of {known} (height/width)")
        if not 1 <= self.num_scales <= NUM_TEMPLATE_SCALES:
            raise ValueError(f"num_scales must be 1..{NUM_TEMPLATE_SCALES}, got {self.num_scales}")
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1 pixel, got {self.stride}")

    @classmethod
    def from_template(cls, key: float, num_scales: int, stride: int = 16) -> ScaleSchedule:
        """Build the schedule of the template with exactly this height/width key."""
        return cls(key, num_scales, stride)

    @classmethod
    def for_image(cls, height: float, width: float, num_scales: int, stride: int = 16) -> ScaleSchedule:
        """Build the schedule whose aspect is nearest to an image of `height` x `width` (any unit)."""
        return cls(nearest_template(height, width), num_scales, stride)

    @cached_property
    def template_sizes(self) -> tuple[Grid, ...]:
        """All 13 grids of the template; the 2-D rotary positions are stretched to the last one."""
        return TEMPLATES[self.template]

    @cached_property
    def sizes(self) -> tuple[Grid, ...]:
        """Grids (height, width) of the scales in use, coarse to fine."""
        return self.template_sizes[: self.num_scales]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens per scale."""
        return tuple(h * w for h, w in self.sizes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Index of the first token of each scale, and L as the last entry (K + 1 numbers)."""
        offsets = [0]
        for length in self.lengths:
            offsets.append(offsets[-1] + length)
        return tuple(offsets)

    @property
    def num_tokens(self) -> int:
        """L: all image tokens."""
        return self.offsets[-1]

    @property
    def grid(self) -> Grid:
        """The last grid (height, width), i.e. the size of the canvas."""
        return self.sizes[-1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Pixel height and width of an image of this schedule."""
        return self.grid[0] * self.stride, self.grid[1] * self.stride

    def padded_length(self, multiple: int = 1) -> int:
        """L rounded up to a multiple: the number of image slots in a sequence (L+ in the spec, multiple 128)."""
        if multiple < 1:
            raise ValueError(f"the slot multiple must be at least 1, got {multiple}")
        return -(-self.num_tokens // multiple) * multiple

    def slice(self, scale_index: int) -> slice:
        """Token range of one scale inside the L image tokens."""
        return slice(self.offsets[scale_index], self.offsets[scale_index + 1])

    def scale_ids(self) -> Tensor:
        """Scale index of every image token, int64 [L]."""
        return torch.repeat_interleave(torch.arange(self.num_scales), torch.tensor(self.lengths))

    def block_causal_mask(self, padded_length: int | None = None) -> Tensor:
        """Decoder self-attention mask, bool [P, P], True = may attend (spec 5.5).

        A token sees its own scale and all coarser ones. With `padded_length` P > L the extra rows see only key 0
        and no row sees an extra key.
        """
        total = self.num_tokens if padded_length is None else padded_length
        if total < self.num_tokens:
            raise ValueError(f"padded_length {total} is shorter than the {self.num_tokens} tokens of the schedule")
        ids = self.scale_ids()
        mask = torch.zeros(total, total, dtype=torch.bool)
        mask[: self.num_tokens, : self.num_tokens] = ids[None, :] <= ids[:, None]
        mask[self.num_tokens :, 0] = True
        return mask

    def rope_positions(self, padded_length: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Row and column positions of the 2-D rotary embedding (spec 5.6).

        Every scale is stretched to the template's 13th grid; products are float32 and rounded half to even. Slots
        beyond L take the positions of the template's following scales, and none at all (valid = False) beyond those.

        Returns:
            rows, columns: float32 [P]; valid: bool [P]. Where `valid` is False the official table holds
            cos = sin = 0.
        """
        total = self.num_tokens if padded_length is None else padded_length
        last_h, last_w = self.template_sizes[-1]
        rows, columns = [], []
        for h, w in self.template_sizes:
            row = (torch.arange(h, dtype=torch.float32) * torch.tensor(last_h / h, dtype=torch.float32)).round()
            column = (torch.arange(w, dtype=torch.float32) * torch.tensor(last_w / w, dtype=torch.float32)).round()
            rows.append(row[:, None].expand(h, w).reshape(-1))
            columns.append(column[None, :].expand(h, w).reshape(-1))
        all_rows, all_columns = torch.cat(rows)[:total], torch.cat(columns)[:total]
        valid = torch.arange(total) < all_rows.numel()
        missing = total - all_rows.numel()
        if missing > 0:
            all_rows = torch.cat([all_rows, all_rows.new_zeros(missing)])
            all_columns = torch.cat([all_columns, all_columns.new_zeros(missing)])
        return all_rows, all_columns, valid
