"""Entropies of bits and tokens, with numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vargpt.evaluation.metrics.codes import (
    binary_entropy,
    bits_per_picture,
    code_statistics,
    entropy_of_counts,
    token_entropy,
)


def test_binary_entropy():
    assert binary_entropy(np.array([0.0, 0.25, 0.5, 1.0])).tolist() == pytest.approx([0, 0.811278, 1, 0], abs=1e-6)


def test_entropy_of_counts():
    assert entropy_of_counts(np.array([1, 1, 2, 0])) == 1.5
    assert entropy_of_counts(np.array([7])) == 0.0
    with pytest.raises(ValueError, match="at least one observation"):
        entropy_of_counts(np.array([0]))


def test_token_entropy_counts_whole_tokens():
    tokens = np.array([[[0, 0, 0], [1, 0, 0]], [[1, 0, 0], [1, 1, 1]]], np.uint8)  # 1 of 4, 2 of 4, 1 of 4
    assert token_entropy(tokens) == 1.5
    wide = np.zeros((1, 4, 32), np.uint8)
    wide[0, 1, 31] = wide[0, 2, 0] = 1  # tokens wider than a byte: first and last bit count
    assert token_entropy(wide) == 1.5


def test_statistics_of_two_scales():
    bits = np.zeros((4, 3, 2), np.uint8)  # one token, then two
    bits[:2, 0, 0] = 1  # scale 0: bit 0 is even, bit 1 never changes
    bits[:, 1, :] = 1  # scale 1: both bits are on at the first place and off at the second, always
    first, second = code_statistics(bits, [1, 2])
    assert first.bit_entropies.tolist() == [1.0, 0.0] and first.bit_entropy == 0.5 and first.used == 0.5
    assert first.place_entropy == 0.5 and first.token_entropy == 1.0 and first.token_limit == 2.0
    assert second.bit_entropies.tolist() == [1.0, 1.0] and second.used == 1.0
    assert second.place_entropy == 0.0  # the place says it all
    assert second.token_entropy == 1.0  # the two bits are one
    assert second.token_limit == 2.0 and code_statistics(bits[:1], [1, 2])[1].token_limit == 1.0
    assert bits_per_picture([first, second]) == (1.0 * 1 + 2.0 * 2, 6)


def test_a_bit_is_used_if_it_changes_at_times():
    bits = np.zeros((1000, 1, 2), np.uint8)
    bits[:12, 0, 0] = bits[:14, 0, 1] = 1  # entropies 0.093 and 0.106
    assert code_statistics(bits, [1])[0].used == 0.5


def test_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match=r"bits \[n, 5, d\]"):
        code_statistics(np.zeros((2, 3, 4), np.uint8), [1, 4])
    with pytest.raises(ValueError, match="at least one picture"):
        code_statistics(np.zeros((0, 5, 4), np.uint8), [1, 4])
