"""Warnings of preference training on literal series: what is said, when, and how often."""

from __future__ import annotations

import pytest

from vargpt.training.stages.preference_watch import PreferenceWatch


def entry(chosen: float, rejected: float, accuracy: float = 0.75) -> dict[str, float]:
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": accuracy,
    }


def said(series: list[dict[str, float]], beta: float = 0.1, nats_per_bit: float = 10.0) -> list[tuple[int, str]]:
    """Step and kind of every warning."""
    watch = PreferenceWatch(beta, nats_per_bit)
    lines = [(step, watch(step, metrics)) for step, metrics in enumerate(series)]
    kinds = {"unlearns": "collapse", "loss is flat": "saturation", "rejected pictures win": "reversal"}
    return [(step, next(kind for mark, kind in kinds.items() if mark in line)) for step, line in lines if line]


def test_a_healthy_run_is_silent() -> None:
    assert said([entry(0, 0, 0), entry(0.2, -0.3), entry(0.9, -1.4, 0.95), entry(1.5, -2.5, 1.0)]) == []


def test_chosen_pictures_that_become_less_likely_are_told_once() -> None:
    # A fall of 0.05 nats per bit is a reward of -0.05 * 0.1 * 10 = -0.05.
    series = [entry(0, 0, 0), entry(-0.04, -0.2), entry(-0.06, -0.2), entry(-0.3, -1.0)]
    assert said(series) == [(2, "collapse")]


def test_a_fall_of_the_chosen_side_alone_is_no_collapse() -> None:
    assert said([entry(-0.3, -0.1), entry(-0.3, 0.2)]) == []


def test_the_fall_is_measured_in_nats_per_bit() -> None:
    series = [entry(-0.06, -0.2)]
    assert said(series) and not said(series, beta=0.2) and not said(series, nats_per_bit=20.0)


def test_rewards_beyond_saturation_are_told_when_every_pair_is_right() -> None:
    series = [entry(4.0, -3.9, 1.0), entry(5.0, -4.0, 0.99), entry(5.0, -4.0, 1.0), entry(9.0, -9.0, 1.0)]
    assert said(series) == [(2, "saturation")]


def test_a_reversal_and_a_collapse_are_told_one_after_the_other() -> None:
    series = [entry(-9.0, 1.0, 0.0), entry(-9.0, 1.0, 0.0), entry(-1.0, -2.0)]
    assert said(series) == [(0, "reversal"), (2, "collapse")]


def test_the_line_names_step_numbers_and_remedy() -> None:
    line = PreferenceWatch(0.1, 10.0)(40, entry(-0.2, -0.5))
    assert line is not None and "\n" not in line
    assert line.startswith("warning at step 40: ") and "0.200 nats per bit" in line and "0.500" in line
    assert "sft_weight" in line and "learning_rate" in line


def test_validation_entries_are_passed_over() -> None:
    assert PreferenceWatch(0.1, 10.0)(1, {"validation/rewards/margins": -99.0}) is None


@pytest.mark.parametrize("threshold", [{"fall": 0.5}, {"saturation": 50.0}])
def test_thresholds_change_what_is_said(threshold: dict[str, float]) -> None:
    metrics = entry(-0.2, -0.5) if "fall" in threshold else entry(9.0, -9.0, 1.0)
    assert PreferenceWatch(0.1, 10.0)(1, metrics) is not None
    assert PreferenceWatch(0.1, 10.0, **threshold)(1, metrics) is None
