"""Confidence intervals of means over examples, and of other statistics of them.

Invariant: an interval is a function of the values and the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% bootstrap interval over `count` examples."""

    mean: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, float | int]:
        """JSON-ready form."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.count}


def bootstrap(values: Sequence[float], seed: int = 0) -> Estimate:
    """Percentile bootstrap (2000 resamples) of the mean.

    Raises:
        ValueError: without values.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("an interval needs at least one value, got none")
    generator = np.random.default_rng(seed)
    means = data[generator.integers(0, data.size, (_RESAMPLES, data.size))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(data.mean()), float(low), float(high), int(data.size))


def bootstrap_of(
    statistic: Callable[[NDArray[np.int64]], float],
    count: int,
    seed: int = 0,
    resamples: int = 200,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """Bootstrap of a statistic that is no mean, such as an entropy or a distance.

    Resampling repeats examples, which moves such statistics one way (entropies down, distances up). So the spread of
    the resampled values around their own mean is laid around the value of all examples.

    Args:
        statistic: its value on the examples with these indices, some of them more than once.
        count: number of examples.
        within: the least and the greatest value that there can be; the interval ends there.

    Raises:
        ValueError: without examples.
    """
    if count < 1:
        raise ValueError("an interval needs at least one example, got none")
    generator = np.random.default_rng(seed)
    value = float(statistic(np.arange(count)))
    drawn = [statistic(generator.integers(0, count, count)) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975]) - np.mean(drawn)
    least, most = (float(np.clip(value + end, *within)) for end in (low, high))
    return Estimate(value, min(value, least), max(value, most), count)
