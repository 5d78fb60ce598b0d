"""The pyramid of scales as a small inline SVG: every cell is one token, and the sum is the picture.

Invariant: the grids are those of the model; colours are the finished picture's mean over each cell, an illustration.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from PIL import Image

from vargpt.inference.pictures import png_bytes

_SIDE, _GAP, _TOP = 112, 26, 8


def pyramid(picture: Image.Image, grids: Sequence[tuple[int, int]]) -> str:
    """Draw the grids (rows, columns) of a picture side by side, coarse to fine, and the picture at the end."""
    width = (len(grids) + 1) * (_SIDE + _GAP) - _GAP + 4
    parts = []
    tallest = max(_SIDE * rows / max(rows, columns) for rows, columns in grids)
    for index, (rows, columns) in enumerate(grids):
        left = 2 + index * (_SIDE + _GAP)
        cell = _SIDE / max(rows, columns)
        small = picture.convert("RGB").resize((columns, rows), Image.Resampling.BOX)
        for row in range(rows):
            for column in range(columns):
                red, green, blue = small.getpixel((column, row))  # type: ignore[misc]
                parts.append(
                    f'<rect x="{left + column * cell:.1f}" y="{_TOP + row * cell:.1f}" width="{cell - 1:.1f}" '
                    f'height="{cell - 1:.1f}" rx="{min(cell / 8, 6):.1f}" fill="#{red:02x}{green:02x}{blue:02x}"/>'
                )
        if index:
            parts.append(_text(left - _GAP / 2 - 1, _TOP + tallest / 2 + 5, "+"))
        tokens = f"{rows * columns} token{'s' if rows * columns > 1 else ''}"
        parts.append(_text(left + _SIDE / 2, _TOP + tallest + 20, f"{columns}×{rows}"))
        parts.append(_text(left + _SIDE / 2, _TOP + tallest + 38, tokens))
    left, data = width - _SIDE - 2, base64.b64encode(png_bytes(picture)).decode("ascii")
    parts.append(_text(left - _GAP / 2 - 1, _TOP + tallest / 2 + 5, "="))
    parts.append(
        f'<image x="{left}" y="{_TOP}" width="{_SIDE}" height="{tallest:.0f}" href="data:image/png;base64,{data}"/>'
    )
    parts.append(_text(left + _SIDE / 2, _TOP + tallest + 20, f"{picture.width}×{picture.height}"))
    parts.append(_text(left + _SIDE / 2, _TOP + tallest + 38, "pixels"))
    label = "Grids of tokens from coarse to fine add up to the picture"
    height = _TOP + tallest + 46
    return f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle">{words}</text>'
