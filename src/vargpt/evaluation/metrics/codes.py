"""Statistics of an image tokenizer's bits: how much of its alphabet it uses.

Invariant: every number is an empirical (plug-in) entropy in bits, a function of the counts alone. Plug-in entropies are
too low where there are few pictures: an entropy over n draws cannot exceed log2(n).

    bit entropy       of one of the d bits at one scale, over all pictures and places: 1 if it is on half of the time,
                      0 if it never changes. A bit is *used* where this is at least 0.1 (on or off at least 1.3% of the
                      time).
    place entropy     the same for each place of the grid by itself, over the pictures; the mean over places. It is what
                      is left once the place is known, so it is lower where the tokenizer repeats itself in one place.
    token entropy     of whole d-bit tokens at one scale, over all pictures and places; at most d, and d only if all
                      bits are independent and even.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
USED_FROM = 0.1
"""Least entropy of a bit that counts as used."""


@dataclass(frozen=True)
class ScaleCodes:
    """Statistics of one scale's tokens; entropies in bits.

    Attributes:
        bit_entropies: [d], see `bit entropy` above.
        place_entropy: mean over places and bits, at most 1.
        token_entropy: of whole tokens; `token_limit` is the most that this many draws of d bits can show.
    """

    tokens: int
    bit_entropies: NDArray[np.float64]
    place_entropy: float
    token_entropy: float
    token_limit: float

    @property
    def bit_entropy(self) -> float:
        """Mean entropy of a bit, 0 to 1."""
        return float(self.bit_entropies.mean())

    @property
    def used(self) -> float:
        """Share of the d bits that are used."""
        return float((self.bit_entropies >= USED_FROM).mean())


def binary_entropy(share: NDArray[np.floating]) -> NDArray[np.float64]:
    """Entropy in bits of a bit that is on for this share of the time."""
    p = np.asarray(share, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p), 0.0) + np.where(p < 1, (1 - p) * np.log2(1 - p), 0.0)
    return np.abs(terms)


def entropy_of_counts(counts: NDArray[np.integer]) -> float:
    """Entropy in bits of a distribution given by how often each value was seen.

    Raises:
        ValueError: nothing was seen.
    """
    total = int(counts.sum())
    if total == 0:
        raise ValueError("an entropy needs at least one observation, got none")
    shares = counts[counts > 0] / total
    return abs(float((shares * np.log2(shares)).sum()))


def token_entropy(bits_nld: Bits) -> float:
    """Entropy in bits of whole tokens, uint8 bits [n, l, d] with values 0 and 1."""
    packed = np.packbits(bits_nld.reshape(-1, bits_nld.shape[-1]), axis=1)
    _, counts = np.unique(packed, axis=0, return_counts=True)
    return entropy_of_counts(counts)


def code_statistics(bits_nLd: Bits, lengths: Sequence[int]) -> list[ScaleCodes]:
    """Statistics of every scale of n pictures' bits.

    Args:
        bits_nLd: uint8, 0 or 1, tokens of all scales one after the other.
        lengths: tokens per scale.

    Raises:
        ValueError: no pictures, or lengths that do not add up to L.
    """
    if bits_nLd.ndim != 3 or len(bits_nLd) == 0 or sum(lengths) != bits_nLd.shape[1]:
        raise ValueError(f"expected bits [n, {sum(lengths)}, d] of at least one picture, got shape {bits_nLd.shape}")
    found, start = [], 0
    for length in lengths:
        part = bits_nLd[:, start : start + length]
        start += length
        draws = part.shape[0] * part.shape[1]
        found.append(
            ScaleCodes(
                tokens=length,
                bit_entropies=binary_entropy(part.mean((0, 1), dtype=np.float64)),
                place_entropy=float(binary_entropy(part.mean(0, dtype=np.float64)).mean()),
                token_entropy=token_entropy(part),
                token_limit=min(float(part.shape[2]), float(np.log2(draws))),
            )
        )
    return found


def bits_per_picture(statistics: Sequence[ScaleCodes]) -> tuple[float, int]:
    """Bits that a picture's tokens need at most, and how many are written.

    The first number takes every bit by itself at its scale's entropy, so it bounds what an ideal coder of independent
    bits would need; dependence between bits makes it less.
    """
    needed = sum(float(scale.bit_entropies.sum()) * scale.tokens for scale in statistics)
    return needed, sum(scale.tokens * len(scale.bit_entropies) for scale in statistics)
