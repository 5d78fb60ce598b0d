"""The vision tower: images of one size as a batch equal transformers' image by image."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from vargpt.model.vision import equal_image_features, image_features


@pytest.mark.parametrize("grid", [(1, 4, 4), (1, 2, 6), (1, 8, 4)])
def test_a_batch_of_equal_images_is_the_tower_of_transformers(grid: tuple[int, int, int]) -> None:
    visual = tiny_model().backbone.visual
    width = visual.patch_embed.proj.weight[0].numel()
    torch.manual_seed(0)
    values = torch.randn(3 * grid[1] * grid[2], width)
    grids = torch.tensor([grid] * 3)
    with torch.no_grad():
        expected = visual(values, grid_thw=grids).pooler_output
        torch.testing.assert_close(equal_image_features(visual, values, grid), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(image_features(visual, values, grids), expected, rtol=0, atol=0)
