"""Losses with literal numbers; every option is shown to change the number."""

from __future__ import annotations

import math

import pytest
import torch

from vargpt import losses
from vargpt.scales import ScaleSchedule

TWO_SCALES = ScaleSchedule.from_template(1.0, 2)  # 1x1 and 2x2: five tokens


def logits_of(probability_of_one: list[float]) -> torch.Tensor:
    """One image, one bit per token, as two-way logits [1, L, 1, 2]."""
    p = torch.tensor(probability_of_one)
    return torch.stack([(1 - p).log(), p.log()], dim=-1)[None, :, None]


def test_text_targets_of_both_rules() -> None:
    ids = torch.tensor([[10, 11, 2, 4, 4, 3, 12, 0]])
    assert losses.all_token_targets(ids, 4).tolist() == [[10, 11, 2, -100, -100, 3, 12, 0]]
    said = torch.tensor([[False, False, True, True, True, True, True, False]])
    assert losses.assistant_targets(ids, said, 4).tolist() == [[-100, -100, 2, -100, -100, 3, 12, -100]]


def test_text_loss_shifts_by_one_and_averages_over_targets() -> None:
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = math.log(3.0)  # p(2) = 3/6 at column 0
    targets = torch.tensor([[1, 2, -100]])
    assert losses.text_loss(logits, targets).item() == pytest.approx(math.log(2.0))
    both = torch.tensor([[1, 2, 3]])
    assert losses.text_loss(logits, both).item() == pytest.approx((math.log(2.0) + math.log(4.0)) / 2)
    assert losses.text_loss(logits, torch.full((1, 3), -100)).item() == 0.0


def test_bit_losses_are_negative_log_probabilities() -> None:
    logits = logits_of([0.25, 0.25, 0.5, 0.9, 0.9])
    labels = torch.tensor([[[0], [1], [1], [1], [0]]])
    expected = [-math.log(p) for p in (0.75, 0.25, 0.5, 0.9, 0.1)]
    assert losses.bit_losses(logits, labels).flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_image_loss_weights_change_the_number() -> None:
    logits = logits_of([0.25, 0.5, 0.5, 0.5, 0.5])
    labels = torch.ones(1, 5, 1, dtype=torch.uint8)
    plain = (math.log(4.0) + 4 * math.log(2.0)) / 5
    assert losses.image_loss(logits, labels, TWO_SCALES, "official").item() == pytest.approx(plain)
    # Weights 1 and 1/2, normalised over 1 + 4/2 = 3: the first token counts 1/3, the others 1/6 each.
    weighted = math.log(4.0) / 3 + 4 * math.log(2.0) / 6
    assert losses.image_loss(logits, labels, TWO_SCALES, "per_scale").item() == pytest.approx(weighted)
    assert losses.scale_token_weights(TWO_SCALES).tolist() == pytest.approx([1 / 3, 1 / 6, 1 / 6, 1 / 6, 1 / 6])


def test_total_loss_weighs_the_image_term() -> None:
    text, image = torch.tensor(2.0), torch.tensor(0.5)
    assert losses.total_loss(text, image, 3.0).item() == 3.5
    assert losses.total_loss(text, None, 3.0).item() == 2.0


def test_scale_metrics() -> None:
    logits = logits_of([0.25, 0.9, 0.9, 0.1, 0.1])
    labels = torch.tensor([[[0], [1], [0], [0], [0]]])
    loss, accuracy = losses.scale_metrics(logits, labels, TWO_SCALES)
    assert accuracy.tolist() == [1.0, 0.75]
    assert loss.tolist() == pytest.approx([-math.log(0.75), -(3 * math.log(0.9) + math.log(0.1)) / 4], rel=1e-5)


def test_image_logps_reductions() -> None:
    logits = logits_of([0.25, 0.5, 0.5, 0.5, 0.5])
    labels = torch.ones(1, 5, 1, dtype=torch.uint8)
    one, other = math.log(0.25), math.log(0.5)
    for reduction, expected in (("sum", one + 4 * other), ("mean", (one + 4 * other) / 5), ("scale_mean", one + other)):
        value = losses.image_logps(logits, labels, TWO_SCALES, reduction)  # type: ignore[arg-type]
        assert value.tolist() == pytest.approx([expected], rel=1e-5)


def test_dpo_loss_literals() -> None:
    chosen, rejected = torch.tensor([-10.0]), torch.tensor([-12.0])
    reference_chosen, reference_rejected = torch.tensor([-11.0]), torch.tensor([-11.0])
    arguments = (chosen, rejected, reference_chosen, reference_rejected, 0.5)  # margin 2, beta * margin 1
    sigmoid, won, lost = losses.dpo_loss(*arguments)
    assert sigmoid.item() == pytest.approx(math.log(1 + math.exp(-1.0)))
    assert (won.item(), lost.item()) == (0.5, -0.5)
    smoothed = 0.9 * math.log(1 + math.exp(-1.0)) + 0.1 * math.log(1 + math.exp(1.0))
    assert losses.dpo_loss(*arguments, label_smoothing=0.1)[0].item() == pytest.approx(smoothed)
    assert losses.dpo_loss(*arguments[:4], 0.25, "hinge")[0].item() == pytest.approx(0.5)
    assert losses.dpo_loss(*arguments, "ipo")[0].item() == pytest.approx(1.0)


def test_dpo_options_that_mean_nothing_are_refused() -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match="label_smoothing"):
        losses.preference_losses(one, one, 0.1, "hinge", 0.1)
    with pytest.raises(ValueError, match="expected sigmoid, hinge or ipo"):
        losses.preference_losses(one, one, 0.1, "simpo")  # type: ignore[arg-type]
