"""Which two of a prompt's pictures make a pair: pure functions on scores.

Invariant: of a pair, the chosen score exceeds the rejected one, by the margin at least; where no two pictures do, there
is no pair and the reason is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Reason = Literal["tie", "margin"]
"""Why there is no pair: all scores are equal, or best and worst are nearer than the margin."""

_ROUNDING = 1e-9
"""Slack of the margin, so that 0.6 and 0.5 are 0.1 apart."""


@dataclass(frozen=True)
class Choice:
    """Numbers of the chosen and the rejected sample; None for the chosen one where it was given."""

    chosen: int | None
    rejected: int


def best_and_worst(scores: Sequence[float], margin: float = 0.0) -> Choice | Reason:
    """Pair the best sample with the worst; the first one of equals is taken.

    Raises:
        ValueError: for fewer than two scores or a negative margin.
    """
    if len(scores) < 2:
        raise ValueError(f"a pair needs at least two scored samples, got {len(scores)}")
    best = max(range(len(scores)), key=lambda index: scores[index])
    worst = min(range(len(scores)), key=lambda index: scores[index])
    reason = _too_near(scores[best], scores[worst], margin)
    return reason or Choice(best, worst)


def given_and_worst(given: float, scores: Sequence[float], margin: float = 0.0) -> Choice | Reason:
    """Pair a given picture with the worst sample, where it beats that one.

    Raises:
        ValueError: without a score, or for a negative margin.
    """
    if not scores:
        raise ValueError("a pair with a given picture needs at least one scored sample, got none")
    worst = min(range(len(scores)), key=lambda index: scores[index])
    reason = _too_near(given, scores[worst], margin)
    return reason or Choice(None, worst)


def _too_near(high: float, low: float, margin: float) -> Reason | None:
    if margin < 0:
        raise ValueError(f"a margin must not be negative, got {margin}")
    if high == low:
        return "tie"
    if high < low or high - low < margin - _ROUNDING:
        return "margin"
    return None
