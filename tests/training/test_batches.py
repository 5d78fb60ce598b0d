"""Batches: orders, mixtures, injected bit errors, augmentations; all of them functions of (seed, step)."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from training_helpers import recipe_with, sft_task, tokenizer_task, write_data

from vargpt.data.folder import ImageFolder
from vargpt.inputs import ModelInputs
from vargpt.processing.images import to_signed_pixels as to_signed
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.samples.image_cache import ImageCache
from vargpt.training.samples.micro_batches import MicroBatch, make_micro_batch, split_rows
from vargpt.training.stages.sft_stage import SftTask
from vargpt.training.stages.tokenizer_stage import TokenizerTask, load_targets
from vargpt.training.steps import draw_flips
from vargpt.training.weights.build import build_model

SCHEDULE = ScaleSchedule(1.0, 2)


def tokenizer_with(where: Path, processor: VargptProcessor, **changes: Any) -> TokenizerTask:
    recipe = recipe_with(**{f"stages__0__{key}": value for key, value in changes.items()})
    return tokenizer_task(recipe, where, processor)


def sft_with(where: Path, processor: VargptProcessor, seed: int = 0, **changes: Any) -> SftTask:
    recipe = recipe_with(seed=seed, **{f"stages__2__{key}": value for key, value in changes.items()})
    return sft_task(recipe, where, processor)


def only(**weights: float) -> list[dict[str, Any]]:
    """Shares of tasks of the folder."""
    return [{"task": task, "weight": weight} for task, weight in weights.items()]


def whole(task: TokenizerTask, step: int) -> torch.Tensor:
    """All images of a step."""
    return torch.cat(task.batch(step))


def same(first: list[MicroBatch], second: list[MicroBatch]) -> bool:
    """Whether two batches hold equal tensors."""
    if len(first) != len(second):
        return False
    for one, two in zip(first, second, strict=True):
        for field in fields(one.inputs):
            a, b = getattr(one.inputs, field.name), getattr(two.inputs, field.name)
            if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
                if not torch.equal(a, b):
                    return False
            elif a is not b and a != b:
                return False
    return True


def drawn(task: SftTask, step: int) -> ModelInputs:
    """The only micro-batch of a step."""
    (micro,) = task.batch(step)
    return micro.inputs


def test_flips_have_a_strength_of_their_own_per_image_and_scale():
    schedule = ScaleSchedule(1.0, 5)

    def flips(position: int, purpose: str = "flips", seed: int = 0) -> torch.Tensor:
        return draw_flips(seed, "sft", position, schedule, 512, 0.3, purpose)

    all_flips = torch.stack([flips(position) for position in range(40)])
    assert all_flips.dtype == torch.bool and all_flips.shape == (40, schedule.num_tokens, 512)
    rates = torch.stack([all_flips[:, schedule.slice(k)].float().mean((1, 2)) for k in range(5)], 1)
    assert 0.13 < rates.mean() < 0.17 and rates.max() < 0.36  # uniform in [0, 0.3], the first scale has 512 bits
    assert rates.std(0).min() > 0.05 and rates.std(1).min() > 0.01  # differs between images, and between scales
    assert torch.equal(flips(3), flips(3))
    for other in (flips(4), flips(3, "other"), flips(3, seed=1)):
        assert not torch.equal(flips(3), other)


def test_the_cache_holds_what_would_be_made_anew(folder: ImageFolder, processor: VargptProcessor):
    tokenizer = build_model(recipe_with(), processor).image_tokenizer
    cache = ImageCache(processor, tokenizer)
    paths = [folder.path(name) for name in ("7.png", "2.png", "7.png")]
    latents = torch.stack([cache.latent(path, SCHEDULE) for path in paths])
    with torch.no_grad():
        expected = tokenizer.features(to_signed(load_targets(paths, SCHEDULE)))
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
    assert cache.latent(paths[0], SCHEDULE) is cache.latent(paths[0], SCHEDULE)
    assert not torch.equal(cache.latent(paths[0], SCHEDULE, (0.0, 0.0)), torch.zeros_like(latents[0]))
    assert torch.equal(cache.patches(paths[0]).patches, processor.understand(paths[0]).patches)
    assert cache.patches(paths[0]) is cache.patches(paths[0])


def test_latents_do_not_depend_on_autocast(folder: ImageFolder, processor: VargptProcessor):
    """Evaluation asked first, under autocast: its rounded latents stayed in the cache for training."""
    tokenizer = build_model(recipe_with(), processor).image_tokenizer
    plain = ImageCache(processor, tokenizer).latent(folder.path("1.png"), SCHEDULE)
    with torch.autocast("cpu", torch.bfloat16):
        cast = ImageCache(processor, tokenizer).latent(folder.path("1.png"), SCHEDULE)
    assert torch.equal(plain, cast)


def test_a_full_cache_forgets_the_oldest_and_makes_the_same_again(folder: ImageFolder, processor: VargptProcessor):
    tokenizer = build_model(recipe_with(), processor).image_tokenizer
    small, large = ImageCache(processor, tokenizer, max_bytes=1), ImageCache(processor, tokenizer)
    first, second = folder.path("1.png"), folder.path("2.png")
    kept = small.latent(first, SCHEDULE)
    small.latent(second, SCHEDULE)
    again = small.latent(first, SCHEDULE)
    assert again is not kept and torch.equal(again, kept) and torch.equal(again, large.latent(first, SCHEDULE))


@pytest.mark.parametrize(
    ("lengths", "rows", "tokens", "expected"),
    [
        ([], 4, None, []),
        ([3, 3, 3, 3], 2, None, [(0, 2), (2, 4)]),
        ([3, 3, 3, 3, 3], 4, None, [(0, 2), (2, 5)]),
        ([1, 2, 3, 10], 4, 10, [(0, 3), (3, 4)]),
        ([5, 5, 20], 4, 10, [(0, 2), (2, 3)]),
        ([1, 1, 1, 1], 4, 2, [(0, 2), (2, 4)]),
    ],
)
def test_rows_are_cut_by_number_and_by_padded_tokens(lengths, rows, tokens, expected):
    assert [(part.start, part.stop) for part in split_rows(lengths, rows, tokens)] == expected


def test_a_filler_row_reads_and_draws_and_counts_for_nothing(data: Path, processor: VargptProcessor):
    model = build_model(recipe_with(), processor)
    empty = make_micro_batch([], processor, ImageCache(processor, model.image_tokenizer), fill=True)
    assert empty.num_images == 0 and empty.num_targets == 0
    assert empty.inputs.pixel_values is not None and empty.inputs.num_generated_images == 1
    task = sft_task(recipe_with(stages__2__data=only(caption=1)), data, processor)
    examples = [task._maker.training(task._stream.at(position), position) for position in range(3)]
    plain, filled = (
        make_micro_batch(examples, processor, ImageCache(processor, model.image_tokenizer), fill=fill)
        for fill in (False, True)
    )
    assert filled.inputs.num_generated_images == 1 and plain.inputs.num_generated_images == 0
    assert filled.num_targets == plain.num_targets and filled.num_images == plain.num_images == 0
    counts = {"targets": 5.0, "images": 0.0}
    loss, _ = task.loss(plain, counts)
    other, metrics = task.loss(filled, counts)
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-6)
    assert "image_loss" not in metrics


def test_a_tokenizer_batch_is_a_function_of_seed_and_step(data: Path, processor: VargptProcessor):
    task, again = (tokenizer_with(data, processor) for _ in range(2))
    for step in (0, 1, 5):
        task.batch(step)
    torch.manual_seed(99)
    assert torch.equal(whole(task, 3), whole(again, 3))
    assert not torch.equal(whole(again, 3), whole(again, 4))


@pytest.mark.parametrize("change", [{"flip": False}, {"zoom": 0.0}, {"zoom": 0.5}, {"permute_colours": 0.0}])
def test_every_augmentation_changes_the_batch(data: Path, processor: VargptProcessor, change):
    base, changed = tokenizer_with(data, processor), tokenizer_with(data, processor, **change)
    assert any(not torch.equal(whole(base, step), whole(changed, step)) for step in range(3))


def test_without_augmentation_the_batch_is_the_pictures(data: Path, folder: ImageFolder, processor: VargptProcessor):
    task = tokenizer_with(data, processor, flip=False, zoom=0.0, permute_colours=0.0)
    images = [task._stream.at(position).conversation.drawings[0].image for position in range(4, 8)]
    assert {image.parent for image in images if isinstance(image, Path)} == {folder.root} and len(set(images)) == 4
    assert torch.equal(whole(task, 1), to_signed(load_targets(images, SCHEDULE)))
    assert whole(task, 1).min() >= -1 and whole(task, 1).max() <= 1


def test_an_sft_batch_is_a_function_of_seed_and_step(data: Path, processor: VargptProcessor):
    task, again = (sft_with(data, processor) for _ in range(2))
    for step in (0, 1, 5):
        task.batch(step)
    torch.manual_seed(99)
    assert same(task.batch(3), again.batch(3))
    assert not same(again.batch(3), again.batch(4))
    assert not same(again.batch(3), sft_with(data, processor, seed=1).batch(3))


@pytest.mark.parametrize(
    "change",
    [
        {"guidance_drop": 1.0},
        {"flip_strength": 0.9},
        {"variety": 1.0},
        {"data": [{"task": "draw"}]},
        {
            "data": [
                {"task": "draw", "weight": 0.2},
                {"task": "caption", "weight": 0.6},
                {"task": "edit", "weight": 0.2},
            ]
        },
    ],
    ids=str,
)
def test_every_setting_of_the_data_changes_the_batch(data: Path, processor: VargptProcessor, change):
    quiet: dict[str, Any] = {"guidance_drop": 0.0, "flip_strength": 0.0, "variety": 0.0}
    base, changed = sft_with(data, processor, **quiet), sft_with(data, processor, **{**quiet, **change})
    assert not same(base.batch(0), changed.batch(0))


def test_a_dropped_prompt_leaves_no_trace(data: Path, processor: VargptProcessor):
    mixture = only(draw=1, edit=1)
    for group in (micro.inputs for micro in sft_with(data, processor, guidance_drop=1.0, data=mixture).batch(0)):
        assert group.drop_start_I is not None and bool(group.drop_start_I.all()) and group.pixel_values is None
        assert (group.input_ids_BT == group.input_ids_BT[0]).all()
    kept = sft_with(data, processor, guidance_drop=0.0, data=mixture).batch(0)
    assert not any(bool(group.drop_start_I.any()) for micro in kept if (group := micro.inputs).drop_start_I is not None)


def test_the_published_drop_keeps_the_prompt(data: Path, processor: VargptProcessor):
    """The `official` preset drops the start vector only (spec 6.7); its model was once fed prompt-free rows."""
    mixture = only(draw=1)
    task = sft_with(data, processor, guidance_drop=1.0, variety=0.0, data=mixture)
    task.module.set_behaviour("official")
    kept = sft_with(data, processor, guidance_drop=0.0, variety=0.0, data=mixture)
    dropped, group = drawn(task, 0), drawn(kept, 0)
    assert torch.equal(dropped.input_ids_BT, group.input_ids_BT)
    assert dropped.drop_start_I is not None and bool(dropped.drop_start_I.all())


def test_flips_reach_inputs_but_first_scale_labels_stay(data: Path, processor: VargptProcessor):
    mixture = only(draw=1)
    clean = drawn(sft_with(data, processor, flip_strength=0.0, data=mixture, guidance_drop=0.0), 0)
    noisy = drawn(sft_with(data, processor, flip_strength=1.0, data=mixture, guidance_drop=0.0), 0)
    assert clean.labels_ILd is not None and noisy.labels_ILd is not None
    assert torch.equal(clean.labels_ILd[:, :1], noisy.labels_ILd[:, :1])
    assert not torch.equal(clean.labels_ILd[:, 1:], noisy.labels_ILd[:, 1:])
    assert clean.next_inputs_IMd is not None and noisy.next_inputs_IMd is not None
    assert not torch.equal(clean.next_inputs_IMd, noisy.next_inputs_IMd)


def test_validation_pictures_are_never_trained_on(
    data: Path, folder: ImageFolder, processor: VargptProcessor, monkeypatch: pytest.MonkeyPatch
):
    held_out = {record.file_name for record in folder.split_images("validation")}
    seen: set[str] = set()
    latent, patches = ImageCache.latent, ImageCache.patches

    def seen_latent(self: ImageCache, source: Any, *rest: Any) -> torch.Tensor:
        seen.add(source.name)
        return latent(self, source, *rest)

    def seen_patches(self: ImageCache, source: Any) -> Any:
        seen.add(source.name)
        return patches(self, source)

    monkeypatch.setattr(ImageCache, "latent", seen_latent)
    monkeypatch.setattr(ImageCache, "patches", seen_patches)
    task = sft_with(data, processor, guidance_drop=0.0, loop={"steps": 1, "batch_size": 12, "learning_rate": 1})
    for step in range(6):
        task.batch(step)
    assert held_out and len(seen) == 12 - len(held_out) and not seen & held_out


def test_the_data_list_decides_the_shares(data: Path, processor: VargptProcessor):
    task = sft_with(data, processor, data=only(draw=2, caption=1, edit=1), guidance_drop=0.0)
    kinds = [task._maker.training(task._stream.at(position), position) for position in range(8)]
    draws = sum(bool(example.drawn) and not example.encoded.images for example in kinds)
    edits = sum(bool(example.drawn) and bool(example.encoded.images) for example in kinds)
    assert (draws, edits, len(kinds) - draws - edits) == (4, 2, 2)


def test_samples_do_not_depend_on_the_batch_size(data: Path, processor: VargptProcessor):
    """Sample 4 is the first one of step 1 with four samples a step, and the last of step 0 with five."""
    four, five = (
        sft_with(data, processor, loop={"steps": 1, "batch_size": size, "learning_rate": 1}) for size in (4, 5)
    )
    assert four.positions(1)[0] == five.positions(0)[-1] == 4
    first, second = (task._maker.training(task._stream.at(4), 4) for task in (four, five))
    assert (first.encoded.ids == second.encoded.ids).all()


def test_workers_change_no_sample(data: Path, processor: VargptProcessor):
    plain, ahead = sft_with(data, processor), sft_with(data, processor, workers=3)
    assert all(same(plain.batch(step), ahead.batch(step)) for step in (0, 1, 2, 7, 1))
    ahead.close()
    with pytest.raises(RuntimeError, match="closed"):
        ahead.batch(0)


def test_aspect_buckets_draw_at_the_pictures_own_aspect(tmp_path: Path, processor: VargptProcessor):
    where = write_data(tmp_path / "wide")
    for index in range(0, 12, 2):
        Image.new("RGB", (80, 40), (index * 20, 50, 90)).save(where / f"{index}.png")
    square = sft_with(where, processor, data=only(draw=1), guidance_drop=0.0)
    buckets = sft_with(where, processor, data=only(draw=1), guidance_drop=0.0, aspect_ratios="buckets")
    assert {micro.inputs.schedule for micro in square.batch(0)} == {SCHEDULE}
    schedules = {micro.inputs.schedule for step in range(4) for micro in buckets.batch(step)}
    assert {schedule.template for schedule in schedules if schedule} == {1.0, 0.5}
    assert all(schedule and schedule.num_scales == SCHEDULE.num_scales for schedule in schedules)
    for micro in buckets.batch(1):
        assert math.isfinite(float(buckets.loss(micro, buckets.counts([micro]))[0]))
