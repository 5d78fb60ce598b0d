"""Preference training: literal losses through the stage, ln 2 at the start, batches, and what a step leaves alone."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from preference_helpers import BITS, SCHEDULE, picture, tiny_pairs, tiny_policy, tiny_processor, tiny_stage
from torch import Tensor

from vargpt import losses
from vargpt.data.pairs import DrawnImage, Pair
from vargpt.model import VargptForConditionalGeneration
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training import adapters, preference_batches
from vargpt.training.preference_batches import PreferenceMicroBatch, is_held_out
from vargpt.training.preference_logps import scale_logps
from vargpt.training.preference_stage import PreferenceTask
from vargpt.training.reference import CopyReference, make_reference
from vargpt.training.schema import DpoStage, LoraSection
from vargpt.training.trainer import Trainer

LN2 = 0.6931471805599453


def labels_of(micro: PreferenceMicroBatch) -> Tensor:
    """Bits of all rows, chosen then rejected."""
    assert micro.inputs.labels_ILd is not None
    return micro.inputs.labels_ILd


def fed_of(micro: PreferenceMicroBatch) -> Tensor:
    """Next-scale inputs of all rows."""
    assert micro.inputs.next_inputs_IMd is not None
    return micro.inputs.next_inputs_IMd


class GivenReference:
    """Literal log-probabilities: the same for all pictures of a side, all of it in the first scale."""

    def __init__(self, chosen: float, rejected: float) -> None:
        self.chosen, self.rejected = chosen, rejected

    def scale_logps(self, micro: PreferenceMicroBatch) -> Tensor:
        values = torch.zeros(2 * micro.num_pairs, SCHEDULE.num_scales, dtype=torch.float64)
        values[: micro.num_pairs, 0], values[micro.num_pairs :, 0] = self.chosen, self.rejected
        return values


@pytest.fixture(scope="module")
def processor() -> VargptProcessor:
    return tiny_processor()


@pytest.fixture(scope="module")
def policy(processor: VargptProcessor) -> VargptForConditionalGeneration:
    """A model in training mode; tests that train make their own."""
    return tiny_policy(processor).train()


def task_of(
    policy: VargptForConditionalGeneration,
    processor: VargptProcessor,
    given: Any = None,
    pairs: list[Pair] | None = None,
    directory: Path = Path("unused"),
    bits_fit: bool = True,
    validation_fraction: float = 0.0,
    **changes: Any,
) -> PreferenceTask:
    stage = tiny_stage(**changes)
    return PreferenceTask(
        policy,
        processor,
        tiny_pairs(8) if pairs is None else pairs,
        stage,
        seed=0,
        reference=given or make_reference(stage, policy, directory),
        bits_fit=bits_fit,
        validation_fraction=validation_fraction,
    )


def step_of(task: PreferenceTask, step: int = 0, precision: str = "fp32") -> tuple[Tensor, dict[str, float]]:
    """Loss and metrics of a whole step on one rank."""
    batch = task.batch(step)
    counts = task.counts(batch)
    total = torch.zeros((), dtype=torch.float64)
    metrics: dict[str, float] = {}
    for micro in batch:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, shares = task.loss(micro, counts)
        total = total + loss
        metrics = {name: metrics.get(name, 0.0) + float(value) for name, value in shares.items()}
    return total, metrics


def logps_of(task: PreferenceTask, policy: VargptForConditionalGeneration, reduction: Any) -> tuple[Tensor, Tensor]:
    """Log-probabilities of chosen and rejected pictures by the pure function, from a forward of its own."""
    (micro,) = task.batch(0)
    with torch.no_grad():
        logits = policy.eval()(micro.inputs, text_logits="none").bit_logits_ILd2
    policy.train()
    chosen, rejected = losses.image_logps(logits, labels_of(micro), SCHEDULE, reduction).double().chunk(2)
    return chosen, rejected


# Literal losses -------------------------------------------------------------------------------------------------------


def sigmoid_loss(margin: Tensor, beta: float, smoothing: float = 0.0) -> float:
    right, wrong = torch.log1p(torch.exp(-beta * margin)), torch.log1p(torch.exp(beta * margin))
    return float(((1 - smoothing) * right + smoothing * wrong).mean())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, lambda margin: sigmoid_loss(margin, 0.1)),
        ({"beta": 0.5}, lambda margin: sigmoid_loss(margin, 0.5)),
        ({"beta": 0.5, "label_smoothing": 0.2}, lambda margin: sigmoid_loss(margin, 0.5, 0.2)),
        ({"beta": 0.5, "loss": "hinge"}, lambda margin: float((1 - 0.5 * margin).clamp(min=0).mean())),
        ({"beta": 0.5, "loss": "ipo"}, lambda margin: float(((margin - 1.0) ** 2).mean())),
    ],
    ids=str,
)
def test_losses_by_hand(policy, processor, changes, expected) -> None:
    """Reference: chosen 1 nat less likely per scale-mean than rejected (6 bits in scale 0, so sums of -12 and -6)."""
    task = task_of(policy, processor, GivenReference(-12.0, -6.0), **changes)
    chosen, rejected = logps_of(task, policy, "scale_mean")
    margin = (chosen + 2.0) - (rejected + 1.0)
    loss, metrics = step_of(task)
    assert loss.item() == pytest.approx(expected(margin), rel=1e-5) == pytest.approx(metrics["dpo_loss"], rel=1e-5)
    beta = changes.get("beta", 0.1)
    assert metrics["rewards/chosen"] == pytest.approx(beta * float((chosen + 2).mean()), rel=1e-5)
    assert metrics["rewards/rejected"] == pytest.approx(beta * float((rejected + 1).mean()), rel=1e-5)
    assert metrics["rewards/margins"] == pytest.approx(beta * float(margin.mean()), rel=1e-5)
    assert metrics["rewards/accuracies"] == float((margin > 0).double().mean())
    assert metrics["logps/chosen"] == pytest.approx(float(chosen.mean()), rel=1e-5)
    assert metrics["logps/rejected"] == pytest.approx(float(rejected.mean()), rel=1e-5)
    by_scale = [metrics[f"rewards/margins/scale{k}"] for k in range(3)]
    assert sum(by_scale) == pytest.approx(metrics["rewards/margins"], rel=1e-9)


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 1), ("mean", 21 * 6), ("scale_mean", 6)])
def test_every_reduction_by_hand(policy, processor, reduction, divisor) -> None:
    task = task_of(policy, processor, GivenReference(-12.0, -6.0), logp_reduction=reduction)
    chosen, rejected = logps_of(task, policy, reduction)
    margin = (chosen + 12 / divisor) - (rejected + 6 / divisor)
    assert step_of(task)[0].item() == pytest.approx(sigmoid_loss(margin, 0.1), rel=1e-5)


def test_log_probabilities_are_added_in_float64() -> None:
    """The last scale has 65,536 equal terms: the sum is exact, where float32 is off in its seventh digit."""
    schedule = ScaleSchedule.from_template(1.0, 10)
    logits = torch.tensor([0.3, 0.0]).expand(1, schedule.num_tokens, 64, 2)
    labels = torch.zeros(1, schedule.num_tokens, 64, dtype=torch.uint8)
    terms = -losses.bit_losses(logits, labels)[0]
    sums = scale_logps(logits, labels, schedule)
    assert sums.dtype == torch.float64 and sums.shape == (1, 10)
    assert sums[0].tolist() == [math.fsum(terms[schedule.slice(k)].flatten().tolist()) for k in range(10)]


def test_the_sft_term_is_the_image_loss_of_the_chosen_side(policy, processor) -> None:
    plain, weighted = (
        task_of(policy, processor, GivenReference(-12.0, -6.0), sft_weight=weight) for weight in (0.0, 0.25)
    )
    (micro,) = plain.batch(0)
    with torch.no_grad():
        logits = policy.eval()(micro.inputs, text_logits="none").bit_logits_ILd2
    policy.train()
    expected = float(losses.image_loss(logits[:4], labels_of(micro)[:4], SCHEDULE, "per_scale"))
    (base, base_metrics), (loss, metrics) = step_of(plain), step_of(weighted)
    assert metrics["sft_loss"] == pytest.approx(expected, rel=1e-6) and "sft_loss" not in base_metrics
    assert (loss - base).item() == pytest.approx(0.25 * expected, rel=1e-6)


def test_the_behaviour_chooses_the_reduction_where_the_stage_does_not() -> None:
    """`official` sums over all bits (spec 8.2); the stage's own word comes first."""
    processor = tiny_processor("official")
    official = tiny_policy(processor, "official").train()
    by_behaviour, asked, other = (
        step_of(task_of(official, processor, GivenReference(-12.0, -6.0), logp_reduction=reduction))[1]["logps/chosen"]
        for reduction in (None, "sum", "scale_mean")
    )
    assert by_behaviour == asked != other and by_behaviour < -40


