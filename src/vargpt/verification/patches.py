"""Images to read: their patches and the M-RoPE positions of the rows that hold them."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLImageProcessorPil

from vargpt.configuration import VargptConfig
from vargpt.processing.images import prepare_understanding
from vargpt.processing.positions import mrope_positions
from vargpt.verification.compare import Report

PATCHES = 1e-5


def recorded_patches(config: VargptConfig, image_u8: Tensor) -> tuple[Tensor, Tensor]:
    """Patches and grid [1, 3] of one recorded image [H, W, 3], with the published class's default pixel limits."""
    vision = config.backbone.vision_config
    processor = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
    )
    prepared = prepare_understanding(Image.fromarray(image_u8.numpy()), processor)
    return prepared.patches, torch.tensor([prepared.grid])


def compare_patches(
    report: Report, config: VargptConfig, images_u8: list[Tensor], name: str, patches: Tensor, grids: Tensor
) -> None:
    """Compare the patches of several images, concatenated, and their grids."""
    made = [recorded_patches(config, image) for image in images_u8]
    report.close(name, torch.cat([part for part, _ in made]), patches, PATCHES)
    report.exact(f"{name} (grids)", torch.cat([grid for _, grid in made]), grids)


def recorded_positions(config: VargptConfig, ids: Tensor, mask: Tensor, grid: Tensor | None) -> tuple[Tensor, Tensor]:
    """M-RoPE positions [3, B, T] and rope deltas [B, 1] of recorded rows; `grid` is image_grid_thw, if any."""
    grids = [] if grid is None else [(int(t), int(h), int(w)) for t, h, w in grid.tolist()]
    backbone = config.backbone
    return mrope_positions(ids, mask, grids, backbone.image_token_id, backbone.vision_config.spatial_merge_size)
