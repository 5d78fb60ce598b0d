"""Results as Markdown tables, for terminals and cards.

Invariant: every number has its 95% interval and its n beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def results_table(document: Mapping[str, Any]) -> str:
    """The measures of a `results.json` document."""
    lines = ["| measure | mean, 95% interval | n |", "| --- | --- | --- |"]
    for entry in document["measures"].values():
        unit = entry["unit"]
        interval = f"{number(entry['mean'], unit)} [{number(entry['low'], unit)}, {number(entry['high'], unit)}]"
        lines.append(f"| {entry['title']} | {interval} | {entry['n']} |")
    return "\n".join(lines)


def comparison_table(document: Mapping[str, Any]) -> str:
    """The paired differences of a comparison (`vargpt.evaluation.compare`)."""
    lines = ["| measure | A | B | B - A, 95% interval | n | B is |", "| --- | --- | --- | --- | --- | --- |"]
    for entry in document["measures"].values():
        unit = entry["unit"]
        change = f"{signed(entry['difference'], unit)} [{signed(entry['low'], unit)}, {signed(entry['high'], unit)}]"
        lines.append(
            f"| {entry['title']} | {number(entry['a'], unit)} | {number(entry['b'], unit)} | {change} | {entry['n']} | "
            f"{entry['verdict']} |"
        )
    return "\n".join(lines)


def number(value: float, unit: str) -> str:
    """A value with its unit: `94.2%`, `27.31 dB`, `0.123`."""
    if unit == "percent":
        return f"{100 * value:.1f}%"
    return f"{value:.2f} dB" if unit == "dB" else f"{value:.3f}"


def signed(value: float, unit: str) -> str:
    """A difference: `+1.2 points`, `-0.31 dB`."""
    if unit == "percent":
        return f"{100 * value:+.1f}"
    return f"{value:+.2f} dB" if unit == "dB" else f"{value:+.3f}"
