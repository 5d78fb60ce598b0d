"""A second look at a blob that fits badly: draw what it could be and compare pixels.

Invariant: hypotheses are drawn by the renderer's own functions and blurred as the picture may be; the one that differs
least wins. Brightness is compared in detail and colour coarsely, because that is what compression leaves of a picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vargpt.data.scenes.fitting import Fit
from vargpt.data.scenes.render import paint_window
from vargpt.data.scenes.segmentation import blurred
from vargpt.data.scenes.shapes import Array
from vargpt.data.scenes.world import Thing

_BLURS = (0, 1, 3)
"""Passes of a 3 x 3 binomial filter: standard deviations of 0, 0.7 and 1.2 pixels."""

_FACTORS = (0.83, 0.93, 1.03, 1.14, 1.25)
"""Blur makes a blob larger than its thing, or takes its tips: radii to start from, beside that of the fit."""

_REFINED = 3
_TEXTURED = 0.125
_TEXTURE_GAIN = 0.85
_COLOUR_WEIGHT = 0.5


@dataclass(frozen=True)
class Patch:
    """The part of a picture that a blob can be in.

    Attributes:
        top, left: of the window, in pixels.
        detail: brightness, float32 [h, w].
        tint: colour differences, blurred, float32 [h, w, 2].
        ground: what would be seen without the thing, float32 [h, w, 3].
        weight: float32 [h, w]; 0 where something else hides what is behind.
    """

    top: int
    left: int
    detail: Array
    tint: Array
    ground: Array
    weight: Array


def make_patch(
    pixels: Array,
    ground: Array,
    mask: NDArray[np.bool_],
    others: NDArray[np.bool_],
    hidden: bool,
) -> Patch:
    """Cut out a blob with its surroundings.

    Args:
        ground: the background, float32 [H, W, 3].
        others: pixels of all other blobs.
        hidden: whether the thing may go on behind them; otherwise they are taken as its background.
    """
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    pad = 3 + int(0.06 * min(height, width))
    top, bottom = max(rows[0] - pad, 0), min(rows[-1] + pad + 1, height)
    left, right = max(columns[0] - pad, 0), min(columns[-1] + pad + 1, width)
    window = (slice(top, bottom), slice(left, right))
    seen = pixels[window]
    covered = others[window]
    weight = np.where(covered, 0.0, 1.0) if hidden else np.ones(covered.shape)
    below = ground[window].copy()
    if not hidden:
        below[covered] = seen[covered]
    detail, tint = _split(seen)
    return Patch(top, left, detail, blurred(tint, 2), below, weight.astype(np.float32))


def _split(pixels: Array) -> tuple[Array, Array]:
    """Brightness and two colour differences."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    bright = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    return bright, np.stack([red - bright, blue - bright], axis=-1)


def best_of(patch: Patch, fits: Iterable[Fit], colour: str, side: int) -> tuple[Fit, str]:
    """The fit and texture whose drawing is nearest to the picture; places are refined on the way.

    The quality of the returned fit is the share of the difference between picture and background that the drawing
    explains, 0 to 1.

    Args:
        side: the picture's shorter side; textures are not tried on things too small to show them.
    """
    ranked = []
    for fit in fits:
        for factor in _FACTORS:
            trial = replace(fit, radius=fit.radius * factor)
            ranked.append((_difference(patch, *_split(_drawn(patch, trial, colour, "plain")), 1), 1, trial))
    ranked.sort(key=lambda item: item[0])
    best: dict[str, tuple[float, int, Fit]] = {}
    for item in ranked:
        best.setdefault(item[2].shape, item)
    refined = [_refine(patch, colour, *item, side) for item in list(best.values())[:_REFINED]]
    error, fit, texture = min(refined, key=lambda item: item[0])
    nothing = _difference(patch, *_split(patch.ground), 0)
    return replace(fit, quality=max(0.0, 1.0 - error / max(nothing, 1e-6))), texture


def _refine(patch: Patch, colour: str, error: float, blur: int, fit: Fit, side: int) -> tuple[float, Fit, str]:
    """Walk along x, y and radius while the error falls; then ask for the texture."""
    error, blur = min(_errors(patch, fit, colour, "plain"))
    step = 0.08 * fit.radius
    for _ in range(3):
        for _ in range(3):
            before = error
            for change in ((step, 0, 0), (-step, 0, 0), (0, step, 0), (0, -step, 0), (0, 0, step), (0, 0, -step)):
                trial = replace(fit, x=fit.x + change[0], y=fit.y + change[1], radius=fit.radius + change[2])
                trial_error = _difference(patch, *_split(_drawn(patch, trial, colour, "plain")), blur)
                if trial_error < error:
                    error, fit = trial_error, trial
            if error == before:
                break
        step /= 2
    best, texture = min(_errors(patch, fit, colour, "plain"))[0], "plain"
    if fit.radius > _TEXTURED * side:
        for other in ("striped", "dotted"):
            trial_error = min(_errors(patch, fit, colour, other))[0]
            if trial_error < best * (_TEXTURE_GAIN if texture == "plain" else 1.0):
                best, texture = trial_error, other
    return best, fit, texture


def _drawn(patch: Patch, fit: Fit, colour: str, texture: str) -> Array:
    """The hypothesis on its background, float32 [h, w, 3]."""
    canvas = patch.ground.copy()
    thing = Thing(fit.shape, colour, "medium", texture)
    paint_window(canvas, thing, fit.x - patch.left, fit.y - patch.top, fit.radius)
    return canvas


def _errors(patch: Patch, fit: Fit, colour: str, texture: str) -> list[tuple[float, int]]:
    """Difference at every level of blur."""
    detail, tint = _split(_drawn(patch, fit, colour, texture))
    return [(_difference(patch, detail, tint, blur), blur) for blur in _BLURS]


def _difference(patch: Patch, detail: Array, tint: Array, blur: int) -> float:
    """Mean squared difference between the picture and a drawing that is blurred first."""
    off = (blurred(detail[..., None], blur)[..., 0] - patch.detail) ** 2
    off += np.float32(_COLOUR_WEIGHT) * ((blurred(tint, 2 + blur) - patch.tint) ** 2).sum(-1)
    return float((off * patch.weight).sum() / patch.weight.sum())
