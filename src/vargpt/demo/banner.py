"""Pictures of the demo as PNG: the README's banner, and a contact sheet of everything drawn.

Invariant: the banner shows the first results of the demo's lists, whatever they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from vargpt.demo.content import Demo, Edited, Look, Named, Row, Steps
from vargpt.inference.pictures import contact_sheet, png_bytes

_CELL, _GAP, _MARGIN = 104, 10, 28
_LEFT_WIDTH = 5 * _CELL + 4 * _GAP
_RIGHT = _MARGIN + _LEFT_WIDTH + 44
_RIGHT_WIDTH = 2 * (2 * _CELL + 34) + 24
_WIDTH = _RIGHT + _RIGHT_WIDTH + _MARGIN
_TITLE, _CAPTION, _ROW_GAP = 34, 24, 16
_INK, _SOFT, _LINE, _PAPER, _OK, _NO = (
    (29, 29, 34), (99, 101, 114), (222, 223, 231), (251, 251, 253), (20, 128, 74), (194, 64, 47),
)  # fmt: skip
MOST_BYTES = 400_000
"""Of the banner as PNG; a larger one gets a palette."""


class _Sheet:
    """A canvas of framed cells with captions."""

    def __init__(self, height: int) -> None:
        self.image = Image.new("RGB", (_WIDTH, height), _PAPER)
        self._draw = ImageDraw.Draw(self.image)
        self._draw.rectangle((0, 0, _WIDTH - 1, height - 1), outline=_LINE)

    def title(self, left: int, top: int, text: str) -> None:
        """Head of a group."""
        self._draw.text((left, top), text, fill=_INK, font=ImageFont.load_default(20))

    def picture(self, left: int, top: int, picture: Image.Image) -> None:
        """One picture in a frame."""
        factor = _CELL / max(picture.size)
        size = (round(picture.width * factor), round(picture.height * factor))
        fitted = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        self._draw.rectangle((left - 1, top - 1, left + _CELL, top + _CELL), outline=_LINE, fill="white")
        self.image.paste(fitted, (left + (_CELL - size[0]) // 2, top + (_CELL - size[1]) // 2))

    def text(
        self, left: int, top: int, width: int, text: str, size: int = 15, colour: tuple[int, ...] = _SOFT
    ) -> float:
        """A line, cut where it is too long; returns its length."""
        font = ImageFont.load_default(size)
        while text and self._draw.textlength(text, font=font) > width:
            text = text[:-4].rstrip(" .") + "..."
        self._draw.text((left, top), text, fill=colour, font=font)
        return self._draw.textlength(text, font=font)

    def centred(self, left: int, top: int, text: str, size: int = 13) -> None:
        """A line under a cell."""
        length = self._draw.textlength(text, font=ImageFont.load_default(size))
        self.text(left + round((_CELL - length) / 2), top, _CELL, text, size)

    def tick(self, left: int, middle: int, right: bool) -> None:
        """A tick or a cross, drawn, since the built-in font has none."""
        if right:
            self._draw.line([(left, middle), (left + 4, middle + 5), (left + 12, middle - 6)], fill=_OK, width=3)
        else:
            self._draw.line([(left + 1, middle - 5), (left + 11, middle + 5)], fill=_NO, width=3)
            self._draw.line([(left + 1, middle + 5), (left + 11, middle - 5)], fill=_NO, width=3)

    def arrow(self, left: int, top: int) -> None:
        """From a picture to its edit."""
        middle = top + _CELL // 2
        self._draw.line((left, middle, left + 14, middle), fill=_SOFT, width=2)
        self._draw.polygon([(left + 20, middle), (left + 12, middle - 5), (left + 12, middle + 5)], fill=_SOFT)


def banner(demo: Demo) -> Image.Image:
    """Left: drawn coarse to fine, then several versions. Right: questions answered, pictures named, edits."""
    heroes, rows = list(demo.heroes), [rows[0] for rows in (demo.scene_rows[1:], demo.emoji_rows[1:]) if rows]
    rows = rows or [part[0] for part in (demo.scene_rows, demo.emoji_rows) if part]
    band, tall = _CELL + _CAPTION + _ROW_GAP, _CELL + 2 * _CAPTION + _ROW_GAP - 6
    looks, names = list(demo.looks[:2]), list(demo.named[:4])
    edits = [*demo.scene_edits[:2], *demo.emoji_edits[:2]]
    answered = len(looks) if looks else bool(names)
    upper = max(len(heroes), answered)
    lower = max(len(rows), (len(edits) + 1) // 2)
    sheet = _Sheet(_MARGIN + 2 * _TITLE + upper * tall + lower * band + 8)
    top = _MARGIN - 8
    sheet.title(_MARGIN, top, "draws, coarse to fine")
    for index, steps in enumerate(heroes):
        _steps(sheet, top + _TITLE + index * tall, steps)
    sheet.title(_RIGHT, top, "answers" if looks else "names")
    for index, look in enumerate(looks):
        _look(sheet, top + _TITLE + index * tall, look)
    if not looks:
        _names(sheet, top + _TITLE, names)
    top += _TITLE + upper * tall
    sheet.title(_MARGIN, top, "the same words, other seeds")
    for index, row in enumerate(rows):
        _row(sheet, top + _TITLE + index * band, row)
    sheet.title(_RIGHT, top, "edits")
    for index, edit in enumerate(edits):
        left = _RIGHT + (index % 2) * (2 * _CELL + 34 + 24)
        _edit(sheet, left, top + _TITLE + index // 2 * band, edit)
    return sheet.image if len(png_bytes(sheet.image)) < MOST_BYTES else sheet.image.quantize(256)


def _steps(sheet: _Sheet, top: int, steps: Steps) -> None:
    for index, (picture, (rows, columns)) in enumerate(zip(steps.pictures[-5:], steps.grids[-5:], strict=True)):
        left = _MARGIN + index * (_CELL + _GAP)
        sheet.picture(left, top, picture)
        sheet.centred(left, top + _CELL + 5, f"{columns}x{rows}")
    sheet.text(_MARGIN, top + _CELL + 23, _LEFT_WIDTH, steps.prompt)


def _row(sheet: _Sheet, top: int, row: Row) -> None:
    for index, drawing in enumerate(row.drawings[:5]):
        sheet.picture(_MARGIN + index * (_CELL + _GAP), top, drawing.picture)
    sheet.text(_MARGIN, top + _CELL + 4, _LEFT_WIDTH, row.prompt)


def _look(sheet: _Sheet, top: int, look: Look) -> None:
    sheet.picture(_RIGHT, top, look.picture)
    left, width = _RIGHT + _CELL + 16, _RIGHT_WIDTH - _CELL - 16
    for index, answer in enumerate(look.answers[:4]):
        here = top + index * 27
        length = sheet.text(left, here, width - 110, answer.question)
        length += sheet.text(left + round(length) + 8, here, width - round(length) - 34, answer.said, 15, _INK) + 8
        sheet.tick(left + round(length) + 8, here + 10, answer.right)


def _names(sheet: _Sheet, top: int, names: Sequence[Named]) -> None:
    for index, item in enumerate(names):
        left = _RIGHT + index * (_CELL + _GAP + 8)
        sheet.picture(left, top, item.picture)
        sheet.centred(left, top + _CELL + 5, item.said)


def _edit(sheet: _Sheet, left: int, top: int, edit: Edited) -> None:
    sheet.picture(left, top, edit.before)
    sheet.arrow(left + _CELL + 7, top)
    sheet.picture(left + _CELL + 34, top, edit.after)
    length = sheet.text(left, top + _CELL + 4, 2 * _CELL + 20, edit.instruction)
    if edit.score is not None:
        sheet.tick(left + round(length) + 8, top + _CELL + 14, edit.score.asked and edit.score.kept == 1.0)


def sheet(demo: Demo) -> Image.Image:
    """All pictures that the model drew, on one PNG."""
    rows: list[list[Image.Image | None]] = []
    labels = []
    for item in demo.heroes:
        rows.append(list(item.pictures))
        labels.append(f"{item.prompt}, scale by scale")
    for row in (*demo.scene_rows, *demo.emoji_rows):
        rows.append([drawing.picture for drawing in row.drawings])
        labels.append(row.prompt)
    for edit in (*demo.scene_edits, *demo.emoji_edits):
        rows.append([edit.before, edit.after])
        labels.append(edit.instruction)
    for talk in demo.talks:
        rows.append([turn.picture for turn in talk.turns if turn.picture is not None])
        labels.append("; ".join(turn.text for turn in talk.turns if turn.role == "user"))
    return contact_sheet(rows, labels, cell=96)
