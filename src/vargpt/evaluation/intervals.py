"""Confidence intervals of means over examples.

Invariant: an interval is a function of the values and the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
