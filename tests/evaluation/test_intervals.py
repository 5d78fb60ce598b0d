"""Bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest

from vargpt.evaluation.intervals import Estimate, bootstrap, bootstrap_of


def test_an_interval_holds_the_mean_and_repeats():
    values = [0.0] * 30 + [1.0] * 70
    estimate = bootstrap(values)
    assert estimate.mean == 0.7 and estimate.count == 100
    assert estimate.low == pytest.approx(0.61, abs=0.02) and estimate.high == pytest.approx(0.79, abs=0.02)
    uneven = [index**1.5 for index in range(20)]
    assert bootstrap(uneven) == bootstrap(uneven) != bootstrap(uneven, seed=1)


def test_more_values_give_a_narrower_interval():
    few, many = bootstrap([0.0, 1.0] * 10), bootstrap([0.0, 1.0] * 1000)
    assert many.high - many.low < 0.2 * (few.high - few.low)


def test_without_spread_the_interval_is_a_point():
    assert bootstrap([2.5] * 7) == Estimate(2.5, 2.5, 2.5, 7)
    assert bootstrap([1.0]).as_dict() == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 1}


def test_no_values_is_an_error():
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap([])


def test_other_statistics_get_their_spread_around_their_own_value():
    values = np.random.default_rng(0).normal(5, 2, 400)
    mean = bootstrap_of(lambda rows: float(values[rows].mean()), 400)
    plain = bootstrap(values.tolist())
    assert mean.mean == pytest.approx(plain.mean) and mean.count == 400
    assert (mean.low, mean.high) == pytest.approx((plain.low, plain.high), abs=0.06)
    reach = bootstrap_of(lambda rows: float(np.ptp(values[rows])), 400)  # resamples reach less far, never farther
    assert reach.mean == np.ptp(values) and reach.low < reach.mean < reach.high
    with pytest.raises(ValueError, match="at least one example"):
        bootstrap_of(lambda rows: 0.0, 0)


def test_an_interval_ends_where_values_do():
    values = np.random.default_rng(0).normal(0, 2, 50)

    def mean(rows: np.ndarray) -> float:
        return float(values[rows].mean())

    free, bound = bootstrap_of(mean, 50), bootstrap_of(mean, 50, within=(-0.1, 0.3))
    assert free.low < -0.1 and free.high > 0.3
    assert (bound.low, bound.mean, bound.high) == (-0.1, free.mean, 0.3)


def test_a_statistic_is_seen_on_all_examples_first_and_then_on_resamples():
    seen: list[list[int]] = []

    def first(rows: np.ndarray) -> float:
        seen.append(rows.tolist())
        return float(rows[0])

    bootstrap_of(first, 3, resamples=5)
    assert seen[0] == [0, 1, 2] and len(seen) == 6 and all(len(rows) == 3 for rows in seen)
