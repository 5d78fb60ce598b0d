"""Positions of the text model: sequential, or M-RoPE with rows and columns for images to understand.

Invariant: positions are made here and nowhere else, for training and for prompts; slots of images to draw count as
text tokens. Padding has position 1, as the published code gives it (it is masked everywhere).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

PADDING_POSITION = 1


def sequential_positions(batch_size: int, length: int) -> Tensor:
    """Positions 0..T-1 on all three axes whatever the tokens are, int64 [3, B, T] (published training, spec 6.3)."""
    return torch.arange(length).expand(3, batch_size, length).contiguous()


def mrope_positions(
    input_ids_BT: Tensor,
    attention_mask_BT: Tensor,
    grids: list[tuple[int, int, int]],
    image_token_id: int,
    merge_size: int = 2,
) -> tuple[Tensor, Tensor]:
    """Multimodal rotary positions (Qwen2-VL's rope index), left or right padded.

    A text token advances all three axes by one; an image takes rows and columns of its merged grid, starting at the
    current position, and advances by the longer side.

    Args:
        input_ids_BT: int64 [B, T].
        attention_mask_BT: bool (or 0/1) [B, T], False on padding.
        grids: (time, rows, columns) in patches of every image, in the order of the rows.

    Returns:
        position_ids_3BT: int64 [3, B, T]; rope_deltas_B1: int64 [B, 1], largest position + 1 - T, so that the next
        token of a left-padded row has position T + delta.

    Raises:
        ValueError: a run of image tokens does not have the length of its grid, or images and grids differ in number.
    """
    ids = input_ids_BT.numpy()
    keep = attention_mask_BT.numpy().astype(bool)
    batch, length = ids.shape
    positions = np.full((3, batch, length), PADDING_POSITION, dtype=np.int64)
    deltas = np.zeros((batch, 1), dtype=np.int64)
    remaining = iter(grids)
    used = 0
    for row in range(batch):
        kept = ids[row][keep[row]]
        runs = _runs(kept == image_token_id)
        columns = np.empty((3, kept.size), dtype=np.int64)
        start = position = 0
        for first, end in runs:
            columns[:, start:first] = np.arange(position, position + first - start)
            position += first - start
            grid = next(remaining, None)
            if grid is None:
                raise ValueError(f"row {row} has more images than the {len(grids)} grids given")
            used += 1
            patch = _image_positions(grid, merge_size)
            if patch.shape[1] != end - first:
                raise ValueError(f"row {row}: {end - first} image tokens for a grid {grid} of {patch.shape[1]} tokens")
            columns[:, first:end] = patch + position
            position += max(grid[1], grid[2]) // merge_size
            start = end
        columns[:, start:] = np.arange(position, position + kept.size - start)
        positions[:, row, keep[row]] = columns
        deltas[row, 0] = (columns.max() if kept.size else -1) + 1 - length
    if used != len(grids):
        raise ValueError(f"{len(grids)} grids were given, but the ids hold {used} images")
    return torch.from_numpy(positions), torch.from_numpy(deltas)


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """(first, end) of each run of True."""
    if not mask.any():
        return []
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def _image_positions(grid: tuple[int, int, int], merge_size: int) -> np.ndarray:
    """Time, row and column of every merged patch, [3, tokens]."""
    time, rows, columns = grid[0], grid[1] // merge_size, grid[2] // merge_size
    return np.indices((time, rows, columns)).reshape(3, -1)
