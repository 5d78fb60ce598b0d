"""Pixels become a background and blobs of colour: the first half of the checker.

Invariant: nothing is known here about shapes. A blob is a connected region of one colour family that stands out from
the background; light, shadow and stripes (all of which scale a colour) do not change its family.

The colour family is the angle in the plane of (R - G, (R + G) / 2 - B): scaling a colour or mixing it with gray
keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vargpt.data.scenes.render import background_pixels
from vargpt.data.scenes.shapes import Array
from vargpt.data.scenes.world import BACKGROUNDS, COLOURS

Labels = NDArray[np.int32]

_NEAR = 26.0
"""Distance in 8-bit RGB within which a pixel can be background."""

_KNOWN_SHARE = 0.35
_CORE = 0.32
"""Share of the way from background to full colour at which a pixel counts as foreground; ink is at 0.6."""

_FAINTEST = 34.0
_SMALLEST = 0.0075
"""Smallest blob, in squared shorter sides: a third of the smallest shape."""

_COLOUR_TABLE: Array = np.array(list(COLOURS.values()), dtype=np.float32)


@dataclass(frozen=True)
class Blob:
    """A region of one colour family.

    Attributes:
        colour: its name.
        mask: bool [H, W].
    """

    colour: str
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Segmentation:
    """What stands out from what.

    Attributes:
        background: the nearest known one.
        known: whether the picture really shows it.
        ground: float32 [H, W, 3], the picture without things.
        cover: float32 [H, W], how much of a pixel is foreground, 0 to 1.
        blobs: large enough to be a thing, largest first.
        strange: share of pixels that are neither background nor part of a blob.
    """

    background: str
    known: bool
    ground: Array
    cover: Array
    blobs: tuple[Blob, ...]
    strange: float


def segment(pixels: Array) -> Segmentation:
    """Split float32 pixels [H, W, 3] in 0..255 into background and blobs."""
    height, width = pixels.shape[:2]
    background, known, ground = _find_background(pixels)
    away = _distance_from(pixels, ground)
    families, chroma = _families(pixels, away)
    full = _full_distance(ground, families)
    cover = np.clip(away / full, 0, 1)
    core = (cover > _CORE) & (away > _FAINTEST)
    coloured = core & (chroma > 0.22)
    labels = connected(np.where(coloured, families, -1))
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    smallest = _SMALLEST * min(height, width) ** 2
    blobs = []
    for label in np.argsort(-sizes):
        if sizes[label] < max(smallest, 8):
            break
        mask = labels == label
        family = int(families.ravel()[label])
        blobs.append(Blob(tuple(COLOURS)[family], mask))
    taken = np.zeros((height, width), dtype=bool)
    for blob in blobs:
        taken |= blob.mask
    strange = float((core & ~grown(taken)).mean())
    return Segmentation(background, known, ground, cover, tuple(blobs), strange)


def _find_background(pixels: Array) -> tuple[str, bool, Array]:
    """The background that most pixels agree with, and its colours moved to where this picture has them."""
    height, width = pixels.shape[:2]
    best, best_share, ground = BACKGROUNDS[0], -1.0, pixels
    for name in BACKGROUNDS:
        expected = background_pixels(name, height, width)
        near = _distance_from(pixels, expected) < _NEAR
        near &= np.abs(pixels - expected).max(-1) < 2.5 * _NEAR
        share = float(near.mean())
        if share > best_share:
            best, best_share = name, share
            drift = np.median((pixels - expected)[near], axis=0) if near.any() else np.zeros(3, np.float32)
            ground = expected + drift.astype(np.float32)
    if best_share >= _KNOWN_SHARE:
        return best, True, ground
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return best, False, np.broadcast_to(np.median(rim, axis=0).astype(np.float32), pixels.shape)


def _distance_from(pixels: Array, ground: Array) -> Array:
    """Distance of every pixel from its background in any depth of shadow, in 8-bit RGB."""
    scale = (pixels * ground).sum(-1) / np.maximum((ground * ground).sum(-1), 1)
    off = pixels - np.clip(scale, 0.62, 1.04)[..., None] * ground
    return np.sqrt((off * off).sum(-1))


def _families(pixels: Array, away: Array) -> tuple[Labels, Array]:
    """Index of the nearest colour by angle, int32 [H, W], and how colourful a pixel is, 0 to 1."""
    plane = _plane(pixels)
    weight = np.maximum(away - 10, 0.1)[..., None]
    smooth = _blur_once(plane * weight) / _blur_once(weight)
    table = _plane(_COLOUR_TABLE)
    table = table / np.linalg.norm(table, axis=-1, keepdims=True)
    strength = np.linalg.norm(smooth, axis=-1)
    families = (smooth @ table.T).argmax(-1).astype(np.int32)
    brightest = np.maximum(pixels.max(-1), 40)
    return families, strength / brightest


def _plane(pixels: Array) -> Array:
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return np.stack([red - green, (red + green) / 2 - blue], axis=-1)


def blurred(values: Array, passes: int) -> Array:
    """Binomial 3 x 3 mean over the first two axes of [H, W, C], `passes` times."""
    for _ in range(passes):
        values = _blur_once(values)
    return values


def _blur_once(values: Array) -> Array:
    padded = np.pad(values, ((1, 1), (0, 0), (0, 0)), mode="edge")
    values = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    padded = np.pad(values, ((0, 0), (1, 1), (0, 0)), mode="edge")
    return (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4


def _full_distance(ground: Array, families: Labels) -> Array:
    """Distance from the background of a pixel's colour family at full cover."""
    square = np.maximum((ground * ground).sum(-1), 1)
    found = np.empty(families.shape, dtype=np.float32)
    for family, colour in enumerate(_COLOUR_TABLE):
        chosen = families == family
        if chosen.any():
            here = ground[chosen]
            scale = np.clip((here @ colour) / square[chosen], 0.62, 1.04)
            off = colour - scale[:, None] * here
            found[chosen] = np.sqrt((off * off).sum(-1))
    return found


