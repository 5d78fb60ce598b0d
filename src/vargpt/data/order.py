"""In which order samples come: shuffles and mixtures as arithmetic on positions.

Invariant: everything here is a pure function of (seed, position). Nothing is stored per sample, nothing has a state, so
training resumes at any position at once, and ranks and workers share the work by taking disjoint positions.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import numpy as np

_ROUNDS = 8
_MASK = 2**64 - 1
_EXACT_CYCLE = 4096
_LONG_CYCLE = 65_536


class Order(Protocol):
    """An endless order over `count` things: epoch after epoch, each of them once per epoch."""

    @property
    def count(self) -> int:
        """How many things there are: the length of an epoch."""

    def at(self, position: int) -> int:
        """The index in [0, count) at a position in [0, infinity)."""


class Permutation:
    """A seeded shuffle of `range(count)`, a new one each epoch, in O(1) memory and time.

    An alternating Feistel network over a grid of rows x columns >= count, with cycle walking (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002).
    """

    def __init__(self, count: int, seed: int) -> None:
        """Args: count: things to shuffle, at least 1. seed: any integer."""
        self.count = _positive_count(count)
        self.seed = seed

    def at(self, position: int) -> int:
        """The index at a position; positions [e * count, (e + 1) * count) hold every index once."""
        epoch, offset = divmod(_checked(position), self.count)
        return _shuffle(offset, self.count, _keys(f"{self.seed}:{epoch}"))


class ShardedPermutation:
    """A seeded shuffle of samples that lie in shards, which reads only a few shards at a time.

    Each epoch shuffles the shards, takes them in windows of `window` shards, and shuffles the samples inside each
    window. Memory is O(number of shards). Indices count through the shards in the order given.
    """

    def __init__(self, lengths: Sequence[int], seed: int, window: int = 8) -> None:
        """Args: lengths: samples per shard (empty ones are allowed). window: shards that are mixed at a time."""
        if window < 1:
            raise ValueError(f"window must be at least 1 shard, got {window}")
        if any(length < 0 for length in lengths):
            raise ValueError("a shard cannot have fewer than 0 samples")
        firsts = itertools.accumulate(lengths, initial=0)
        self._shards = [(first, length) for first, length in zip(firsts, lengths, strict=False) if length]
        self.count = _positive_count(sum(lengths))
        self.seed, self.window = seed, window
        self._layouts: dict[int, tuple[list[int], list[int]]] = {}

    def at(self, position: int) -> int:
        """The index at a position; positions [e * count, (e + 1) * count) hold every index once."""
        epoch, offset = divmod(_checked(position), self.count)
        shards, starts = self._layout(epoch)
        window = (bisect_right(starts, offset) - 1) // self.window
        start = starts[window * self.window]
        end = starts[min((window + 1) * self.window, len(self._shards))]
        keys = _keys(f"{self.seed}:{epoch}:{window}")
        shuffled = start + _shuffle(offset - start, end - start, keys)
        slot = bisect_right(starts, shuffled) - 1
        return self._shards[shards[slot]][0] + shuffled - starts[slot]

    def _layout(self, epoch: int) -> tuple[list[int], list[int]]:
        """Shards in this epoch's order, and where each starts in it (with the end of the last one)."""
        layout = self._layouts.get(epoch)
        if layout is None:
            count = len(self._shards)
            keys = _keys(f"{self.seed}:{epoch}:shards")
            shards = [_shuffle(slot, count, keys) for slot in range(count)]
            layout = shards, list(itertools.accumulate((self._shards[shard][1] for shard in shards), initial=0))
            self._layouts = {**{e: old for e, old in self._layouts.items() if e == epoch - 1}, epoch: layout}
        return layout


class Mixture:
    """A smooth weighted interleave of several endless orders.

    A cycle of fixed length holds every entry as often as its weight says (largest remainder; exactly, where the weights
    are in a ratio of small integers), spread evenly, and repeats for ever. Neighbouring positions belong to different
    entries: give each rank a contiguous run of a step's positions, not every n-th, or one rank may get one entry only.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        """Args: weights: positive numbers, normalised here.

        Raises:
            ValueError: for no weights, one that is not positive and finite, or one below 1/65,536 of their sum.
        """
        if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(f"a mixture needs positive weights, got {list(weights)}")
        self.counts = _cycle_counts(weights)
        entries = np.repeat(np.arange(len(weights)), self.counts)
        ordinals = np.concatenate([np.arange(count) for count in self.counts])
        places = (ordinals + 0.5) / np.asarray(self.counts, np.float64)[entries]
        order = np.lexsort((entries, places))
        self._entries = entries[order].astype(np.int32)
        self._ordinals = ordinals[order].astype(np.int32)

    @property
    def cycle(self) -> int:
        """Positions after which the interleave repeats."""
        return len(self._entries)

    def at(self, position: int) -> tuple[int, int]:
        """Which entry has this position, and how many positions before it that entry had."""
        cycle, offset = divmod(_checked(position), self.cycle)
        entry = int(self._entries[offset])
        return entry, cycle * self.counts[entry] + int(self._ordinals[offset])


def _cycle_counts(weights: Sequence[float]) -> list[int]:
    """How often each entry comes in one cycle."""
    exact = [Fraction(weight).limit_denominator(10**6) for weight in weights]
    if all(exact):
        scale = math.lcm(*(fraction.denominator for fraction in exact))
        counts = [int(fraction * scale) for fraction in exact]
        divisor = math.gcd(*counts)
        if sum(counts) // divisor <= _EXACT_CYCLE:
            return [count // divisor for count in counts]
    total = math.fsum(weights)
    shares = [_LONG_CYCLE * weight / total for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(weights)), key=lambda entry: counts[entry] - shares[entry])
    for entry in by_remainder[: _LONG_CYCLE - sum(counts)]:
        counts[entry] += 1
    if 0 in counts:
        raise ValueError(
            f"weight {weights[counts.index(0)]} is below 1/{_LONG_CYCLE} of the sum {total}: drop the entry"
        )
    return counts


def _positive_count(count: int) -> int:
    if count < 1:
        raise ValueError(f"there is nothing to order: got {count} samples")
    return count


def _checked(position: int) -> int:
    if position < 0:
        raise ValueError(f"a position is at least 0, got {position}")
    return position


@lru_cache(maxsize=1024)
def _keys(text: str) -> tuple[int, ...]:
    """Round keys that depend on the text alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=8 * _ROUNDS // 2).digest()
    digest += hashlib.blake2b(digest, digest_size=8 * _ROUNDS // 2).digest()
    return tuple(int.from_bytes(digest[8 * index : 8 * index + 8], "little") for index in range(_ROUNDS))


def _shuffle(index: int, count: int, keys: tuple[int, ...]) -> int:
    """A keyed bijection of [0, count): a cipher on a grid that hardly exceeds it, walked until it lands inside."""
    columns = math.isqrt(count - 1) + 1
    rows = -(-count // columns)
    while True:
        row, column = divmod(index, columns)
        for turn in range(0, _ROUNDS, 2):
            row = (row + _mix(column, keys[turn])) % rows
            column = (column + _mix(row, keys[turn + 1])) % columns
        index = row * columns + column
        if index < count:
            return index


def _mix(value: int, key: int) -> int:
    """64 well mixed bits of a value and a key (the finaliser of splitmix64)."""
    value = ((value ^ key) + key) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
