"""Which picture sizes a model draws, and which schedule a request means.

Invariant: a request that the model cannot meet is refused with the list of what it can draw, never bent to the nearest.
"""

from __future__ import annotations

import math

from vargpt.configuration import VargptConfig
from vargpt.scales import BUDGETS, TEMPLATES, ScaleSchedule

_SAME_ASPECT = 0.03
"""Largest difference of log ratios between an aspect asked for and its template (16:9 is drawn as 7:4)."""
_HONEST_GRID = 0.10
"""A prefix of a template counts as that aspect when its last grid is at most this far off."""


def available_schedules(config: VargptConfig) -> list[ScaleSchedule]:
    """Schedules that the model draws: its own budget and the published ones below it, largest first.

    Short prefixes of some templates end in a grid of another aspect (3x3 in 5:4); those are left out.
    """
    budgets = {config.num_scales}
    if config.num_scales in BUDGETS.values():
        budgets |= {scales for scales in BUDGETS.values() if scales < config.num_scales}
    found = []
    for scales in sorted(budgets, reverse=True):
        for key in TEMPLATES:
            schedule = ScaleSchedule.from_template(key, scales, config.image_tokenizer.stride)
            height, width = schedule.grid
            if abs(math.log(height / width) - math.log(key)) <= _HONEST_GRID:
                found.append(schedule)
    return found


def parse_aspect(aspect_ratio: str | float) -> float:
    """Return width / height of '4:3', '16:9', '1.5' or a number.

    Raises:
        ValueError: if it is no such ratio.
    """
    text = str(aspect_ratio).strip().lower().replace("x", ":")
    first, colon, second = text.partition(":")
    try:
        ratio = float(first) / float(second) if colon else float(first)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"an aspect ratio reads width:height, such as 4:3, got {aspect_ratio!r}") from error
    if not 0 < ratio < math.inf:
        raise ValueError(f"an aspect ratio reads width:height, such as 4:3, got {aspect_ratio!r}")
    return ratio


def choose_schedule(
    config: VargptConfig,
    height: int | None = None,
    width: int | None = None,
    aspect_ratio: str | float | None = None,
) -> ScaleSchedule:
    """Return the schedule of a request: pixels (height and width), or an aspect ratio, or neither for a square.

    Raises:
        ValueError: both ways at once, one side alone, or a size or aspect that the model lacks.
    """
    schedules = available_schedules(config)
    if aspect_ratio is not None:
        if height is not None or width is not None:
            raise ValueError("give either height and width or an aspect ratio, not both")
        asked = -math.log(parse_aspect(aspect_ratio))
        best = min(schedules, key=lambda schedule: (abs(asked - math.log(schedule.template)), -schedule.num_scales))
        if abs(asked - math.log(best.template)) > _SAME_ASPECT:
            raise ValueError(f"this model has no aspect {aspect_ratio}; it draws {describe_sizes(config)}")
        return best
    if height is None and width is None:
        return config.schedule()
    if height is None or width is None:
        raise ValueError(f"give both height and width, got height={height} and width={width}")
    matching = [schedule for schedule in schedules if schedule.image_size == (height, width)]
    if not matching:
        raise ValueError(f"this model has no size {width}x{height} (width x height); it draws {describe_sizes(config)}")
    return min(matching, key=lambda schedule: abs(math.log(height / width) - math.log(schedule.template)))


def nearest_schedule(config: VargptConfig, height: int, width: int) -> ScaleSchedule:
    """The schedule at the model's own budget whose aspect is nearest to a picture's."""
    own = [schedule for schedule in available_schedules(config) if schedule.num_scales == config.num_scales]
    return min(own, key=lambda schedule: abs(math.log(height / width) - math.log(schedule.template)))


def describe_sizes(config: VargptConfig) -> str:
    """The sizes that the model draws, as width x height with the aspect of each."""
    names: dict[str, str] = {}
    for schedule in available_schedules(config):
        height, width = schedule.image_size
        names.setdefault(f"{width}x{height}", aspect_name(schedule))
    return ", ".join(f"{size} ({aspect})" for size, aspect in names.items())


def aspect_name(schedule: ScaleSchedule) -> str:
    """The template's aspect as width:height in small whole numbers (4:3)."""
    ratio = 1 / schedule.template
    candidates = [(w, h) for h in range(1, 8) for w in range(1, 8)]
    w, h = min(candidates, key=lambda pair: (round(abs(math.log(pair[0] / pair[1] / ratio)), 2), sum(pair)))
    return f"{w}:{h}"
