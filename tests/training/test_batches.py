"""Batches: orders, mixtures, injected bit errors, augmentations; all of them functions of (seed, step)."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from training_helpers import recipe_with

from vargpt.data.folder import ImageFolder
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.build import build_model
from vargpt.training.conversations_stage import ConversationsTask, FolderCache, draw_flips, task_counts
from vargpt.training.recipe import Mixture, SftStage, TokenizerStage
from vargpt.training.tokenizer_stage import SampleOrder, TokenizerTask, load_targets, to_signed

SCHEDULE = ScaleSchedule(1.0, 2)


def tokenizer_task(folder: ImageFolder, processor: VargptProcessor, **changes: Any) -> TokenizerTask:
    recipe = recipe_with(**{f"stages__0__{key}": value for key, value in changes.items()})
    stage = recipe.stages[0]
    assert isinstance(stage, TokenizerStage)
    return TokenizerTask(build_model(recipe, processor).image_tokenizer, folder, SCHEDULE, stage, recipe.seed)


def sft_task(folder: ImageFolder, processor: VargptProcessor, seed: int = 0, **changes: Any) -> ConversationsTask:
    recipe = recipe_with(**{f"stages__2__{key}": value for key, value in changes.items()})
    stage = recipe.stages[2]
    assert isinstance(stage, SftStage)
    model = build_model(recipe, processor)
    cache = FolderCache(folder, processor, model.image_tokenizer, SCHEDULE)
    return ConversationsTask(model, processor, folder, cache, SCHEDULE, stage, seed)


def same(first: Any, second: Any) -> bool:
    """Whether two batches of model inputs hold equal tensors."""
    if len(first) != len(second):
        return False
    for one, two in zip(first, second, strict=True):
        for field in fields(one):
            a, b = getattr(one, field.name), getattr(two, field.name)
            if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
                if not torch.equal(a, b):
                    return False
            elif a is not b and a != b:
                return False
    return True


def test_every_epoch_is_a_fresh_permutation_that_can_be_entered_anywhere():
    order = SampleOrder(5, seed=3)
    items = order.take(0, 15)
    epochs = [items[0:5], items[5:10], items[10:15]]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
    assert SampleOrder(5, seed=3).take(7, 6) == items[7:13]
    assert SampleOrder(50, seed=4).take(0, 50) != SampleOrder(50, seed=3).take(0, 50)
    with pytest.raises(ValueError, match="nothing to sample from"):
        SampleOrder(0, seed=0)


def test_the_order_is_pinned_by_literal_values():
    """Checkpoints of older runs go on with the same batches."""
    assert SampleOrder(6, seed=0).take(0, 12) == [2, 5, 3, 0, 1, 4, 1, 5, 2, 0, 3, 4]


@pytest.mark.parametrize(
    ("mixture", "batch_size", "expected"),
    [
        ((1, 1, 1), 3, (1, 1, 1)),
        ((0.58, 0.12, 0.3), 48, (28, 6, 14)),
        ((0.45, 0.3, 0.25), 10, (5, 3, 2)),
        ((0, 1, 0), 7, (0, 7, 0)),
        ((2, 1, 1), 2, (1, 1, 0)),
        ((10, 1, 1), 1, (1, 0, 0)),
    ],
)
def test_task_counts(mixture, batch_size, expected):
    draw, caption, edit = mixture
    counts = task_counts(Mixture(draw=draw, caption=caption, edit=edit), batch_size)
    assert tuple(counts.values()) == expected and sum(expected) == batch_size


def test_flips_have_a_strength_of_their_own_per_image_and_scale():
    schedule = ScaleSchedule(1.0, 5)
    flips, again, other = (draw_flips(40, schedule, 512, 0.3, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert flips is not None and again is not None and other is not None
    assert flips.dtype == torch.bool and flips.shape == (40, schedule.num_tokens, 512)
    rates = torch.stack([flips[:, schedule.slice(k)].float().mean((1, 2)) for k in range(5)], 1)
    assert 0.13 < rates.mean() < 0.17 and rates.max() < 0.36  # uniform in [0, 0.3], the first scale has 512 bits
    assert rates.std(0).min() > 0.05 and rates.std(1).min() > 0.01  # differs between images, and between scales
    assert torch.equal(flips, again) and not torch.equal(flips, other)
    assert draw_flips(40, schedule, 8, 0.0, torch.Generator()) is None
    assert draw_flips(0, schedule, 8, 0.3, torch.Generator()) is None


def test_the_cache_holds_what_would_be_made_anew(folder: ImageFolder, processor: VargptProcessor):
    tokenizer = build_model(recipe_with(), processor).image_tokenizer
    cache = FolderCache(folder, processor, tokenizer, SCHEDULE)
    names = ["7.png", "2.png", "7.png"]
    with torch.no_grad():
        expected = tokenizer.features(to_signed(load_targets(folder, names, SCHEDULE)))
    torch.testing.assert_close(cache.latents(names), expected, rtol=1e-5, atol=1e-5)
    assert not cache.latents(names).requires_grad
    assert torch.equal(cache.patches("3.png").patches, processor.understand(folder.path("3.png")).patches)
    assert cache.patches("3.png") is cache.patches("3.png")


def test_a_tokenizer_batch_is_a_function_of_seed_and_step(folder: ImageFolder, processor: VargptProcessor):
    task, again = (tokenizer_task(folder, processor) for _ in range(2))
    for step in (0, 1, 5):
        task.batch(step)
    torch.manual_seed(99)
    assert torch.equal(task.batch(3), again.batch(3))
    assert not torch.equal(again.batch(3), again.batch(4))


@pytest.mark.parametrize("change", [{"flip": False}, {"zoom": 0.0}, {"zoom": 0.5}, {"permute_colours": 0.0}])
def test_every_augmentation_changes_the_batch(folder: ImageFolder, processor: VargptProcessor, change):
    base, changed = tokenizer_task(folder, processor), tokenizer_task(folder, processor, **change)
    assert any(not torch.equal(base.batch(step), changed.batch(step)) for step in range(3))


def test_without_augmentation_the_batch_is_the_pictures(folder: ImageFolder, processor: VargptProcessor):
    task = tokenizer_task(folder, processor, flip=False, zoom=0.0, permute_colours=0.0)
    names = [record.file_name for record in folder.split_images("train")]
    order = SampleOrder(len(names), seed=0).take(4, 4)
    assert torch.equal(task.batch(1), to_signed(load_targets(folder, [names[i] for i in order], SCHEDULE)))
    assert task.batch(1).min() >= -1 and task.batch(1).max() <= 1


def test_an_sft_batch_is_a_function_of_seed_and_step(folder: ImageFolder, processor: VargptProcessor):
    task, again = (sft_task(folder, processor) for _ in range(2))
    for step in (0, 1, 5):
        task.batch(step)
    torch.manual_seed(99)
    assert same(task.batch(3), again.batch(3))
    assert not same(again.batch(3), again.batch(4))
    assert not same(again.batch(3), sft_task(folder, processor, seed=1).batch(3))


@pytest.mark.parametrize(
    "change",
    [
        {"guidance_drop": 1.0},
        {"flip_strength": 0.9},
        {"variety": 1.0},
        {"mixture": {"draw": 1.0, "caption": 0.0, "edit": 0.0}},
        {"mixture": {"draw": 0.2, "caption": 0.6, "edit": 0.2}},
    ],
    ids=str,
)
def test_every_setting_of_the_data_changes_the_batch(folder: ImageFolder, processor: VargptProcessor, change):
    quiet: dict[str, Any] = {"guidance_drop": 0.0, "flip_strength": 0.0, "variety": 0.0}
    base, changed = sft_task(folder, processor, **quiet), sft_task(folder, processor, **{**quiet, **change})
    assert not same(base.batch(0), changed.batch(0))


def test_a_dropped_prompt_leaves_no_trace(folder: ImageFolder, processor: VargptProcessor):
    mixture = {"draw": 1, "caption": 0, "edit": 1}
    (draws, edits) = sft_task(folder, processor, guidance_drop=1.0, mixture=mixture).batch(0)
    for group in (draws, edits):
        assert group.drop_start_I is not None and bool(group.drop_start_I.all()) and group.pixel_values is None
        assert (group.input_ids_BT == group.input_ids_BT[0]).all()
    kept = sft_task(folder, processor, guidance_drop=0.0, mixture=mixture).batch(0)
    assert not any(bool(group.drop_start_I.any()) for group in kept if group.drop_start_I is not None)


def test_the_published_drop_keeps_the_prompt(folder: ImageFolder, processor: VargptProcessor):
    """The `official` preset drops the start vector only (spec 6.7); its model was once fed prompt-free rows."""
    mixture = {"draw": 1, "caption": 0, "edit": 0}
    task = sft_task(folder, processor, guidance_drop=1.0, variety=0.0, mixture=mixture)
    task.module.set_behaviour("official")
    kept = sft_task(folder, processor, guidance_drop=0.0, variety=0.0, mixture=mixture)
    (dropped,), (group,) = task.batch(0), kept.batch(0)
    assert torch.equal(dropped.input_ids_BT, group.input_ids_BT)
    assert dropped.drop_start_I is not None and bool(dropped.drop_start_I.all())


def test_flips_reach_inputs_but_first_scale_labels_stay(folder: ImageFolder, processor: VargptProcessor):
    mixture = {"draw": 1, "caption": 0, "edit": 0}
    (clean,) = sft_task(folder, processor, flip_strength=0.0, mixture=mixture, guidance_drop=0.0).batch(0)
    (noisy,) = sft_task(folder, processor, flip_strength=1.0, mixture=mixture, guidance_drop=0.0).batch(0)
    assert clean.labels_ILd is not None and noisy.labels_ILd is not None
    assert torch.equal(clean.labels_ILd[:, :1], noisy.labels_ILd[:, :1])
    assert not torch.equal(clean.labels_ILd[:, 1:], noisy.labels_ILd[:, 1:])
    assert clean.next_inputs_IMd is not None and noisy.next_inputs_IMd is not None
    assert not torch.equal(clean.next_inputs_IMd, noisy.next_inputs_IMd)


def test_edits_without_pairs_are_refused_before_training(folder: ImageFolder, processor: VargptProcessor):
    bare = ImageFolder(folder.root, folder.images, (), 0.2)
    with pytest.raises(ValueError, match=r"stage sft has a share of edits .* set mixture\.edit to 0"):
        sft_task(bare, processor)


def test_validation_pictures_are_never_trained_on(
    folder: ImageFolder, processor: VargptProcessor, monkeypatch: pytest.MonkeyPatch
):
    held_out = {record.file_name for record in folder.split_images("validation")}
    seen: set[str] = set()
    latents, patches = FolderCache.latents, FolderCache.patches

    def seen_latents(self: FolderCache, names: list[str]) -> torch.Tensor:
        seen.update(names)
        return latents(self, names)

    def seen_patches(self: FolderCache, name: str) -> Any:
        seen.add(name)
        return patches(self, name)

    monkeypatch.setattr(FolderCache, "latents", seen_latents)
    monkeypatch.setattr(FolderCache, "patches", seen_patches)
    task = sft_task(folder, processor, guidance_drop=0.0, loop={"steps": 1, "batch_size": 12, "learning_rate": 1})
    for step in range(6):
        task.batch(step)
    assert held_out and len(seen) == 12 - len(held_out) and not seen & held_out
