"""Entropies of bits and tokens, with numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vargpt.evaluation.metrics.codes import binary_entropy, code_estimates, entropy_of_counts, token_ids


def means(bits: np.ndarray, lengths: list[int]) -> dict[str, float]:
    return {name: estimate.mean for name, estimate in code_estimates(bits, lengths).items()}


def test_binary_entropy():
    assert binary_entropy(np.array([0.0, 0.25, 0.5, 1.0])).tolist() == pytest.approx([0, 0.811278, 1, 0], abs=1e-6)


def test_entropy_of_counts():
    assert entropy_of_counts(np.array([1, 1, 2, 0])) == 1.5
    assert entropy_of_counts(np.array([7])) == 0.0
    with pytest.raises(ValueError, match="at least one observation"):
        entropy_of_counts(np.array([0]))


def test_tokens_are_told_apart_by_all_their_bits():
    wide = np.zeros((2, 2, 33), np.uint8)
    wide[0, 1, 32] = wide[1, 0, 0] = 1  # wider than a machine word: the first and the last bit count
    ids = token_ids(wide)
    assert ids[0, 0] == ids[1, 1] and len(set(ids.reshape(-1).tolist())) == 3


def test_statistics_of_two_scales():
    bits = np.zeros((4, 3, 2), np.uint8)  # one token, then two
    bits[:2, 0, 0] = 1  # scale 1: bit 0 is even, bit 1 never changes
    bits[:, 1, :] = 1  # scale 2: both bits are on at the first place and off at the second, always
    assert means(bits, [1, 2]) == {
        "bits-used": 0.75,
        "bits-needed": pytest.approx((1 * 1 + 2 * 2) / 6),
        "tokens/scale-1": 1.0,
        "bits/scale-1": 0.5,
        "tokens/scale-2": 1.0,  # the two bits are one
        "bits/scale-2": 1.0,
    }


def test_even_independent_bits_fill_the_alphabet():
    bits = np.random.default_rng(0).integers(0, 2, (4000, 4, 4)).astype(np.uint8)
    found = code_estimates(bits, [4])
    assert found["tokens/scale-1"].mean == pytest.approx(4, abs=0.01)
    assert found["bits-needed"].mean == pytest.approx(1, abs=0.001)
    assert found["tokens/scale-1"].low <= found["tokens/scale-1"].mean <= found["tokens/scale-1"].high


def test_a_bit_is_used_if_it_changes_at_times():
    bits = np.zeros((1000, 1, 2), np.uint8)
    bits[:12, 0, 0] = bits[:14, 0, 1] = 1  # entropies 0.093 and 0.106
    assert means(bits, [1])["bits-used"] == 0.5


def test_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match=r"bits \[n, 5, d\]"):
        code_estimates(np.zeros((2, 3, 4), np.uint8), [1, 4])
    with pytest.raises(ValueError, match="at least one picture"):
        code_estimates(np.zeros((0, 5, 4), np.uint8), [1, 4])
