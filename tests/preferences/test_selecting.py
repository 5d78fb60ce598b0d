"""Which pictures make a pair, on literal scores."""

from __future__ import annotations

import pytest

from vargpt.preferences.select import Choice, best_and_worst, given_and_worst


@pytest.mark.parametrize(
    "scores, margin, expected",
    [
        ([0.2, 0.9, 0.1], 0.0, Choice(1, 2)),
        ([0.9, 0.9, 0.1, 0.1], 0.0, Choice(0, 2)),  # the first of equals
        ([-3.0, -1.0], 0.0, Choice(1, 0)),
        ([0.5, 0.6], 0.1, Choice(1, 0)),  # 0.6 - 0.5 is 0.09999999999999998
        ([0.5, 0.6], 0.11, "margin"),
        ([0.5, 0.5, 0.5], 0.0, "tie"),
        ([0.5, 0.5], 0.3, "tie"),
        ([0.5, 0.5 + 1e-12], 0.0, Choice(1, 0)),
        ([0.5, 0.5 + 1e-12], 1e-3, "margin"),
    ],
)
def test_best_and_worst(scores: list[float], margin: float, expected: Choice | str) -> None:
    assert best_and_worst(scores, margin) == expected


@pytest.mark.parametrize(
    "given, scores, margin, expected",
    [
        (1.0, [0.3, 0.1, 0.1], 0.0, Choice(None, 1)),
        (0.2, [0.9, 0.1], 0.1, Choice(None, 1)),  # it need not beat the best
        (0.2, [0.9, 0.1], 0.2, "margin"),
        (0.1, [0.9, 0.1], 0.0, "tie"),
        (0.1, [0.1 + 1e-12], 0.0, "margin"),  # worse by less than the slack is worse
        (0.0, [0.9, 0.1], 0.0, "margin"),  # a sample is better throughout: no pair, rather than a wrong one
    ],
)
def test_given_and_worst(given: float, scores: list[float], margin: float, expected: Choice | str) -> None:
    assert given_and_worst(given, scores, margin) == expected


def test_what_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="at least two scored samples, got 1"):
        best_and_worst([0.5])
    with pytest.raises(ValueError, match="must not be negative"):
        best_and_worst([0.5, 0.6], -0.1)
    with pytest.raises(ValueError, match="got none"):
        given_and_worst(0.5, [])
