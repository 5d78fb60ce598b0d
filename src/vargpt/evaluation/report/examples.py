"""Which examples a page shows, and their pictures as data.

Invariant: the choice is a function of the results alone; a page of thousands of examples stays a few megabytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from vargpt.evaluation.task import Judged, Measure

SHOWN = 12
"""Right ones, and wrong ones; of the best, the middle and the worst two thirds of it each, to fill whole rows."""

SIDE = 144
"""Longer side of a picture on the page, in pixels."""

_JPEG_QUALITY = 92


@dataclass(frozen=True)
class Group:
    """Examples to show under one heading, out of `total`."""

    title: str
    examples: Sequence[Judged]
    total: int


def score(example: Judged, measures: Sequence[Measure]) -> tuple[Measure, float] | None:
    """The first of a task's measures that an example has, with its value; None where it has none."""
    for measure in measures:
        if measure.name in example.values:
            return measure, example.values[measure.name]
    return None


def groups(judged: Sequence[Judged], measures: Sequence[Measure], shown: int = SHOWN) -> list[Group]:
    """Right and wrong ones, evenly spread, where all scores are 0 or 1; else the best, the middle and the worst."""
    scored = [(example, score(example, measures)) for example in judged if example.pictures or example.answer]
    known = [(example, *found) for example, found in scored if found is not None]
    if not known:
        return []
    if all(value in (0.0, 1.0) for _, _, value in known):
        found = []
        for title, wanted in (("Wrong", 0.0), ("Right", 1.0)):
            chosen = [example for example, _, value in known if value == wanted]
            found.append(Group(title, spread(chosen, shown), len(chosen)))
        return [group for group in found if group.total]
    ranked = [
        example
        for example, _, _ in sorted(known, key=lambda item: item[2] * (1 if item[1].higher_is_better is False else -1))
    ]
    if len(ranked) <= shown:
        return [Group("From best to worst", ranked, len(ranked))]
    wide = max(len(example.pictures) for example in ranked) > 2
    part = min(shown // 2 if wide else 2 * shown // 3, len(ranked) // 3)
    middle = (len(ranked) - part) // 2
    return [
        Group("Best", ranked[:part], len(ranked)),
        Group("Around the median", ranked[middle : middle + part], len(ranked)),
        Group("Worst", ranked[-part:], len(ranked)),
    ]


def spread(examples: Sequence[Judged], most: int) -> list[Judged]:
    """At most `most` of them, evenly spread."""
    if len(examples) <= most:
        return list(examples)
    return [examples[index * len(examples) // most] for index in range(most)]


def picture_source(pixels_HW3: Tensor) -> str:
    """A `data:` address of a picture, reduced to `SIDE`; PNG or JPEG, whichever is smaller."""
    picture = Image.fromarray(pixels_HW3.cpu().numpy())
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    encoded = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": _JPEG_QUALITY, "subsampling": 0})):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        encoded.append((len(buffer.getvalue()), kind, buffer.getvalue()))
    _, kind, data = min(encoded)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
