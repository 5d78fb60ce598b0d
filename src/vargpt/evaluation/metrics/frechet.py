"""The Fréchet distance between two sets of pictures, by their features (Heusel et al. 2017).

Invariant: each set is described by the mean and covariance of its features alone; the distance is symmetric, and 0 for
a set and itself.

The distance of finite samples is biased upward: two samples of n pictures of one kind are not at 0 but at a floor that
falls about as 1/n. Compare distances at equal n only, and name n. Where the second set is made from the first (a
reconstruction of every picture), the sampling error is shared and the floor is 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vargpt.evaluation.intervals import Estimate, bootstrap_of

Array = NDArray[np.float64]


def frechet_distance(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Squared distance of two sets of features [n, F] and [m, F], each taken as a Gaussian.

    |mean difference|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)), with covariances over n - 1.

    Raises:
        ValueError: fewer than two rows, or different numbers of columns.
    """
    for features in (first, second):
        if features.ndim != 2 or features.shape[0] < 2:
            raise ValueError(f"a Fréchet distance needs at least 2 rows of features, got shape {features.shape}")
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"features of {first.shape[1]} and {second.shape[1]} columns cannot be compared")
    mean_1, covariance_1 = _moments(first)
    mean_2, covariance_2 = _moments(second)
    return frechet_of_gaussians(mean_1, covariance_1, mean_2, covariance_2)


def frechet_of_gaussians(mean_1: Array, covariance_1: Array, mean_2: Array, covariance_2: Array) -> float:
    """Squared Fréchet distance of two Gaussians (Dowson and Landau 1982), never below 0.

    The trace of (C1 C2)^(1/2) is taken from the symmetric R C2 R with R = C1^(1/2), which has the same eigenvalues.
    """
    values, vectors = np.linalg.eigh(covariance_1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.linalg.eigvalsh(root @ covariance_2 @ root).clip(0)
    apart = float(np.square(mean_1 - mean_2).sum())
    spread = float(np.trace(covariance_1) + np.trace(covariance_2) - 2 * np.sqrt(shared).sum())
    return max(apart + spread, 0.0)


def frechet_estimate(first: NDArray[np.floating], second: NDArray[np.floating], seed: int = 0) -> Estimate:
    """The distance of two sets whose rows belong together (a picture and what was made of it), with a 95% interval.

    Raises:
        ValueError: sets of different shapes, or fewer than two rows.
    """
    if first.shape != second.shape:
        raise ValueError(f"expected two sets of features of one shape, got {first.shape} and {second.shape}")
    return bootstrap_of(
        lambda rows: frechet_distance(first[rows], second[rows]), len(first), seed, within=(0.0, np.inf)
    )


def _moments(features: NDArray[np.floating]) -> tuple[Array, Array]:
    data = features.astype(np.float64)
    return data.mean(0), np.atleast_2d(np.cov(data, rowvar=False))
