"""The page of a comparison: paired differences with their intervals, as a table and a forest plot.

Invariant: it shows what `vargpt.evaluation.compare.compare` returned and computes nothing but lengths of lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vargpt.evaluation.report.plots import forest_row
from vargpt.evaluation.report.style import document, flattened
from vargpt.evaluation.tables import number, signed
from vargpt.inference.pictures import write_atomically

_COLOURS = {"better": "var(--good)", "worse": "var(--bad)", "higher": "var(--accent)", "lower": "var(--accent)"}
_NONE = "var(--soft)"
_MARKS = {"better": "▲", "worse": "▼", "higher": "△", "lower": "▽"}


def write_comparison(comparisons: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write the page of one or several suites' comparisons; return it."""
    write_atomically(path, comparison_page(comparisons).encode("utf-8", "xmlcharrefreplace"))
    return path


def comparison_page(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The whole page as HTML text; A and B are the same two in all comparisons."""
    first = comparisons[0]
    counts: dict[str, int] = {}
    for comparison in comparisons:
        for entry in comparison["measures"].values():
            counts[entry["verdict"]] = counts.get(entry["verdict"], 0) + 1
    told = ", ".join(f"{count} {word}" for word, count in counts.items())
    body = [
        f"<header><h1>{escape(first['b'])} against {escape(first['a'])}</h1>"
        f'<p class="lead">{sum(counts.values())} measures of B minus A on the same examples: {escape(told)}.</p>'
        f'<div class="legend"><span>A: {escape(first["a"])}</span><span>B: {escape(first["b"])}</span></div></header>',
        *(_suite(comparison) for comparison in comparisons),
        "<footer><p>Only examples that both answered count, and whole pairs are drawn anew in the bootstrap, so the "
        "interval is that of the difference. A verdict stands only where the interval excludes zero; among many "
        "measures about one in twenty does so by chance.</p></footer>",
    ]
    return document(f"{first['b']} against {first['a']}", "".join(body))


def _suite(comparison: Mapping[str, Any]) -> str:
    reaches = unit_reaches(comparison["measures"].values())
    rows = "".join(_row(entry, reaches[entry["unit"]]) for entry in comparison["measures"].values())
    head = (
        '<th>Measure</th><th class="v">A</th><th class="v">B</th><th class="v">B - A</th><th>95% interval</th>'
        '<th class="n">n</th><th>B is</th><th></th>'
    )
    missing = comparison.get("not_paired") or []
    note = f"<p>Not compared in pairs: {escape(', '.join(missing))}.</p>" if missing else ""
    return (
        f"<section><h2>{escape(comparison['title'])}</h2><p>{escape(_scale_note(reaches))}</p>"
        f'<table class="compare"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}'
        f"{differing_conditions(comparison['conditions'])}</section>"
    )


def unit_reaches(entries: Any) -> dict[str, float]:
    """The greatest distance from 0 of any interval, for each unit: the ends of its plots."""
    reaches: dict[str, float] = {}
    for entry in entries:
        reach = max(abs(entry["low"]), abs(entry["high"]), 1e-9)
        reaches[entry["unit"]] = max(reaches.get(entry["unit"], 0.0), reach)
    return reaches


def _scale_note(reaches: Mapping[str, float]) -> str:
    ends = [
        f"{signed(reach, unit).replace('+', '±')}{' points' if unit == 'percent' else ''}"
        for unit, reach in reaches.items()
    ]
    return f"Dotted: no difference. The plots end at {', '.join(ends)}." if ends else ""


def _row(entry: Mapping[str, Any], reach: float) -> str:
    unit, verdict = entry["unit"], entry["verdict"]
    colour = _COLOURS.get(verdict, _NONE)
    mark = _MARKS.get(verdict, "")
    plot = forest_row(entry["difference"], entry["low"], entry["high"], reach, colour)
    return (
        f"<tr><td>{escape(entry['title'])}</td>"
        f'<td class="a">{number(entry["a"], unit)}</td><td class="b">{number(entry["b"], unit)}</td>'
        f'<td class="v">{signed(entry["difference"], unit)}</td>'
        f'<td class="i">{signed(entry["low"], unit)} to {signed(entry["high"], unit)}</td>'
        f'<td class="n">{entry["n"]}</td>'
        f'<td class="w" style="color: {colour}">{mark} {escape(verdict)}</td><td class="plot">{plot}</td></tr>'
    )


def differing_conditions(conditions: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the conditions in which the two differ, time aside."""
    a, b = (dict(flattened(dict(conditions[side]))) for side in ("a", "b"))
    names = [
        name for name in (*a, *(key for key in b if key not in a)) if name != "seconds" and a.get(name) != b.get(name)
    ]
    if not names:
        return "<p>Measured under the same conditions.</p>"
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in (name, a.get(name, "not set"), b.get(name, "not set")))
        + "</tr>"
        for name in names
    )  # fmt: skip
    return (
        '<h3>Conditions that differ</h3><table class="differ"><thead><tr><th></th><th>A</th><th>B</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
