"""PSNR and SSIM against numbers by hand and a slow implementation of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vargpt.evaluation.metrics.image_quality import PSNR_LIMIT, psnr, ssim


def noisy(seed: int, height: int = 13, width: int = 15) -> torch.Tensor:
    return torch.randint(0, 256, (2, height, width, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def slow_ssim(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """One channel, window by window, as written in Wang et al. 2004."""
    window = np.array([[math.exp(-(u * u + v * v) / (2 * 1.5**2)) for u in range(-5, 6)] for v in range(-5, 6)])
    window /= window.sum()
    values = []
    for top in range(first.shape[0] - 10):
        for left in range(first.shape[1] - 10):
            x, y = first[top : top + 11, left : left + 11], second[top : top + 11, left : left + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            covariance = (window * (x - mx) * (y - my)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append((2 * mx * my + c1) * (2 * covariance + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


def test_psnr_of_known_errors():
    first = torch.full((3, 4, 4, 3), 100, dtype=torch.uint8)
    second = first.clone()
    second[1] += 5  # mean squared error 25
    second[2, 0, 0, 0] = 148  # 48 in one of 48 values: mean squared error 48
    expected = [PSNR_LIMIT, 10 * math.log10(255**2 / 25), 10 * math.log10(255**2 / 48)]
    assert psnr(first, second).tolist() == pytest.approx(expected, abs=1e-4)
    assert expected[1] == pytest.approx(34.1514, abs=1e-4)
    black, white = torch.zeros(1, 2, 2, 3, dtype=torch.uint8), torch.full((1, 2, 2, 3), 255, dtype=torch.uint8)
    assert psnr(black, white).tolist() == [0.0]


def test_ssim_equals_the_paper_window_by_window():
    first = noisy(0)
    second = (first.float() * 0.7 + noisy(1).float() * 0.3).to(torch.uint8)
    expected = [
        np.mean([slow_ssim(a[..., c].double().numpy(), b[..., c].double().numpy()) for c in range(3)])
        for a, b in zip(first, second, strict=True)
    ]
    assert ssim(first, second).tolist() == pytest.approx(expected, abs=1e-6)
    assert 0.5 < expected[0] < 0.95


def test_ssim_of_flat_pictures_is_their_luminance_term():
    first, second = (torch.full((1, 11, 11, 3), level, dtype=torch.uint8) for level in (100, 120))
    assert ssim(first, first).tolist() == [1.0]
    c1 = 2.55**2
    assert ssim(first, second).item() == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1), abs=1e-6)


def test_a_pair_does_not_depend_on_its_batch():
    first, second = noisy(2), noisy(3)
    for measure in (psnr, ssim):
        assert measure(first, second)[1].item() == measure(first[1:], second[1:]).item()


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="of one shape"):
        psnr(noisy(0), noisy(0, 14))
    with pytest.raises(ValueError, match="uint8"):
        ssim(noisy(0).float(), noisy(0).float())
    with pytest.raises(ValueError, match="at least 11x11 pixels, got 8x15"):
        ssim(noisy(0, 8), noisy(0, 8))
