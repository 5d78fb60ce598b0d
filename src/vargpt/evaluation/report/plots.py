"""Plots as SVG text: a bar with its interval, a difference with its interval, a histogram.

Invariant: a plot is drawn from the numbers of the results alone and scales with the page; its colours are the page's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_LINE = 'vector-effect="non-scaling-stroke"'


def interval_bar(mean: float, low: float, high: float, top: float) -> str:
    """A bar from 0 to the mean on a track that ends at `top`, with a line from low to high."""
    m, a, b = (100 * min(max(value / top, 0.0), 1.0) if top > 0 else 0.0 for value in (mean, low, high))
    return (
        '<svg class="bar" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        '<rect width="100" height="12" fill="var(--track)"/>'
        f'<rect width="{m:.2f}" height="12" fill="var(--fill)"/>{_whisker(a, b, 6)}</svg>'
    )


def forest_row(difference: float, low: float, high: float, reach: float, colour: str) -> str:
    """A difference as a dot on a line from low to high, around a middle of 0; the ends are -reach and reach."""
    d, a, b = (50 + 50 * min(max(value / reach, -1.0), 1.0) if reach > 0 else 50.0 for value in (difference, low, high))
    return (
        '<svg class="forest" viewBox="0 0 100 18" preserveAspectRatio="none" aria-hidden="true">'
        f'<line x1="50" x2="50" y1="-8" y2="26" stroke="var(--soft)" stroke-dasharray="2 3" {_LINE}/>'
        f'<line x1="{a:.2f}" x2="{b:.2f}" y1="9" y2="9" stroke="{colour}" stroke-width="2" {_LINE}/>'
        f'<line x1="{d:.2f}" x2="{d:.2f}" y1="9" y2="9" stroke="{colour}" stroke-width="9" stroke-linecap="round" '
        f"{_LINE}/></svg>"
    )


def _whisker(a: float, b: float, middle: float) -> str:
    ends = "".join(
        f'<line x1="{x:.2f}" x2="{x:.2f}" y1="{middle - 3}" y2="{middle + 3}" stroke="var(--ink)" {_LINE}/>'
        for x in (a, b)
    )
    return f'<line x1="{a:.2f}" x2="{b:.2f}" y1="{middle}" y2="{middle}" stroke="var(--ink)" {_LINE}/>{ends}'


def histogram(values: Sequence[float], unit: str, bins: int = 24) -> str:
    """How often values occur, with a line at their mean; '' where all are alike."""
    low, high = min(values), max(values)
    if high <= low:
        return ""
    counts = histogram_counts(values, bins)
    width, height, floor = 360.0, 118.0, 96.0
    step, tallest = width / bins, max(counts)
    bars = "".join(
        f'<rect x="{index * step + 0.5:.1f}" y="{floor - 78 * count / tallest:.1f}" width="{step - 1:.1f}" '
        f'height="{78 * count / tallest:.1f}" fill="var(--fill)"/>'
        for index, count in enumerate(counts)
        if count
    )
    ticks = ""
    for tick in nice_ticks(low, high):
        x = width * (tick - low) / (high - low)
        anchor = "start" if x < 12 else "end" if x > width - 12 else "middle"
        ticks += f'<text x="{x:.1f}" y="{floor + 16:.0f}" text-anchor="{anchor}">{tick:g}</text>'
    mean = sum(values) / len(values)
    x = width * (mean - low) / (high - low)
    anchor, shift = ("end", -4) if x > width / 2 else ("start", 4)
    label = f'<text x="{x + shift:.1f}" y="11" text-anchor="{anchor}">mean {mean:.2f} {unit}</text>'
    return (
        f'<svg class="histogram" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="Histogram">{bars}'
        f'<line x1="0" x2="{width:.0f}" y1="{floor}" y2="{floor}" stroke="var(--line)"/>'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{floor}" stroke="var(--accent)" stroke-width="1.5"/>'
        f"{label}{ticks}</svg>"
    )


def histogram_counts(values: Sequence[float], bins: int) -> list[int]:
    """How many values lie in each of `bins` equal parts from the least to the greatest."""
    low, high = min(values), max(values)
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / (high - low) * bins), bins - 1)] += 1
    return counts


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) between two values, at most `most` of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    while (high - low) / step > most - 1:
        step *= 2.5 if round(step / 10 ** math.floor(math.log10(step) + 1e-9)) == 2 else 2
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]
