"""The README's picture: drawn scale by scale, named, and edited, on one wide PNG.

Invariant: it shows the first results of the demo's lists, whatever they are.
"""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from vargpt.demo.page import Demo

_CELL = 120
_GAP = 12
_MARGIN = 32
_TITLE = 34
_CAPTION = 28
_INK, _SOFT, _LINE, _PAPER = (29, 29, 34), (107, 107, 118), (230, 230, 236), (251, 251, 253)
_ROWS = 3


class _Sheet:
    """A canvas of framed cells with captions."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), _PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def title(self, left: int, text: str) -> None:
        """Head of a column group."""
        self._draw.text((left, _MARGIN - 10), text, fill=_INK, font=ImageFont.load_default(20))

    def picture(self, left: int, top: int, picture: Image.Image, caption: str = "") -> None:
        """One picture in a frame, with a line under it."""
        factor = _CELL / max(picture.size)
        size = (round(picture.width * factor), round(picture.height * factor))
        fitted = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        self._draw.rounded_rectangle(
            (left - 5, top - 5, left + _CELL + 4, top + _CELL + 4), 10, fill="white", outline=_LINE, width=1
        )
        self.image.paste(fitted, (left + (_CELL - size[0]) // 2, top + (_CELL - size[1]) // 2))
        self.caption(left, top, _CELL, caption)

    def caption(self, left: int, top: int, width: int, text: str) -> None:
        """A centred line under a cell or a pair of them, cut where it is too long."""
        font = ImageFont.load_default(14)
        while text and self._draw.textlength(text, font=font) > width + _GAP:
            text = text[:-4].rstrip(" .") + "..."
        length = self._draw.textlength(text, font=font)
        self._draw.text((left + (width - length) / 2, top + _CELL + 8), text, fill=_SOFT, font=font)

    def arrow(self, left: int, top: int) -> None:
        """From a picture to its edit."""
        middle = top + _CELL // 2
        self._draw.line((left, middle, left + 22, middle), fill=_SOFT, width=2)
        self._draw.polygon([(left + 28, middle), (left + 20, middle - 5), (left + 20, middle + 5)], fill=_SOFT)


def banner(demo: Demo) -> Image.Image:
    """Three groups side by side: scale by scale, named, edited."""
    step, scales = _CELL + _GAP, len(demo.steps[0].pictures)
    groups = 28
    named_left = _MARGIN + scales * step + groups
    edited_left = named_left + 2 * step + groups
    width = edited_left + 2 * _CELL + 40 + _MARGIN
    top = _MARGIN + _TITLE
    sheet = _Sheet(width, top + _ROWS * (_CELL + _CAPTION + _GAP) + _MARGIN - _GAP)
    for left, text in ((_MARGIN, "draws, scale by scale"), (named_left, "names"), (edited_left, "edits")):
        sheet.title(left, text)
    for row in range(_ROWS):
        here = top + row * (_CELL + _CAPTION + _GAP)
        drawn = demo.steps[row]
        for column, (picture, grid) in enumerate(zip(drawn.pictures, drawn.grids, strict=True)):
            last = column == scales - 1
            caption = drawn.prompt if last else f"{grid[1]}x{grid[0]}"
            sheet.picture(_MARGIN + column * step, here, picture, caption)
        for column in range(2):
            item = demo.captions[2 * row + column]
            sheet.picture(named_left + column * step, here, item.picture, item.said.strip())
        edit = demo.edits[row]
        sheet.picture(edited_left, here, edit.before)
        sheet.arrow(edited_left + _CELL + 6, here)
        sheet.picture(edited_left + _CELL + 40, here, edit.after)
        sheet.caption(edited_left, here, 2 * _CELL + 40, edit.instruction)
    return sheet.image
