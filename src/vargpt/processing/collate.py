"""Collation: encoded conversations become one padded batch for the model.

Invariant: everything the model reads (ids, mask, positions, places of images, text targets) is decided here; image
bits are not: the batch carries the target pixels, and the trainer or the caller turns them into bits.

With two rows of 3 and 5 ids, `multiple_of=4` and right padding (`p` = `<|endoftext|>`)::

    input_ids_BT       [[a b c p p p p p], [d e f g h p p p]]
    attention_mask_BT  [[1 1 1 0 0 0 0 0], [1 1 1 1 1 0 0 0]]   (bool)
    text_targets_BT    the ids where the assistant speaks, -100 elsewhere, not shifted
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vargpt.inputs import ModelInputs
from vargpt.losses import IGNORED
from vargpt.processing.images import PreparedImage
from vargpt.processing.positions import mrope_positions, sequential_positions
from vargpt.processing.text import SpecialIds
from vargpt.scales import ScaleSchedule


@dataclass(frozen=True)
class Encoded:
    """One conversation, ready to be collated.

    Attributes:
        ids: int64 [T], placeholders expanded.
        is_answer: bool [T], the tokens that the assistant says.
        images: the images to understand, in order.
        draw_columns: column of each `<|image_gen_start|>`.
        targets: pixels [3, H, W] of each image to draw, or None where the caller has the bits.
        schedule: grids of the images to draw; None where there is none.
        drop_start: the unconditional start embedding is used (guidance drop).
    """

    ids: np.ndarray
    is_answer: np.ndarray
    images: tuple[PreparedImage, ...]
    draw_columns: tuple[int, ...]
    targets: tuple[Tensor | None, ...]
    schedule: ScaleSchedule | None
    drop_start: bool = False


@dataclass(frozen=True)
class Batch:
    """A collated batch.

    Attributes:
        inputs: what the model reads; bits and next-scale inputs are left for the caller to fill in.
        target_images_I3HW: pixels in [-1, 1] of the images to draw, by row and then by place; None without pixels.
        rope_deltas_B1: largest position + 1 - T of each row.
    """

    inputs: ModelInputs
    target_images_I3HW: Tensor | None
    rope_deltas_B1: Tensor


def collate(
    rows: list[Encoded],
    special: SpecialIds,
    *,
    padding_side: Literal["left", "right"],
    multiple_of: int,
    merge_size: int,
    sequential: bool,
    all_text_targets: bool,
) -> Batch:
    """Pad encoded conversations into one batch.

    Args:
        sequential: published training positions 0..T-1 instead of M-RoPE (spec 6.3).
        all_text_targets: published text targets, in a batch that draws: every id but the image slots, padding
            included (spec 6.5); otherwise, and always without a drawing, what the assistant says.

    Raises:
        ValueError: an empty batch, schedules that differ, target pixels for some drawings only.
    """
    if not rows:
        raise ValueError("cannot collate an empty batch")
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
    longest = max(row.ids.size for row in rows)
    length = -(-longest // multiple_of) * multiple_of
    ids = np.full((len(rows), length), special.endoftext, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=bool)
    answer = np.zeros((len(rows), length), dtype=bool)
    samples: list[int] = []
    starts: list[int] = []
    drops: list[bool] = []
    for index, row in enumerate(rows):
        first = length - row.ids.size if padding_side == "left" else 0
        here = slice(first, first + row.ids.size)
        ids[index, here], mask[index, here], answer[index, here] = row.ids, True, row.is_answer
        samples += [index] * len(row.draw_columns)
        starts += [first + column for column in row.draw_columns]
        drops += [row.drop_start] * len(row.draw_columns)
    spoken = ids != special.image_gen_pad if all_text_targets and starts else answer
    input_ids_BT, attention_mask_BT = torch.from_numpy(ids), torch.from_numpy(mask)
    images = [image for row in rows for image in row.images]
    if sequential:
        position_ids_3BT = sequential_positions(len(rows), length)
        rope_deltas_B1 = torch.zeros(len(rows), 1, dtype=torch.long)
    else:
        grids = [image.grid for image in images]
        position_ids_3BT, rope_deltas_B1 = mrope_positions(
            input_ids_BT, attention_mask_BT, grids, special.image_pad, merge_size
        )
    inputs = ModelInputs(
        input_ids_BT=input_ids_BT,
        attention_mask_BT=attention_mask_BT,
        position_ids_3BT=position_ids_3BT,
        pixel_values=torch.cat([image.patches for image in images]) if images else None,
        image_grid_thw=torch.tensor([image.grid for image in images]) if images else None,
        schedule=_common_schedule(rows),
        image_sample_I=torch.tensor(samples, dtype=torch.long) if starts else None,
        image_start_I=torch.tensor(starts, dtype=torch.long) if starts else None,
        drop_start_I=torch.tensor(drops, dtype=torch.bool) if starts else None,
        text_targets_BT=torch.from_numpy(np.where(spoken, ids, IGNORED)),
    )
    return Batch(inputs, _stack_targets(rows), rope_deltas_B1)


def _common_schedule(rows: list[Encoded]) -> ScaleSchedule | None:
    schedules = {row.schedule for row in rows if row.schedule is not None}
    if len(schedules) > 1:
        sizes = ", ".join(sorted("x".join(map(str, schedule.image_size)) for schedule in schedules))
        raise ValueError(f"one batch draws at one size, got {sizes} (height x width): group examples by schedule")
    return schedules.pop() if schedules else None


def _stack_targets(rows: list[Encoded]) -> Tensor | None:
    targets = [target for row in rows for target in row.targets]
    present = [target for target in targets if target is not None]
    if not present:
        return None
    if len(present) < len(targets):
        raise ValueError(f"{len(targets) - len(present)} of {len(targets)} drawings lack target pixels: all or none")
    return torch.stack(present)