def connected(classes: Labels) -> Labels:
    """Label connected regions (4 neighbours) of equal non-negative class by their first pixel's index; -1 elsewhere."""
    height, width = classes.shape
    labels = np.where(classes >= 0, np.arange(height * width, dtype=np.int32).reshape(height, width), -1)
    down = (classes[1:] == classes[:-1]) & (classes[1:] >= 0)
    across = (classes[:, 1:] == classes[:, :-1]) & (classes[:, 1:] >= 0)
    while True:
        before = labels.copy()
        for same, first, second in (
            (down, labels[:-1], labels[1:]),
            (across, labels[:, :-1], labels[:, 1:]),
        ):
            low = np.where(same, np.minimum(first, second), first)
            first[...] = low
            second[...] = np.where(same, np.minimum(low, second), second)
        flat = labels.ravel()
        valid = flat >= 0
        for _ in range(4):
            flat[valid] = flat[flat[valid]]
        if (labels == before).all():
            return labels


def grown(mask: NDArray[Any], steps: int = 1) -> NDArray[np.bool_]:
    """A mask with its neighbours (4 of them), `steps` times."""
    mask = mask.astype(bool)
    for _ in range(steps):
        wider = mask.copy()
        wider[1:] |= mask[:-1]
        wider[:-1] |= mask[1:]
        wider[:, 1:] |= mask[:, :-1]
        wider[:, :-1] |= mask[:, 1:]
        mask = wider
    return mask


def is_thin(mask: NDArray[np.bool_]) -> bool:
    """Whether little is left of a mask without its border: the seam between two things, not a thing."""
    left = int(mask.sum()) - int((mask & grown(~mask)).sum())
    return left < 0.2 * mask.sum()
