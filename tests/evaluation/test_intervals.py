"""Bootstrap intervals."""

from __future__ import annotations

import pytest

from vargpt.evaluation.intervals import Estimate, bootstrap


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
