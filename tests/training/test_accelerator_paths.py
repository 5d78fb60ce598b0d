"""What a GPU gets instead of one thing at a time, shown on a CPU to be the same: batches, processes, kept stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import recipe_with, sft_task, tokenizer_task, write_recipe

from vargpt.data.folder import ImageFolder
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.run import train
from vargpt.training.samples.image_cache import ImageCache
from vargpt.training.samples.micro_batches import group_examples
from vargpt.training.stages.sft_stage import SftTask
from vargpt.training.weights.build import build_model

SCHEDULE = ScaleSchedule(1.0, 2)
CENTRE = (0.5, 0.5)


class TogetherCache(ImageCache):
    """The cache as it is on an accelerator."""

    encodes_together = True


@pytest.fixture
def caches(processor: VargptProcessor) -> tuple[ImageCache, TogetherCache]:
    tokenizer = build_model(recipe_with(), processor).image_tokenizer
    return ImageCache(processor, tokenizer), TogetherCache(processor, tokenizer)


def test_pictures_encoded_together_have_the_latents_of_each_alone(
    caches: tuple[ImageCache, TogetherCache], folder: ImageFolder
):
    alone, together = caches
    paths = [folder.path(name) for name in ("7.png", "2.png", "4.png")]
    plain = [alone.picture(path, SCHEDULE, CENTRE) for path in paths]
    shipped = [together.picture(path, SCHEDULE, CENTRE) for path in paths]
    assert plain == paths  # a file stays a file: its latent is kept
    assert all(isinstance(p, torch.Tensor) and p.dtype == torch.uint8 for p in shipped)
    offsets = [CENTRE] * 3
    expected = alone.latents(plain, SCHEDULE, offsets)
    as_tensor = torch.stack([p for p in shipped if isinstance(p, torch.Tensor)])
    for pictures in (shipped, as_tensor):
        latents = together.latents(pictures, SCHEDULE, offsets)
        assert latents.shape == expected.shape  # without what fills the batch up
        torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


def test_pixels_that_are_no_bytes_are_not_rounded(caches: tuple[ImageCache, TogetherCache]):
    alone, together = caches
    pixels = torch.rand(3, *SCHEDULE.image_size) * 2 - 1
    first = alone.latents([alone.picture(pixels, SCHEDULE, CENTRE)], SCHEDULE, [CENTRE])
    second = together.latents([together.picture(pixels, SCHEDULE, CENTRE)], SCHEDULE, [CENTRE])
    torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-4)


def test_rows_that_draw_nothing_join_the_others_where_forwards_are_dear(data: Path, processor: VargptProcessor):
    task: SftTask = sft_task(recipe_with(stages__2__guidance_drop=0.0), data, processor)
    examples = [task._maker.training(task._stream.at(position), position) for position in range(8)]
    apart, joined = group_examples(examples, 8), group_examples(examples, 8, few=True)
    assert [len({example.encoded.schedule for example in group}) for group in apart] == [1, 1]
    assert [len(group) for group in joined] == [8]
    lengths = [example.encoded.ids.size for example in joined[0]]
    assert lengths == sorted(lengths)
    only_words = [example for example in examples if example.encoded.schedule is None]
    assert group_examples(only_words, 8, few=True) == group_examples(only_words, 8)


def test_steps_of_a_tokenizer_stage_take_turns_between_sizes(data: Path, processor: VargptProcessor):
    task = tokenizer_task(recipe_with(stages__0__resolutions=[16]), data, processor)
    sizes = [tuple(task.batch(step)[0].shape[2:]) for step in range(4)]
    assert sizes == [(32, 32), (16, 16), (32, 32), (16, 16)]
    assert set(task.evaluate()) == {"psnr", "psnr_16"}
    for step in range(2):
        (micro,) = task.batch(step)
        assert torch.isfinite(task.loss(micro, task.counts([micro]))[0])
    with pytest.raises(ValueError, match=r"stage tokenizer: resolution must be one of 16, 32, .* got 40"):
        recipe_with(stages__0__resolutions=[40])


def test_workers_change_no_picture_of_a_tokenizer_stage(data: Path, processor: VargptProcessor):
    plain = tokenizer_task(recipe_with(), data, processor)
    ahead = tokenizer_task(recipe_with(stages__0__workers=1), data, processor)
    for step in (0, 1, 4):
        assert all(torch.equal(a, b) for a, b in zip(plain.batch(step), ahead.batch(step), strict=True))
    ahead.close()


def test_a_kept_stage_is_saved_as_it_left_the_model(data: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path / "kept.yaml", stages__1__keep=True)
    result = train(recipe, data, tmp_path / "run")
    kept, final = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run" / "names" / "model", result))
    assert kept.keys() == final.keys()
    changed = [name for name, value in kept.items() if not torch.equal(value, final[name])]
    assert any(name.startswith("decoder.") for name in changed)  # the last stage trained it
    assert not any(name.startswith("image_tokenizer.") for name in changed)
    assert not (tmp_path / "run" / "tokenizer" / "model").exists()
