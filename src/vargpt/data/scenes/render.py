"""Scenes become pixels: anti-aliased shapes with soft light and shadow, at any size.

Invariant: pixels are a function of the scene and the size alone. Only the window that a thing and its shadow can
reach is touched, which is what makes it fast.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vargpt.data.scenes.shapes import Array, distance, pattern
from vargpt.data.scenes.world import BACKGROUNDS, COLOURS, Scene, Thing

MIN_SIDE = 8
MAX_SIDE = 4096
INK = 0.6
"""Stripes and dots are this much darker than the thing."""

SHADOW_STRENGTH, SHADOW_SOFTNESS, SHADOW_OFFSET = 0.3, 0.28, 0.16
_SHADOW_REACH = 1.08
_WINDOW = 1.55

_GRADIENTS = {
    "white": ((252, 252, 252), (236, 237, 240)),
    "gray": ((176, 178, 183), (146, 148, 154)),
    "night": ((20, 23, 50), (46, 45, 86)),
    "sky": ((172, 211, 244), (222, 238, 250)),
    "sand": ((246, 233, 206), (228, 208, 172)),
}
_MEADOW_SKY = ((206, 229, 244), (236, 244, 246))
_MEADOW_GRASS = ((198, 226, 164), (172, 208, 136))
_HORIZON = 0.6


def render(scene: Scene, height: int, width: int) -> NDArray[np.uint8]:
    """Draw a scene as uint8 [height, width, 3].

    Raises:
        ValueError: for sides outside 8..4096.
    """
    canvas = background_pixels(scene.background, height, width).copy()
    for thing in scene.things:
        paint_window(canvas, thing, thing.x * width, thing.y * height, thing.radius * min(height, width))
    return (canvas + np.float32(0.5)).clip(0, 255).astype(np.uint8)


def render_image(scene: Scene, height: int, width: int) -> Image.Image:
    """Draw a scene as a PIL image."""
    return Image.fromarray(render(scene, height, width))


@lru_cache(maxsize=64)
def background_pixels(background: str, height: int, width: int) -> Array:
    """A background, float32 [height, width, 3] in 0..255, read-only.

    Raises:
        ValueError: for an unknown background, or sides outside 8..4096.
    """
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise ValueError(f"a scene's sides must be {MIN_SIDE}..{MAX_SIDE} pixels, got {height}x{width}")
    rows = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None, None]
    if background == "meadow":
        columns = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None, :, None]
        horizon = _HORIZON + 0.035 * np.sin(columns * np.float32(5.0) + np.float32(0.6))
        grass = np.clip((rows - horizon) * height + 0.5, 0, 1)
        sky = _blend(_MEADOW_SKY, np.clip(rows / _HORIZON, 0, 1))
        field = _blend(_MEADOW_GRASS, np.clip((rows - _HORIZON) / (1 - _HORIZON), 0, 1))
        pixels = sky + (field - sky) * grass
    elif background in _GRADIENTS:
        pixels = np.broadcast_to(_blend(_GRADIENTS[background], rows), (height, width, 3))
    else:
        raise ValueError(f"unknown background {background!r}, expected one of {', '.join(BACKGROUNDS)}")
    pixels = np.ascontiguousarray(pixels, dtype=np.float32)
    pixels.setflags(write=False)
    return pixels


def _blend(ends: tuple[tuple[int, int, int], tuple[int, int, int]], share: Array) -> Array:
    first, last = np.array(ends, dtype=np.float32)
    return first + (last - first) * share


def paint_window(canvas: Array, thing: Thing, centre_x: float, centre_y: float, radius: float) -> None:
    """Lay the shadow of a thing, then the thing, on a canvas; centre and radius are in its pixels."""
    height, width = canvas.shape[:2]
    reach = _WINDOW * radius + 1
    left, right = max(int(centre_x - reach), 0), min(int(centre_x + reach) + 1, width)
    top, bottom = max(int(centre_y - reach), 0), min(int(centre_y + reach) + 1, height)
    if left >= right or top >= bottom:
        return
    u = np.broadcast_to(
        ((np.arange(left, right, dtype=np.float32) + 0.5 - centre_x) / radius)[None, :], (bottom - top, right - left)
    )
    v = np.broadcast_to(
        ((np.arange(top, bottom, dtype=np.float32) + 0.5 - centre_y) / radius)[:, None], (bottom - top, right - left)
    )
    lay(canvas[top:bottom, left:right], thing, u, v, np.float32(radius))


def lay(canvas: Array, thing: Thing, u: Array, v: Array, radius: Array | np.float32) -> None:
    """Lay the shadow of a thing, then the thing, on pixels given by their place in it.

    Args:
        canvas: float32 [..., h, w, 3], changed in place.
        u, v: [..., h, w], in radii from the thing's centre.
        radius: in pixels, a number or [..., 1, 1].
    """
    offset = np.float32(SHADOW_OFFSET)
    below = np.maximum(
        distance(thing.shape, u - offset, v - offset), np.hypot(u - offset, v - offset) - np.float32(_SHADOW_REACH)
    )
    below = np.clip(below * np.float32(-0.5 / SHADOW_SOFTNESS) + np.float32(0.5), 0, 1)
    canvas *= (1 - np.float32(SHADOW_STRENGTH) * below * below * (3 - 2 * below))[..., None]
    inside = distance(thing.shape, u, v)
    cover = np.clip(np.float32(0.5) - inside * radius, 0, 1)
    canvas += (thing_pixels(thing, u, v, inside, radius) - canvas) * cover[..., None]


def thing_pixels(thing: Thing, u: Array, v: Array, inside: Array, radius_pixels: Array | np.float32) -> Array:
    """Colours of a thing's surface, float32 [..., 3]: light from the upper left, a darker rim, a soft highlight."""
    light = np.float32(0.99) - np.float32(0.07) * (u + v)
    light -= np.float32(0.16) * np.clip(inside * 5 + 1, 0, 1)
    if thing.texture != "plain":
        light *= 1 - np.float32(1 - INK) * pattern(thing.texture, u, v, radius_pixels)
    surface = light[..., None] * np.array(COLOURS[thing.colour], dtype=np.float32)
    shine = np.float32(0.26) * np.exp(((u + np.float32(0.34)) ** 2 + (v + np.float32(0.4)) ** 2) * np.float32(-6))
    surface += (255 - surface) * shine[..., None]
    return surface