def test_bit_accuracies_by_hand(policy, processor) -> None:
    task = task_of(policy, processor, GivenReference(0, 0))
    (micro,) = task.batch(0)
    with torch.no_grad():
        logits = policy.eval()(micro.inputs, text_logits="none").bit_logits_ILd2
    policy.train()
    right = ((logits[..., 1] > logits[..., 0]).long() == labels_of(micro).long()).double()
    metrics = step_of(task)[1]
    assert metrics["bit_accuracy/chosen"] == pytest.approx(float(right[:4].mean()))
    assert metrics["bit_accuracy/rejected"] == pytest.approx(float(right[4:].mean()))


@pytest.mark.parametrize(
    "changes", [{"flip_strength": 0.0}, {"flip_strength": 0.9}, {"reference_noise": "independent"}], ids=str
)
def test_noise_changes_the_number(policy, processor, changes) -> None:
    base, changed = (
        step_of(task_of(policy, processor, GivenReference(0, 0), **options))[0].item()
        for options in (dict[str, Any](), changes)
    )
    assert base != changed


# The start of a stage -------------------------------------------------------------------------------------------------


def with_adapter(processor: VargptProcessor, name: str = "dpo") -> VargptForConditionalGeneration:
    model = tiny_policy(processor, trainable="none")
    adapters.inject(model, name, LoraSection(rank=2), seed=0)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in parameter_name)
    for layer in adapters._layers(model):
        adapters._set_active(layer, [f"stage-{name}"])
    return model.train()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("reference", ["copy", "adapters", "precomputed"])
