"""The vision tower: images of one size as a batch equal transformers' image by image; convolutions as its stem."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_model
from transformers import Qwen2VLConfig, Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from vargpt.model.vision import equal_image_features, image_features, prepare_vision


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


def small_tower(**changes: int | str) -> Qwen2VisionTransformerPretrainedModel:
    sizes = {"depth": 1, "embed_dim": 32, "hidden_size": 24, "num_heads": 2, "patch_size": 4, "stem": "convolution"}
    config = Qwen2VLConfig(vision_config={**sizes, **changes}).vision_config
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    visual = Qwen2VisionTransformerPretrainedModel(config).eval()
    prepare_vision(visual)
    return visual


def patches_of(images_n3HW: torch.Tensor, patch: int) -> torch.Tensor:
    """The processor's patches of pictures, [n * N, patch_dim], without its normalisation of colours."""
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch, do_normalize=False, do_rescale=False, size={"shortest_edge": 64, "longest_edge": 65536}
    )
    pixels = [image.permute(1, 2, 0).to(torch.uint8).numpy() for image in images_n3HW]
    return processor(pixels, return_tensors="pt", input_data_format="channels_last")["pixel_values"].float()


@pytest.mark.parametrize("patch", [4, 8])
def test_the_stem_convolves_the_whole_picture(patch: int) -> None:
    stem = small_tower(patch_size=patch).patch_embed
    torch.manual_seed(1)
    images = torch.randint(0, 255, (2, 3, 4 * patch, 6 * patch)).float()
    with torch.no_grad():
        found = stem(patches_of(images, patch), (4, 6))
        expected = stem.first(images)
        for norm, convolution in zip(stem.norms, stem.deeper, strict=True):
            expected = convolution(F.gelu(norm(expected)))
    assert expected.shape == (2, 32, 4, 6)
    # Merge order: 2 x 2 cells of patches, row by row.
    for image in range(2):
        rows = iter(found[image * 24 : (image + 1) * 24])
        for top in (0, 2):
            for left in (0, 2, 4):
                for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
                    torch.testing.assert_close(next(rows), expected[image, :, row, column], rtol=1e-4, atol=1e-4)


def test_images_of_several_sizes_do_not_see_each_other() -> None:
    visual = small_tower()
    torch.manual_seed(2)
    grids = [(1, 4, 4), (1, 2, 6), (1, 4, 4)]
    width = 3 * 2 * 4 * 4
    parts = [torch.randn(rows * columns, width) for _, rows, columns in grids]
    with torch.no_grad():
        together = image_features(visual, torch.cat(parts), torch.tensor(grids))
        alone = [image_features(visual, part, torch.tensor([grid])) for part, grid in zip(parts, grids, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_the_stem_tells_places_and_looks_across_patches() -> None:
    visual = small_tower()
    images = torch.full((1, 3, 16, 16), 200.0)
    with torch.no_grad():
        plain = visual.patch_embed(patches_of(images, 4), (4, 4))
        images[0, :, 3, 4] = 0.0  # the first row's second patch, beside the border to the first
        touched = visual.patch_embed(patches_of(images, 4), (4, 4))
    assert not torch.allclose(plain[0], plain[15])  # corners differ though every pixel is the same
    assert not torch.allclose(plain[0], touched[0])


def test_widths_that_halve_unevenly_still_make_groups() -> None:
    stem = small_tower(patch_size=16, embed_dim=176).patch_embed
    assert [norm.num_channels for norm in stem.norms] == [20, 44, 88]
    with torch.no_grad():
        assert stem(torch.zeros(2 * 4, 3 * 2 * 16 * 16), (2, 4)).shape == (8, 176)


def test_a_stem_that_does_not_fit_is_refused() -> None:
    for changes in ({"patch_size": 6}, {"patch_size": 2}, {"embed_dim": 24, "num_heads": 2}):
        with pytest.raises(ValueError, match="a convolutional stem needs patches of 4, 8, 16"):
            small_tower(**changes)
    with pytest.raises(ValueError, match="stem must be patch or convolution, got 'conv'"):
        small_tower(stem="conv")
