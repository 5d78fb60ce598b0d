"""Signed distances of the shapes, and the patterns on them.

Invariant: a distance is negative inside, and is given in radii of the thing; u runs right and v down from its centre.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""float32 throughout: half the memory and time of float64."""

_TRIANGLE_RADIUS = 1.25
_STAR_OUTER, _STAR_INNER = 1.22, 0.56
_HEART_SCALE = 1.72
_RING_MIDDLE, _RING_HALF = 0.76, 0.25
_CROSS_ARM, _CROSS_LENGTH = 0.34, 1.0
_DIAMOND_WIDTH, _DIAMOND_HEIGHT = 0.84, 1.16

EXTENTS = {
    "circle": (-0.95, 0.95, -0.95, 0.95),
    "square": (-0.84, 0.84, -0.84, 0.84),
    "triangle": (-1.0825, 1.0825, -0.9375, 0.9375),
    "star": (-1.16, 1.16, -1.105, 1.102),
    "heart": (-1.038, 1.038, -0.95, 0.95),
    "cross": (-1.0, 1.0, -1.0, 1.0),
    "ring": (-1.01, 1.01, -1.01, 1.01),
    "diamond": (-0.84, 0.84, -1.16, 1.16),
}
"""Bounding boxes in radii: left, right, top, bottom."""


def distance(shape: str, u: Array, v: Array) -> Array:
    """Signed distance in radii; exact near the border, a bound farther away.

    Raises:
        ValueError: for an unknown shape.
    """
    if shape == "circle":
        return np.hypot(u, v) - np.float32(0.95)
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.84)
    if shape == "triangle":
        down = v - np.float32(_TRIANGLE_RADIUS / 4)
        side = np.abs(u) * np.float32(math.sqrt(3) / 2) - down * np.float32(0.5)
        return np.maximum(side, down) - np.float32(_TRIANGLE_RADIUS / 2)
    if shape == "star":
        return _star(u, v + np.float32(-0.117))
    if shape == "heart":
        return _heart(u, v)
    if shape == "cross":
        across, along = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
        return np.maximum(across - np.float32(_CROSS_ARM), along - np.float32(_CROSS_LENGTH))
    if shape == "ring":
        return np.abs(np.hypot(u, v) - np.float32(_RING_MIDDLE)) - np.float32(_RING_HALF)
    if shape == "diamond":
        norm = math.hypot(_DIAMOND_WIDTH, _DIAMOND_HEIGHT)
        along = np.abs(u) * np.float32(_DIAMOND_HEIGHT / norm) + np.abs(v) * np.float32(_DIAMOND_WIDTH / norm)
        return along - np.float32(_DIAMOND_WIDTH * _DIAMOND_HEIGHT / norm)
    raise ValueError(f"unknown shape {shape!r}, expected one of {', '.join(EXTENTS)}")


def _star(u: Array, v: Array) -> Array:
    """Five points, one upward: fold the plane into one tenth and measure to the edge of that tenth."""
    tenth = math.pi / 5
    angle = np.abs((np.arctan2(u, -v) + np.float32(tenth)) % np.float32(2 * tenth) - np.float32(tenth))
    length = np.hypot(u, v)
    across, along = length * np.sin(angle), length * np.cos(angle)
    tip = (0.0, _STAR_OUTER)
    notch = (_STAR_INNER * math.sin(tenth), _STAR_INNER * math.cos(tenth))
    edge = (notch[0] - tip[0], notch[1] - tip[1])
    norm = math.hypot(*edge)
    return (across * np.float32(-edge[1] / norm)) + (along - np.float32(_STAR_OUTER)) * np.float32(edge[0] / norm)


def _heart(u: Array, v: Array) -> Array:
    """Two half discs on a square that stands on its corner."""
    x = np.abs(u) / np.float32(_HEART_SCALE)
    y = np.float32(0.5518) - v / np.float32(_HEART_SCALE)
    lobe = np.hypot(x - np.float32(0.25), y - np.float32(0.75)) - np.float32(math.sqrt(2) / 4)
    foot = np.maximum(x + y, np.float32(0)) * np.float32(0.5)
    straight = np.sqrt(np.minimum(x * x + (y - 1) ** 2, (x - foot) ** 2 + (y - foot) ** 2)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, straight) * np.float32(_HEART_SCALE)


_STRIPE_PERIOD, _STRIPE_SHARE = 0.62, 0.42
_DOT_PERIOD, _DOT_RADIUS = 0.66, 0.2


def pattern(texture: str, u: Array, v: Array, radius_pixels: Array | np.float32) -> Array:
    """Share of ink in each pixel, 0 to 1: diagonal stripes or round dots.

    Raises:
        ValueError: for an unknown texture.
    """
    sharp = radius_pixels
    if texture == "striped":
        phase = (u + v) * np.float32(math.sqrt(0.5) / _STRIPE_PERIOD)
        off = np.abs(phase - np.round(phase)) * np.float32(_STRIPE_PERIOD)
        return np.clip((np.float32(_STRIPE_PERIOD * _STRIPE_SHARE / 2) - off) * sharp + np.float32(0.5), 0, 1)
    if texture == "dotted":
        row = np.round(v / np.float32(_DOT_PERIOD))
        shifted = u / np.float32(_DOT_PERIOD) + row * np.float32(0.5)
        off_u = (shifted - np.round(shifted)) * np.float32(_DOT_PERIOD)
        off_v = v - row * np.float32(_DOT_PERIOD)
        return np.clip((np.float32(_DOT_RADIUS) - np.hypot(off_u, off_v)) * sharp + np.float32(0.5), 0, 1)
    if texture == "plain":
        return np.zeros_like(u)
    raise ValueError(f"unknown texture {texture!r}, expected plain, striped or dotted")