def test_the_first_loss_is_ln_2_exactly(processor, tmp_path, reference, precision) -> None:
    """Bitwise, with stochastic depth of 0.5 in a model in training mode, edits among the pairs, and any reduction."""
    model = with_adapter(processor) if reference == "adapters" else tiny_policy(processor).train()
    lora: dict[str, Any] = {"lora": {"rank": 2}, "trainable": "none"} if reference == "adapters" else {}
    for reduction in ("sum", "mean", "scale_mean"):
        task = task_of(
            model, processor, None, tiny_pairs(8, edits=True), tmp_path,
            reference=reference, logp_reduction=reduction, loop={"precision": precision}, **lora,
        )  # fmt: skip
        task.prepare()
        loss, metrics = step_of(task, precision=precision)
        assert loss.item() == metrics["dpo_loss"] == LN2 == math.log(2)
        assert metrics["rewards/chosen"] == metrics["rewards/rejected"] == metrics["rewards/margins"] == 0.0
        assert loss.requires_grad


def test_an_adapter_reference_stays_where_the_stage_began(processor) -> None:
    """The adapter moves, the base does not: the reference's numbers are those of the start, bitwise."""
    model = with_adapter(processor)
    task = task_of(model, processor, reference="adapters", lora={"rank": 2}, trainable="none")
    (micro,) = task.batch(0)
    before, first = task._reference.scale_logps(micro), step_of(task)[0].item()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    loss, _ = step_of(task)
    assert first == LN2 != loss.item()
    assert torch.equal(task._reference.scale_logps(micro), before)
    loss.backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


def test_the_first_loss_is_ln_2_with_the_other_attention_kernel(processor) -> None:
    """Rows of more than 128 columns take PyTorch's own choice of kernel."""
    model = tiny_policy(processor).train()
    long = ScaleSchedule.from_template(1.0, 6, stride=2)
    task = task_of(model, processor, None, tiny_pairs(4, schedule=long), loop={"batch_size": 2})
    (micro,) = task.batch(0)
    assert micro.inputs.input_ids_BT.shape[1] > 128
    assert step_of(task)[0].item() == LN2


def test_independent_noise_starts_elsewhere(policy, processor) -> None:
    """The published noise gives policy and reference other bits: the first loss is not ln 2."""
    task = task_of(policy, processor, reference_noise="independent")
    (micro,) = task.batch(0)
    assert micro.reference_inputs is not micro.inputs
    other = micro.reference_inputs.next_inputs_IMd
    assert other is not None and not torch.equal(other, fed_of(micro))
    assert abs(step_of(task)[0].item() - LN2) > 1e-4


def test_stochastic_depth_is_off_in_the_policy(policy, processor) -> None:
    task = task_of(policy, processor, GivenReference(0, 0))
    torch.manual_seed(1)
    first = step_of(task)[0].item()
    torch.manual_seed(2)
    policy.train()
    assert step_of(task)[0].item() == first
    assert policy.training and policy.backbone.training


