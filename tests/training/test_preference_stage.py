"""Preference training: literal losses through the stage, ln 2 at the start, and what a step leaves alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from preference_helpers import (
    LN2,
    SCHEDULE,
    GivenReference,
    fed_of,
    labels_of,
    step_of,
    task_of,
    tiny_pairs,
    tiny_policy,
    tiny_processor,
    tiny_stage,
)
from torch import Tensor

from vargpt import losses
from vargpt.model import VargptForConditionalGeneration
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.loop.trainer import Trainer
from vargpt.training.recipes.schema import DpoStage, LoraSection
from vargpt.training.stages import preference_batches
from vargpt.training.stages.preference_batches import is_held_out
from vargpt.training.stages.preference_logps import scale_logps
from vargpt.training.stages.preference_stage import PreferenceTask
from vargpt.training.stages.reference import CopyReference, make_reference
from vargpt.training.weights import adapters


@pytest.fixture(scope="module")
def processor() -> VargptProcessor:
    return tiny_processor()


@pytest.fixture(scope="module")
def policy(processor: VargptProcessor) -> VargptForConditionalGeneration:
    """A model in training mode; tests that train make their own."""
    return tiny_policy(processor).train()


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
    ids=["default", "beta", "smoothing", "hinge", "ipo"],
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
