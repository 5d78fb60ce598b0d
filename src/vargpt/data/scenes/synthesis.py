"""A second look at a blob that fits badly: draw what it could be and compare pixels.

Invariant: hypotheses are drawn by the renderer's own functions and blurred as the picture may be; the one that differs
least wins. Brightness is compared in detail and colour coarsely, because that is what compression leaves of a picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vargpt.data.scenes.fitting import Fit
from vargpt.data.scenes.render import lay
from vargpt.data.scenes.shapes import EXTENTS, Array, distance
from vargpt.data.scenes.world import Thing

_BLURS = (0, 1, 3)
"""Passes of a 3 x 3 binomial filter: standard deviations of 0, 0.7 and 1.2 pixels."""

_TINT_PASSES = 2
_FACTORS = (0.92, 1.0, 1.09)
_REFINED = 4
_HOPELESS = 3.0
"""A start this many times worse than what another shape has reached is not followed."""

_COLOUR_WEIGHT = 0.5
_TEXTURED = 0.125
_TEXTURE_GAIN = 0.85


@dataclass(frozen=True)
class Patch:
    """The part of a picture that a blob can be in.

    Attributes:
        rows, columns: pixel centres, float32.
        seen: brightness and two blurred colour differences, float32 [3, h, w].
        ground: what would be seen without the thing, float32 [h, w, 3].
        weight: float32 [h, w]; 0 where something else hides what is behind.
        mass, centre: of the blob, in pixels: its area by cover, and (x, y).
    """

    rows: Array
    columns: Array
    seen: Array
    ground: Array
    weight: Array
    mass: float
    centre: tuple[float, float]

    def differences(
        self, shape: str, places: Array, colour: str, texture: str, blurs: tuple[int, ...] = _BLURS
    ) -> Array:
        """Mean squared difference to a thing drawn at places (x, y, radius) [P, 3] and blurred, float32 [P, blurs]."""
        x, y, radius = (places[:, axis, None, None].astype(np.float32) for axis in range(3))
        u, v = np.broadcast_arrays((self.columns - x) / radius, (self.rows[:, None] - y) / radius)
        canvas = np.broadcast_to(self.ground, (*u.shape, 3)).copy()
        lay(canvas, Thing(shape, colour, "medium", texture), u, v, radius)
        return self._compare(canvas, blurs)

    def nothing(self) -> float:
        """Mean squared difference to the background alone."""
        return float(self._compare(self.ground[None], (0,)).min())

    def _compare(self, canvas: Array, blurs: tuple[int, ...]) -> Array:
        drawn = _channels(canvas)
        found = []
        for passes in blurs:
            soft = drawn if passes == 0 else _smooth(drawn, passes)
            tint = _smooth(soft[:, 1:], _TINT_PASSES)
            off = (soft[:, 0] - self.seen[0]) ** 2
            off = off + np.float32(_COLOUR_WEIGHT) * ((tint - self.seen[1:]) ** 2).sum(1)
            found.append((off * self.weight).sum((1, 2)) / self.weight.sum())
        return np.stack(found, axis=1)


def make_patch(
    pixels: Array,
    ground: Array,
    cover: Array,
    mask: NDArray[np.bool_],
    others: NDArray[np.bool_],
    hidden: bool,
) -> Patch:
    """Cut out a blob with its surroundings.

    Args:
        ground: the background, float32 [H, W, 3].
        cover: foreground share of every pixel.
        others: pixels of all other blobs.
        hidden: whether the thing may go on behind them; otherwise they are taken as its background.
    """
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    pad = 3 + int(0.05 * min(height, width))
    top, bottom = max(rows[0] - pad, 0), min(rows[-1] + pad + 1, height)
    left, right = max(columns[0] - pad, 0), min(columns[-1] + pad + 1, width)
    window = (slice(top, bottom), slice(left, right))
    covered = others[window]
    weight = np.where(covered, 0.0, 1.0) if hidden else np.ones(covered.shape)
    below = ground[window].copy()
    if not hidden:
        below[covered] = pixels[window][covered]
    seen = _channels(pixels[window][None])
    seen[:, 1:] = _smooth(seen[:, 1:], _TINT_PASSES)
    row_centres = np.arange(top, bottom, dtype=np.float32) + np.float32(0.5)
    column_centres = np.arange(left, right, dtype=np.float32) + np.float32(0.5)
    own = np.where(covered, 0, cover[window])
    mass = float(own.sum())
    centre = (float((own * column_centres).sum() / mass), float((own * row_centres[:, None]).sum() / mass))
    return Patch(row_centres, column_centres, seen[0], below, weight.astype(np.float32), mass, centre)


def best_of(patch: Patch, fits: Iterable[Fit], colour: str, side: int) -> tuple[Fit, str]:
    """The fit and texture whose drawing is nearest to the picture; places are refined on the way.

    The quality of the returned fit is the share of the difference between picture and background that the drawing
    explains, 0 to 1.

    Args:
        side: the picture's shorter side; textures are not tried on things too small to show them.
    """
    ranked = []
    for fit in fits:
        places = np.array(
            [(x, y, radius * factor) for x, y, radius in _starts(patch, fit) for factor in _FACTORS], dtype=np.float32
        )
        differences = patch.differences(fit.shape, places, colour, "plain")
        index, blur = np.unravel_index(int(differences.argmin()), differences.shape)
        ranked.append((float(differences[index, blur]), _BLURS[blur], fit.shape, places[index]))
    ranked.sort(key=lambda item: item[0])
    difference, shape, place = np.inf, "", np.zeros(3, dtype=np.float32)
    for start in ranked[:_REFINED]:
        if start[0] > _HOPELESS * difference:
            break
        refined = _refine(patch, colour, *start)
        if refined[0] < difference:
            difference, shape, place = refined
    texture = "plain"
    if place[2] > _TEXTURED * side:
        for other in ("striped", "dotted"):
            trial = float(patch.differences(shape, place[None], colour, other).min())
            if trial < difference * (_TEXTURE_GAIN if texture == "plain" else 1.0):
                difference, texture = trial, other
    quality = max(0.0, 1.0 - difference / max(patch.nothing(), 1e-6))
    return Fit(shape, float(place[0]), float(place[1]), float(place[2]), quality), texture


def _starts(patch: Patch, fit: Fit) -> list[tuple[float, float, float]]:
    """Where to begin: at the fit, and where mass and centre of the blob agree, which blur leaves as they are."""
    area, (across, down) = _moments(fit.shape)
    radius = float(np.sqrt(patch.mass / area))
    return [(fit.x, fit.y, fit.radius), (patch.centre[0] - radius * across, patch.centre[1] - radius * down, radius)]


_AXES = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)], dtype=np.float32)


def _refine(
    patch: Patch, colour: str, difference: float, blur: int, shape: str, place: Array
) -> tuple[float, str, Array]:
    """Walk along x, y and radius while the difference falls, halving the step when it does not."""
    step = np.float32(0.08) * place[2]
    for _ in range(12):
        differences = patch.differences(shape, place + _AXES * step, colour, "plain", (blur,))[:, 0]
        index = int(differences.argmin())
        if differences[index] < difference:
            difference, place = float(differences[index]), place + _AXES[index] * step
        elif step < np.float32(0.025) * place[2]:
            break
        else:
            step = step / 2
    return float(patch.differences(shape, place[None], colour, "plain").min()), shape, place


def _channels(pixels: Array) -> Array:
    """Brightness and two colour differences of [P, h, w, 3], as [P, 3, h, w]."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    bright = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    return np.stack([bright, red - bright, blue - bright], axis=1)


def _smooth(values: Array, passes: int) -> Array:
    """Binomial blur of the last two axes, `passes` times."""
    return _filter(values.shape[-2], passes) @ values @ _filter(values.shape[-1], passes).T


@lru_cache(maxsize=512)
def _filter(size: int, passes: int) -> Array:
    """The binomial filter (1, 2, 1) / 4, `passes` times, edges repeated, as a matrix."""
    once = np.eye(size) * 0.5 + np.eye(size, k=1) * 0.25 + np.eye(size, k=-1) * 0.25
    once[0, 0] += 0.25
    once[-1, -1] += 0.25
    return np.linalg.matrix_power(once, passes).astype(np.float32)


@lru_cache(maxsize=len(EXTENTS))
def _moments(shape: str) -> tuple[float, tuple[float, float]]:
    """Area of a shape of radius 1, and its centre of mass."""
    axis = (np.arange(320, dtype=np.float32) - 159.5) / 120
    u, v = np.meshgrid(axis, axis)
    inside = distance(shape, u, v) < 0
    return float(inside.sum()) / 120**2, (float(u[inside].mean()), float(v[inside].mean()))
