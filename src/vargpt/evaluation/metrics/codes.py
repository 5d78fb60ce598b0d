"""Statistics of an image tokenizer's bits: how much of its alphabet it uses.

Invariant: every number is an empirical (plug-in) entropy in bits, a function of counts alone. Plug-in entropies are too
low where there are few pictures: n draws show at most log2(n) bits.

    entropy of a bit     of one of the d bits at one scale, over all pictures and places: 1 if it is on half the time,
                         0 if it never changes. A bit is *used* where this is at least 0.1 (on or off at least 1.3% of
                         the time).
    entropy of a token   of whole d-bit tokens of one scale, over all pictures and places: at most d, and d only if all
                         bits are independent and even
    bits needed          the entropies of all bits of a picture, taken one by one at their scale, over the number of
                         bits: what a coder of independent bits would need. Dependence between bits makes it less.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vargpt.evaluation.intervals import Estimate, bootstrap_of

USED_FROM = 0.1
"""Least entropy of a bit that counts as used."""

Rows = NDArray[np.int64]
Shares = NDArray[np.float64]


def binary_entropy(share: NDArray[np.floating]) -> Shares:
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


def token_ids(bits_nld: NDArray[np.uint8]) -> Rows:
    """A number for every token [n, l], equal for equal bits and only for them."""
    packed = np.packbits(bits_nld.reshape(-1, bits_nld.shape[-1]), axis=1)
    return np.unique(packed, axis=0, return_inverse=True)[1].reshape(bits_nld.shape[:2]).astype(np.int64)


def code_estimates(bits_nLd: NDArray[np.uint8], lengths: Sequence[int]) -> dict[str, Estimate]:
    """Statistics of the bits of n pictures, with intervals over the pictures.

    Args:
        bits_nLd: uint8, 0 or 1, tokens of all scales one after the other.
        lengths: tokens per scale.

    Returns:
        `bits-used` (share of the d bits of all scales), `bits-needed` (share), and for each scale from 1 on
        `tokens/scale-i` (bits) and `bits/scale-i` (mean over the d bits, at most 1).

    Raises:
        ValueError: no pictures, or lengths that do not add up to L.
    """
    if bits_nLd.ndim != 3 or len(bits_nLd) == 0 or sum(lengths) != bits_nLd.shape[1]:
        raise ValueError(f"expected bits [n, {sum(lengths)}, d] of at least one picture, got shape {bits_nLd.shape}")
    count, _, width = bits_nLd.shape
    ends = np.cumsum(lengths)
    parts = [bits_nLd[:, end - length : end] for end, length in zip(ends, lengths, strict=True)]
    on_nKd = np.stack([part.mean(1, dtype=np.float64) for part in parts], 1)
    shares = np.asarray(lengths) / sum(lengths)
    found = {
        "bits-used": bootstrap_of(partial(_used, on_nKd), count, within=(0, 1)),
        "bits-needed": bootstrap_of(partial(_needed, on_nKd, shares), count, within=(0, 1)),
    }
    for index, part in enumerate(parts):
        ids, most = token_ids(part), min(float(width), float(np.log2(part.shape[0] * part.shape[1])))
        found[f"tokens/scale-{index + 1}"] = bootstrap_of(partial(_entropy_of_tokens, ids), count, within=(0, most))
        found[f"bits/scale-{index + 1}"] = bootstrap_of(
            partial(_entropy_of_bits, on_nKd[:, index]), count, within=(0, 1)
        )
    return found


def _used(on_nKd: Shares, rows: Rows) -> float:
    return float((binary_entropy(on_nKd[rows].mean(0)) >= USED_FROM).mean())


def _needed(on_nKd: Shares, shares_K: Shares, rows: Rows) -> float:
    return float(shares_K @ binary_entropy(on_nKd[rows].mean(0)).mean(1))


def _entropy_of_tokens(ids_nl: Rows, rows: Rows) -> float:
    return entropy_of_counts(np.bincount(ids_nl[rows].reshape(-1)))


def _entropy_of_bits(on_nd: Shares, rows: Rows) -> float:
    return float(binary_entropy(on_nd[rows].mean(0)).mean())