# Batches --------------------------------------------------------------------------------------------------------------


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


# Held-out pairs and refusals ------------------------------------------------------------------------------------------


def test_held_out_pairs_are_never_trained_on_and_are_evaluated(policy, processor) -> None:
    pairs = tiny_pairs(30)
    held_out = {pair.key for pair in pairs if is_held_out(pair.key, 0.3)}
    assert 3 < len(held_out) < 20
    task = task_of(policy, processor, None, pairs, validation_fraction=0.3)
    seen = [task._order.at(position).key for position in range(300)]
    assert set(seen) == {pair.key for pair in pairs} - held_out
    values = task.evaluate()
    assert values["loss"] == pytest.approx(LN2, rel=1e-12) and values["rewards/margins"] == 0.0
    assert values == task.evaluate()
    assert sum(micro.num_pairs for micro in task._validation_batch()) == len(held_out)
    assert task_of(policy, processor, None, pairs).evaluate() == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip_strength": 0.0, "reference_noise": "independent"}, "no effect at flip_strength 0"),
        ({"lora": {"rank": 2, "dropout": 0.1}}, r"set lora\.dropout to 0"),
        ({"pairs": []}, "no pair to train on"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_refused(policy, processor, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        task_of(policy, processor, GivenReference(0, 0), **changes)


def test_ipo_of_sums_is_refused_for_the_published_behaviour() -> None:
    processor = tiny_processor("official")
    model = tiny_policy(processor, "official")
    with pytest.raises(ValueError, match="ipo loss is defined for averages"):
        task_of(model, processor, GivenReference(0, 0), loss="ipo")
    task_of(model, processor, GivenReference(0, 0), loss="ipo", logp_reduction="mean")


def test_all_held_out_is_an_error_that_says_so(policy, processor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preference_batches, "_MOST_TRIES", 50)
    task = task_of(policy, processor, GivenReference(0, 0), validation_fraction=0.999999)
    with pytest.raises(ValueError, match="lower validation_fraction"):
        task.batch(0)


def test_bits_of_another_shape_are_refused(policy, processor) -> None:
    bits = torch.zeros(SCHEDULE.num_tokens, BITS + 1, dtype=torch.uint8)
    wrong = [
        dataclasses.replace(p, chosen=DrawnImage(p.chosen.png, bits), rejected=DrawnImage(p.rejected.png, bits))
        for p in tiny_pairs(4)
    ]
    with pytest.raises(ValueError, match=r"bits must have shape \(21, 6\), got \(21, 7\)"):
        task_of(policy, processor, GivenReference(0, 0), wrong, flip_strength=0.0).batch(0)


# Training -------------------------------------------------------------------------------------------------------------


def run(task: PreferenceTask, stage: DpoStage, directory: Path) -> None:
    task.prepare()
    Trainer(stage.name, task, stage.loop.settings(0), directory).run()


def test_training_moves_the_policy_and_nothing_else(processor, tmp_path) -> None:
    """Frozen parameters and the reference stay bitwise; the watch and the journal have what TRL's names promise."""
    model = tiny_policy(processor)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stage = tiny_stage(loop={"steps": 3})
    reference = make_reference(stage, model, tmp_path)
    task = PreferenceTask(model, processor, tiny_pairs(8), stage, 0, reference, validation_fraction=0.0)
    run(task, stage, tmp_path / "dpo")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed <= trained and len(changed) > 0.8 * len(trained)
    assert isinstance(reference, CopyReference)
    assert all(torch.equal(value, before[name]) for name, value in reference.model.state_dict().items())
    loss, metrics = step_of(task)
    assert loss.item() < LN2 and metrics["rewards/margins"] > 0


def test_the_watch_of_a_task_knows_its_units(policy, processor) -> None:
    for reduction, per_bit in (("sum", 126.0), ("mean", 1.0), ("scale_mean", 3.0)):
        watch = task_of(policy, processor, GivenReference(0, 0), logp_reduction=reduction, beta=0.5).watch()
        fall = -0.5 * per_bit * 0.051
        metrics = {"rewards/chosen": fall, "rewards/rejected": 2 * fall, "rewards/margins": -fall}
        line = watch(1, {**metrics, "rewards/accuracies": 0.5})
        assert line is not None and "0.051 nats per bit" in line
