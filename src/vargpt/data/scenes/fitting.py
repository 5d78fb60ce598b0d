"""A blob becomes a thing: which shape, where, how large, with which texture. The second half of the checker.

Invariant: every shape is tried with the renderer's own distance functions, and the quality of the best fit (overlap
over union, soft at the edges) is reported, so that a caller can refuse what fits nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vargpt.data.scenes.render import INK, thing_pixels
from vargpt.data.scenes.shapes import EXTENTS, Array, distance, pattern
from vargpt.data.scenes.world import SHAPES, SIZES, Thing

_SMALLEST_RADIUS, _LARGEST_RADIUS = 0.07, 0.3
_SEEN = 0.45
"""Share of a covered thing that must be seen."""

_SAMPLES = 40
"""Windows are sampled with at most about this many points per side."""


@dataclass(frozen=True)
class Fit:
    """A shape laid on a blob, in pixels.

    Attributes:
        quality: soft overlap over union, 0 to 1.
    """

    shape: str
    x: float
    y: float
    radius: float
    quality: float

    def inside(self, height: int, width: int) -> Array:
        """Signed distance in radii at every pixel, float32 [H, W]."""
        u, v = _grid(self, np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32))
        return distance(self.shape, u, v)


def _grid(fit: Fit, rows: Array, columns: Array) -> tuple[Array, Array]:
    u = (columns + np.float32(0.5) - np.float32(fit.x)) / np.float32(fit.radius)
    v = (rows + np.float32(0.5) - np.float32(fit.y)) / np.float32(fit.radius)
    shape = (len(rows), len(columns))
    return np.broadcast_to(u[None, :], shape), np.broadcast_to(v[:, None], shape)


@dataclass(frozen=True)
class Target:
    """What a fit is compared with: cover and its weight at sampled pixel centres.

    Attributes:
        rows, columns: pixel indices, float32.
        cover, weight: float32 [rows, columns].
        side: the picture's shorter side.
        partial: whether something may cover a part; most of the thing must be seen all the same.
    """

    rows: Array
    columns: Array
    cover: Array
    weight: Array
    side: int
    partial: bool

    def quality(self, shape: str, places: Array) -> Array:
        """Soft overlap over union of many placements (x, y, radius) [P, 3] of a shape, float32 [P]."""
        x, y, radius = (places[:, axis, None, None] for axis in range(3))
        u = (self.columns[None, None, :] + np.float32(0.5) - x) / radius
        v = (self.rows[None, :, None] + np.float32(0.5) - y) / radius
        u, v = np.broadcast_arrays(u, v)
        drawn = np.clip(np.float32(0.5) - distance(shape, u, v) * radius, 0, 1)
        both = (np.minimum(drawn, self.cover) * self.weight).sum((1, 2))
        either = (np.maximum(drawn, self.cover) * self.weight).sum((1, 2))
        quality = both / np.maximum(either, 1e-6)
        if self.partial:
            seen = (drawn * self.weight).sum((1, 2)) / np.maximum(drawn.sum((1, 2)), 1e-6)
            quality *= np.clip(seen / np.float32(_SEEN), 0, 1)
        return quality


def make_target(mask: NDArray[np.bool_], cover: Array, hidden: NDArray[np.bool_] | None) -> Target:
    """Prepare a blob for fitting.

    Args:
        mask: the blob.
        cover: foreground share of every pixel.
        hidden: pixels where the thing may go on unseen; None where all of it is seen.
    """
    height, width = mask.shape
    side = min(height, width)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    pad = 2 + (int(0.16 * side) if hidden is not None else int(0.03 * side))
    top, bottom = max(rows[0] - pad, 0), min(rows[-1] + pad + 1, height)
    left, right = max(columns[0] - pad, 0), min(columns[-1] + pad + 1, width)
    step = max(1, round(max(bottom - top, right - left) / _SAMPLES))
    window = (slice(top, bottom, step), slice(left, right, step))
    near = _near(mask)
    own = np.where(near, np.clip((cover - 0.1) / 0.4, 0, 1), 0)[window].astype(np.float32)
    weight = np.ones_like(own) if hidden is None else np.where(hidden & ~mask, 0, 1)[window].astype(np.float32)
    return Target(
        np.arange(top, bottom, step, dtype=np.float32),
        np.arange(left, right, step, dtype=np.float32),
        own,
        weight,
        side,
        hidden is not None,
    )


def _near(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    wider = mask.copy()
    wider[1:] |= mask[:-1]
    wider[:-1] |= mask[1:]
    wider[:, 1:] |= mask[:, :-1]
    wider[:, :-1] |= mask[:, 1:]
    return wider


def fit_whole(mask: NDArray[np.bool_], cover: Array) -> list[Fit]:
    """Fit a blob all of which is seen, best first: its bounding box says where and how large each shape would be."""
    target = make_target(mask, cover, None)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    starts = {}
    for shape, (west, east, north, south) in EXTENTS.items():
        radius = ((right - left) / (east - west) + (bottom - top) / (south - north)) / 2
        x = (left + right) / 2 - radius * (west + east) / 2
        y = (top + bottom) / 2 - radius * (north + south) / 2
        starts[shape] = np.array([[x, y, radius]], dtype=np.float32)
    return _best(target, starts, keep=0.12)


def fit_hidden(mask: NDArray[np.bool_], cover: Array, hidden: NDArray[np.bool_]) -> list[Fit]:
    """Fit a blob a part of which something covers, best first: every size, hung on every side of what is seen."""
    target = make_target(mask, cover, hidden)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    starts = {}
    for shape, (west, east, north, south) in EXTENTS.items():
        places = []
        for size in SIZES.values():
            radius = size * target.side
            across = (left - radius * west, right - radius * east, (left + right - radius * (west + east)) / 2)
            along = (top - radius * north, bottom - radius * south, (top + bottom - radius * (north + south)) / 2)
            places += [(x, y, radius) for x in across for y in along]
        starts[shape] = np.array(places, dtype=np.float32)
    return _best(target, starts, keep=0.2)


def _best(target: Target, starts: dict[str, Array], keep: float) -> list[Fit]:
    """All shapes, best first, the promising ones after a local search from their best start."""
    first = {}
    for shape in SHAPES:
        qualities = target.quality(shape, starts[shape])
        index = int(qualities.argmax())
        first[shape] = (float(qualities[index]), starts[shape][index])
    bar = max(quality for quality, _ in first.values()) - keep
    fits = [
        _refine(target, shape, place, quality) if quality >= bar else _placed(shape, place, quality)
        for shape, (quality, place) in first.items()
    ]
    return sorted(fits, key=lambda fit: -fit.quality)


_STEPS = np.array(
    [(x, y, r) for x in (-1, 0, 1) for y in (-1, 0, 1) for r in (-1, 0, 1)],
    dtype=np.float32,
)


def _refine(target: Target, shape: str, place: Array, quality: float) -> Fit:
    """Climb: try the 27 neighbours, go to the best, halve the step when none is better."""
    step = np.array([0.1, 0.1, 0.08], dtype=np.float32) * place[2]
    low, high = _SMALLEST_RADIUS * target.side, _LARGEST_RADIUS * target.side
    moves = 0
    while step[0] > 0.02 * place[2] and moves < 14:
        places = place + _STEPS * step
        places[:, 2] = np.clip(places[:, 2], low, high)
        qualities = target.quality(shape, places)
        index = int(qualities.argmax())
        if qualities[index] > quality + 1e-4:
            place, quality = places[index], float(qualities[index])
        else:
            step = step / 2
        moves += 1
    return _placed(shape, place, quality)


def _placed(shape: str, place: Array, quality: float) -> Fit:
    return Fit(shape, float(place[0]), float(place[1]), float(place[2]), quality)


def deviation(fit: Fit, mask: NDArray[np.bool_], cover: Array, hidden: NDArray[np.bool_] | None) -> float:
    """How far the outline of a blob is from that of its fit on average, in pixels.

    Args:
        hidden: pixels that do not count, because the thing may go on unseen there.
    """
    inside = fit.inside(*mask.shape)
    core = mask & ~_near(~mask)
    wrong = (inside < 0) != (core | (_near(mask) & (cover > 0.45)))
    border = np.abs(inside) * fit.radius < 0.5
    if hidden is not None:
        counts = ~hidden | mask
        wrong, border = wrong & counts, border & counts
    return float(wrong.sum()) / max(float(border.sum()), 1.0)


def size_of(fit: Fit, side: int) -> str:
    """The nearest size by ratio."""
    return min(SIZES, key=lambda name: abs(np.log(fit.radius / side / SIZES[name])))


_PLAIN_SLOPE = 0.13
_PLAIN_CORRELATION = 0.42


def texture_of(pixels: Array, mask: NDArray[np.bool_], fit: Fit, colour: str) -> str:
    """Plain, striped or dotted: how dark the surface is beside a plain one, against both patterns."""
    height, width = mask.shape
    reach = 1.3 * fit.radius
    top, bottom = max(int(fit.y - reach), 0), min(int(fit.y + reach) + 1, height)
    left, right = max(int(fit.x - reach), 0), min(int(fit.x + reach) + 1, width)
    rows, columns = np.arange(top, bottom, dtype=np.float32), np.arange(left, right, dtype=np.float32)
    u, v = _grid(fit, rows, columns)
    inside = distance(fit.shape, u, v)
    surface = thing_pixels(Thing(fit.shape, colour), u, v, inside, np.float32(fit.radius))
    seen = pixels[top:bottom, left:right]
    chosen = (inside < -max(0.12, 0.9 / fit.radius)) & mask[top:bottom, left:right]
    if chosen.sum() < 12:
        return "plain"
    light = ((seen * surface).sum(-1) / (surface * surface).sum(-1))[chosen]
    light = light / np.quantile(light, 0.8)
    spread = light - light.mean()
    best, best_correlation, best_slope = "plain", 0.0, 0.0
    shift = 0.05
    for name in ("striped", "dotted"):
        for du in (-shift, 0.0, shift):
            for dv in (-shift, 0.0, shift):
                ink = pattern(name, u + np.float32(du), v + np.float32(dv), np.float32(fit.radius))[chosen]
                ink = ink - ink.mean()
                power = float((ink * ink).sum())
                slope = -float((ink * spread).sum()) / max(power, 1e-6)
                correlation = slope * np.sqrt(power / max(float((spread * spread).sum()), 1e-9))
                if correlation > best_correlation:
                    best, best_correlation, best_slope = name, correlation, slope
    dark = best_slope / (1 - INK)
    return best if best_correlation > _PLAIN_CORRELATION and dark > _PLAIN_SLOPE / (1 - INK) else "plain"
