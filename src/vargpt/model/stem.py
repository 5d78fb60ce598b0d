"""Convolutions instead of the vision tower's patch embedding, for small models that train from scratch.

A published tower embeds every patch alone, by one linear map, and knows where a patch lies from rotary angles alone,
that is relative to other patches. Billions of pictures teach such a tower what a shape is and where; ten thousand teach
it neither. Strided convolutions see across the borders of patches, and their padding tells how far the edge is
(docs/log.md, 2026-11-26; Xiao et al., arXiv 2106.14881, for the first, Islam et al., arXiv 2001.08248, for the second).

Legend: `n` images · `N` patches of an image · `c` width of the tower · `p` side of a patch · `m` side of a merge cell.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

_FRAME = 0
"""Towers read pairs of frames; the two of a still picture are the same."""


class StemConvolution(nn.Linear):
    """A 3x3 convolution that halves both sides, its kernels kept as one matrix [width, 9 * channels].

    Muon takes matrices, and with its steps a stem learns shapes and places several times as fast as with AdamW's.
    `positions_per_patch`: how many places of its output lie in a patch.
    """

    def __init__(self, channels: int, width: int, positions_per_patch: int) -> None:
        super().__init__(9 * channels, width)
        self.positions_per_patch = positions_per_patch

    def forward(self, images_nchw: Tensor) -> Tensor:
        """Half as many rows and columns, [n, width, h / 2, w / 2]."""
        kernels = self.weight.unflatten(1, (-1, 3, 3))
        return F.conv2d(images_nchw, kernels, self.bias, stride=2, padding=1)


class ConvolutionalStem(nn.Module):
    """Embed the patches of images of one size: 3x3 convolutions with stride 2, down to one place per patch.

    Args:
        config: of the vision tower; `patch_size` must be a power of two, at least 4, and `embed_dim` a multiple of 16.

    Raises:
        ValueError: for sizes that do not fit.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        side, width = config.patch_size, config.embed_dim
        if side < 4 or side & (side - 1) or width % 16:
            raise ValueError(
                f"a convolutional stem needs patches of 4, 8, 16, ... pixels and a width that is a multiple of 16, got "
                f"patch_size {side} and embed_dim {width}; change them, or set stem to patch"
            )
        self._patch, self._merge = side, config.spatial_merge_size
        self._channels, self._frames = config.in_channels, config.temporal_patch_size
        halvings = side.bit_length() - 1
        widths = [max(16, (width >> (halvings - 1 - level)) // 4 * 4) for level in range(halvings)]  # four groups each
        self.first = StemConvolution(self._channels, widths[0], 4 ** (halvings - 1))
        self.norms = nn.ModuleList(nn.GroupNorm(4, channels) for channels in widths[:-1])
        self.deeper = nn.ModuleList(
            StemConvolution(widths[level - 1], widths[level], 4 ** (halvings - 1 - level))
            for level in range(1, halvings)
        )

    def forward(self, values: Tensor, grid: tuple[int, int]) -> Tensor:
        """Embeddings [n * N, c] of patches [n * N, patch_dim], both in merge order; `grid`: rows, columns."""
        rows, columns = grid
        merge, patch = self._merge, self._patch
        cells = values.view(
            -1, rows // merge, columns // merge, merge, merge, self._channels, self._frames, patch, patch
        )
        images = cells[..., _FRAME, :, :].permute(0, 5, 1, 3, 6, 2, 4, 7)
        hidden = self.first(images.reshape(-1, self._channels, rows * patch, columns * patch))
        for norm, convolution in zip(self.norms, self.deeper, strict=True):
            hidden = convolution(F.gelu(norm(hidden)))
        cells = hidden.unflatten(3, (columns // merge, merge)).unflatten(2, (rows // merge, merge))
        return cells.permute(0, 2, 4, 3, 5, 1).reshape(-1, hidden.shape[1])
