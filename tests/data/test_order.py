"""Orders are bijections per epoch, the same from any position on; mixtures have exact counts."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vargpt.data.order import Mixture, Order, Permutation, ShardedPermutation


def epoch(order: Order, number: int) -> list[int]:
    return [order.at(number * order.count + offset) for offset in range(order.count)]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 600), seed=st.integers(-5, 2**40), number=st.integers(0, 10**9))
def test_each_epoch_holds_everything_once(count: int, seed: int, number: int):
    assert sorted(epoch(Permutation(count, seed), number)) == list(range(count))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    seed=st.integers(0, 2**40),
    window=st.integers(1, 5),
    number=st.integers(0, 10**6),
)
def test_each_epoch_over_shards_holds_everything_once(lengths: list[int], seed: int, window: int, number: int):
    order = ShardedPermutation(lengths, seed, window)
    assert sorted(epoch(order, number)) == list(range(sum(lengths)))


def test_orders_are_frozen():
    """A change of these numbers changes what every resumed run sees next."""
    assert epoch(Permutation(10, 0), 0) == [7, 9, 6, 3, 8, 0, 1, 4, 2, 5]
    assert epoch(ShardedPermutation([4, 3, 5], 0, window=2), 1) == [3, 5, 2, 1, 0, 4, 6, 7, 9, 11, 8, 10]


@pytest.mark.parametrize(
    "make", [lambda seed: Permutation(200, seed), lambda seed: ShardedPermutation([20] * 10, seed)]
)
def test_epochs_and_seeds_differ(make):
    orders = [tuple(epoch(make(seed), number)) for seed in (0, 1) for number in (0, 1)]
    assert len(set(orders)) == 4
    assert all(list(order) != sorted(order) for order in orders)


def test_small_shuffles_are_fair():
    counts = Counter(tuple(epoch(Permutation(4, seed), 0)) for seed in range(4800))
    assert len(counts) == math.factorial(4)
    assert min(counts.values()) >= 130 and max(counts.values()) <= 275


def test_a_window_of_shards_is_read_at_a_time():
    order = ShardedPermutation([100] * 12, seed=5, window=3)
    shards = [index // 100 for index in epoch(order, 0)]
    windows = [set(shards[start : start + 300]) for start in range(0, 1200, 300)]
    assert [len(window) for window in windows] == [3, 3, 3, 3]
    assert set.union(*windows) == set(range(12))
    assert len(set(shards[:20])) == 3, "samples of the window's shards are mixed"


def test_any_position_at_once():
    """Reading on from a position gives what reading from the start would have given, in any order of asking."""
    order = ShardedPermutation([7, 1, 30, 12], seed=2, window=2)
    straight = [order.at(position) for position in range(200)]
    fresh = ShardedPermutation([7, 1, 30, 12], seed=2, window=2)
    assert [fresh.at(position) for position in reversed(range(200))] == straight[::-1]
    assert 0 <= Permutation(8_300_000, 1).at(10**15) < 8_300_000


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_ranks_and_workers_share_an_epoch(world: int):
    order = Permutation(97, seed=3)
    seen = [order.at(position) for rank in range(world) for position in range(rank, 97, world)]
    assert sorted(seen) == list(range(97))


@pytest.mark.parametrize(
    "weights, counts",
    [([1, 1], [1, 1]), ([0.5, 0.3, 0.2], [5, 3, 2]), ([1.5, 1], [3, 2]), ([7], [1]), ([0.1, 0.2, 0.7], [1, 2, 7])],
)
def test_ratios_of_small_integers_are_exact(weights: list[float], counts: list[int]):
    mixture = Mixture(weights)
    assert mixture.counts == counts
    assert Counter(mixture.at(position)[0] for position in range(3 * mixture.cycle)) == {
        entry: 3 * count for entry, count in enumerate(counts)
    }


def test_other_ratios_fill_a_long_cycle_by_largest_remainder():
    assert Mixture([3.14159, 1, 2.71828]).counts == [30013, 9554, 25969]  # 30013.2, 9553.5 and 25969.3 of 65536


def test_a_mixture_is_frozen_and_smooth():
    assert [Mixture([3, 1, 2]).at(position) for position in range(8)] == [
        (0, 0), (2, 0), (0, 1), (1, 0), (2, 1), (0, 2), (0, 3), (2, 2),
    ]  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6), start=st.integers(0, 10**9))
def test_counts_follow_the_weights_everywhere(weights: list[float], start: int):
    mixture = Mixture(weights)
    taken = [0] * len(weights)
    for position in range(300):
        entry, ordinal = mixture.at(position)
        assert ordinal == taken[entry], "ordinals of an entry count up without gaps"
        taken[entry] += 1
        for other, weight in enumerate(weights):
            share = (position + 1) * weight / sum(weights)
            assert abs(taken[other] - share) <= len(weights) / 2 + 0.5
    entry, ordinal = mixture.at(start)
    later = next(
        mixture.at(position) for position in range(start + 1, start + 10**6) if mixture.at(position)[0] == entry
    )
    assert later[1] == ordinal + 1


@pytest.mark.parametrize("weights", [[], [0.0, 1.0], [-1.0], [math.nan], [math.inf, 1.0], [1e-9, 1.0]])
def test_bad_weights_are_refused(weights: list[float]):
    with pytest.raises(ValueError, match="weight"):
        Mixture(weights)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Permutation(0, 1), "nothing to order"),
        (lambda: ShardedPermutation([0, 0], 1), "nothing to order"),
        (lambda: ShardedPermutation([2, -1], 1), "fewer than 0"),
        (lambda: ShardedPermutation([2], 1, window=0), "at least 1 shard"),
        (lambda: Permutation(3, 1).at(-1), "at least 0, got -1"),
        (lambda: Mixture([1]).at(-2), "at least 0, got -2"),
    ],
)
def test_misuse_is_named(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()
