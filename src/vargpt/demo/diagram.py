"""The pyramid of scales as a small inline SVG: every cell is one token.

Invariant: the grids are those of the model; colours are the finished picture's mean over each cell, an illustration.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

_SIDE, _GAP, _TOP = 112, 26, 8


def pyramid(picture: Image.Image, grids: Sequence[tuple[int, int]]) -> str:
    """Draw the grids (rows, columns) of a picture side by side, coarse to fine, with what is under each."""
    width = len(grids) * (_SIDE + _GAP) - _GAP + 4
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
            middle = _TOP + tallest / 2
            parts.append(f'<text x="{left - _GAP / 2 - 1:.0f}" y="{middle + 5:.0f}" text-anchor="middle">+</text>')
        tokens = f"{rows * columns} token{'s' if rows * columns > 1 else ''}"
        centre, under = left + _SIDE / 2, _TOP + tallest
        parts.append(f'<text x="{centre:.0f}" y="{under + 20:.0f}" text-anchor="middle">{columns}×{rows}</text>')
        parts.append(f'<text x="{centre:.0f}" y="{under + 38:.0f}" text-anchor="middle">{tokens}</text>')
    label = "Grids of tokens from coarse to fine"
    height = _TOP + tallest + 46
    return f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
