"""Pairs as micro-batches: rows, bits, noise, crops, groups, fillers; functions of (seed, step) that add up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from preference_helpers import (
    BITS,
    LN2,
    SCHEDULE,
    GivenReference,
    fed_of,
    labels_of,
    picture,
    step_of,
    task_of,
    tiny_pairs,
    tiny_policy,
    tiny_processor,
)
from torch import Tensor

from vargpt.data.pairs import DrawnImage
from vargpt.model import VargptForConditionalGeneration
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.stages import preference_batches
from vargpt.training.stages.preference_batches import PreferenceMicroBatch


@pytest.fixture(scope="module")
def processor() -> VargptProcessor:
    return tiny_processor()


@pytest.fixture(scope="module")
def policy(processor: VargptProcessor) -> VargptForConditionalGeneration:
    """A model in training mode; tests that train make their own."""
    return tiny_policy(processor).train()


def test_chosen_rows_come_first_and_share_words_and_crops(policy, processor) -> None:
    task = task_of(policy, processor, GivenReference(0, 0), tiny_pairs(6, edits=True), flip_strength=0.0)
    (micro,) = task.batch(0)
    inputs, labels, fed = micro.inputs, labels_of(micro), fed_of(micro)
    assert micro.num_pairs == 4 and inputs.input_ids_BT.shape[0] == 8 and inputs.num_generated_images == 8
    assert torch.equal(inputs.input_ids_BT[:4], inputs.input_ids_BT[4:])
    assert not torch.equal(labels[:4], labels[4:])
    pair = {f"prompt {index}": pair for index, pair in enumerate(tiny_pairs(6, edits=True))}
    for row, position in enumerate(micro.positions):
        entry = pair[task._order.at(position).key]
        for side, index in ((entry.chosen, row), (entry.rejected, 4 + row)):
            bits = policy.image_tokenizer.encode(side.pixels()[None], SCHEDULE)
            assert torch.equal(labels[index], bits.labels_BLd[0])
            assert torch.equal(fed[index], bits.next_inputs_BMd[0])


def test_an_edit_carries_its_source_picture(policy, processor) -> None:
    edits = [pair for index, pair in enumerate(tiny_pairs(12, edits=True)) if index % 2]
    task = task_of(policy, processor, GivenReference(0, 0), edits)
    (micro,) = task.batch(0)
    assert micro.inputs.image_grid_thw is not None and len(micro.inputs.image_grid_thw) == 8
    before = step_of(task)[0].item()
    other = [
        dataclasses.replace(pair, prompt=tiny_pairs(12, edits=True)[(2 * index + 3) % 12].prompt)
        for index, pair in enumerate(edits)
    ]
    assert step_of(task_of(policy, processor, GivenReference(0, 0), other))[0].item() != before


def same(first: PreferenceMicroBatch, second: PreferenceMicroBatch) -> bool:
    return first.positions == second.positions and all(
        torch.equal(getattr(one, name), getattr(two, name))
        for one, two in ((first.inputs, second.inputs), (first.reference_inputs, second.reference_inputs))
        for name in ("input_ids_BT", "labels_ILd", "next_inputs_IMd")
    )


def test_a_batch_is_a_function_of_seed_and_step(policy, processor) -> None:
    task, again = (task_of(policy, processor, GivenReference(0, 0)) for _ in range(2))
    for step in (0, 1, 7):
        task.batch(step)
    torch.manual_seed(99)
    assert same(task.batch(3)[0], again.batch(3)[0])
    assert not same(again.batch(3)[0], again.batch(4)[0])


def test_both_sides_of_a_pair_get_the_same_bit_errors(policy, processor) -> None:
    """Two equal pictures: same inputs, same labels, no margin; not so with the published noise."""
    equal = [dataclasses.replace(pair, rejected=pair.chosen) for pair in tiny_pairs(6)]
    for noise, agree in (("shared", True), ("independent", False)):
        task = task_of(policy, processor, GivenReference(-6.0, -6.0), equal, reference_noise=noise, flip_strength=0.9)
        (micro,) = task.batch(0)
        chosen, rejected = fed_of(micro).chunk(2)
        assert torch.equal(chosen, rejected) == agree
        assert (abs(step_of(task)[0].item() - LN2) < 1e-8) == agree
        clean = task_of(policy, processor, GivenReference(0, 0), equal, flip_strength=0.0).batch(0)[0]
        assert not torch.equal(fed_of(clean), fed_of(micro))


def test_micro_batches_add_up_to_the_whole_step(processor) -> None:
    """Loss, metrics and gradients, with pairs of two lengths and a token limit."""
    results = []
    for loop in ({"micro_batch_size": 12}, {"micro_batch_size": 2}, {"micro_batch_tokens": 150}):
        model = tiny_policy(processor).train()
        task = task_of(model, processor, GivenReference(-12.0, -6.0), loop={"batch_size": 5, **loop}, sft_weight=0.5)
        loss, metrics = step_of(task)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((len(task.batch(0)), loss, metrics, gradient))
    assert [count for count, *_ in results] == [1, 3, 5]
    for _, loss, metrics, gradient in results[1:]:
        assert loss.item() == pytest.approx(results[0][1].item(), rel=1e-6)
        assert metrics == pytest.approx(results[0][2], rel=1e-5)
        torch.testing.assert_close(gradient, results[0][3], rtol=1e-4, atol=1e-7)


def test_pairs_of_two_sizes_go_into_two_micro_batches(policy, processor) -> None:
    wide = ScaleSchedule.from_template(0.5, 3, stride=2)
    task = task_of(policy, processor, None, tiny_pairs(4) + tiny_pairs(4, schedule=wide), loop={"batch_size": 8})
    schedules = [micro.inputs.schedule for micro in task.batch(0)]
    assert len(schedules) == 2 and set(schedules) == {SCHEDULE, wide}
    assert step_of(task)[0].item() == LN2


def test_a_filler_row_changes_nothing(policy, processor) -> None:
    """Under several ranks every micro-batch reads and draws something; empty ones have a loss of 0 with a gradient."""
    task = task_of(policy, processor, GivenReference(-12.0, -6.0))
    pairs = [task._maker.training(task._order.at(position), position) for position in range(4)]
    plain, filled, empty = (
        preference_batches.make_micro_batch(part, processor, policy.image_tokenizer, fill=fill)
        for part, fill in ((pairs, False), (pairs, True), ([], True))
    )
    assert filled.inputs.input_ids_BT.shape[0] == 9 and filled.inputs.pixel_values is not None
    assert filled.inputs.num_generated_images == 8 and empty.inputs.num_generated_images == 1
    assert empty.num_pairs == 0 and empty.inputs.pixel_values is not None
    counts = task.counts([filled, empty])
    (loss, metrics), (other, _), (none, nothing) = (task.loss(micro, counts) for micro in (plain, filled, empty))
    assert counts["pairs"] == 4
    assert loss.item() == pytest.approx(other.item(), rel=1e-6) and metrics
    assert none.item() == 0.0 and nothing == {} and none.requires_grad


def test_stored_bits_are_taken_where_no_errors_are_injected(policy, processor) -> None:
    pairs = tiny_pairs(6, bits=True)

    def labels(**changes: Any) -> Tensor:
        (micro,) = task_of(policy, processor, GivenReference(0, 0), **changes).batch(0)
        return labels_of(micro)

    stored = labels(pairs=pairs, flip_strength=0.0)
    task = task_of(policy, processor, GivenReference(0, 0), pairs, flip_strength=0.0)
    (micro,) = task.batch(0)
    for row, position in enumerate(micro.positions):
        pair = task._order.at(position)
        assert pair.chosen.bits is not None and torch.equal(stored[row], pair.chosen.bits)
        assert pair.rejected.bits is not None and torch.equal(stored[4 + row], pair.rejected.bits)
    canvas = policy.image_tokenizer.canvas(stored, SCHEDULE)
    fed = fed_of(micro)  # the inputs of scale 1 and 2 are what sampling these bits would feed
    first, _ = policy.image_tokenizer.advance(None, stored[:, :1], 0, SCHEDULE)
    second, expected = policy.image_tokenizer.advance(first, stored[:, 1:5], 1, SCHEDULE)
    assert torch.equal(fed[:, 4:], expected) and canvas.shape == second.shape
    encoded = labels(pairs=tiny_pairs(6), flip_strength=0.0)
    assert not torch.equal(stored, encoded)
    assert torch.equal(labels(pairs=pairs, flip_strength=0.0, bits_fit=False), encoded)
    half = [dataclasses.replace(pair, rejected=DrawnImage(pair.rejected.png)) for pair in pairs]
    assert torch.equal(labels(pairs=half, flip_strength=0.0), encoded)
    assert torch.equal(labels(pairs=pairs), labels(pairs=tiny_pairs(6)))


def test_published_targets_are_cropped_alike_on_both_sides() -> None:
    processor = tiny_processor("official")
    model = tiny_policy(processor, "official").train()
    striped = picture(10, 240, 90, (64, 64))
    equal = [
        dataclasses.replace(pair, chosen=DrawnImage(striped), rejected=DrawnImage(striped)) for pair in tiny_pairs(8)
    ]
    task = task_of(model, processor, GivenReference(0, 0), equal, flip_strength=0.0)
    labels = [labels_of(task.batch(step)[0]) for step in range(3)]
    assert all(torch.equal(*part.chunk(2)) for part in labels)
    assert len({tuple(row.flatten().tolist()) for part in labels for row in part}) > 1  # the crop does move


def test_bits_of_another_shape_are_refused(policy, processor) -> None:
    bits = torch.zeros(SCHEDULE.num_tokens, BITS + 1, dtype=torch.uint8)
    wrong = [
        dataclasses.replace(p, chosen=DrawnImage(p.chosen.png, bits), rejected=DrawnImage(p.rejected.png, bits))
        for p in tiny_pairs(4)
    ]
    with pytest.raises(ValueError, match=r"bits must have shape \(21, 6\), got \(21, 7\)"):
        task_of(policy, processor, GivenReference(0, 0), wrong, flip_strength=0.0).batch(0)
