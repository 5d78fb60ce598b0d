"""The page of a suite's results: headline numbers, a table with intervals for each task, examples, conditions.

Invariant: every number on it is in `results.json` or in `examples.jsonl`; whatever a model says is escaped; the file
opens offline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vargpt.evaluation.harness import SuiteResult
from vargpt.evaluation.report.examples import Group, groups, picture_source, score
from vargpt.evaluation.report.plots import histogram, interval_bar
from vargpt.evaluation.report.style import conditions_list, document, facts
from vargpt.evaluation.tables import number
from vargpt.evaluation.task import Judged, Measure, Task
from vargpt.inference.pictures import write_atomically

PAGE = "index.html"


def write_page(result: SuiteResult, directory: Path) -> Path:
    """Write `index.html` into a folder; return it."""
    path = directory / PAGE
    write_atomically(path, page(result).encode("utf-8", "xmlcharrefreplace"))
    return path


def page(result: SuiteResult) -> str:
    """The whole page as HTML text."""
    found, conditions = result.document, result.document["conditions"]
    tasks = list(result.suite.tasks)
    links = "".join(f'<a href="#task-{index}">{escape(task.title)}</a>' for index, task in enumerate(tasks))
    body = [
        f"<header><h1>{escape(found['title'])}</h1>",
        f'<p class="lead">{escape(str(conditions.get("model", "A model")))}, measured on '
        f"{sum(entry['examples'] for entry in found['tasks'].values()):,} examples. "
        "Every number comes with its 95% interval.</p>",
        facts(header_facts(conditions)),
        f'<nav>{links}<a href="#conditions">Conditions</a></nav></header>',
        tiles(result),
        *(_task(task, index, result) for index, task in enumerate(tasks)),
        '<section id="conditions"><h2>Conditions</h2><p>What the numbers depend on.</p>',
        conditions_list(conditions),
        "</section>",
        "<footer>"
        + "".join(f"<p>{escape(note)}</p>" for note in result.suite.footnotes)
        + "<p>Lines in bars are 95% intervals by bootstrap over the examples. The numbers are in results.json, every "
        "example is in examples.jsonl beside this page.</p></footer>",
    ]
    return document(f"{found['title']}: {conditions.get('model', 'evaluation')}", "".join(body))


def header_facts(conditions: Mapping[str, Any]) -> list[str]:
    """The conditions that a reader wants first."""
    found = []
    if isinstance(conditions.get("parameters"), int):
        found.append(f"{conditions['parameters'] / 1e6:.1f}M parameters")
    if isinstance(conditions.get("image_size"), (list, tuple)):
        height, width = conditions["image_size"]
        found.append(f"{width}×{height} pixels")
    if "scales" in conditions:
        found.append(f"{conditions['scales']} scales")
    found += [str(conditions[name]) for name in ("dtype", "device") if name in conditions]
    if "seconds" in conditions:
        found.append(f"measured in {conditions['seconds']:.0f} s")
    return found


def tiles(result: SuiteResult) -> str:
    """The suite's headline measures, large."""
    measures = result.document["measures"]
    shown = [measures[name] for name in result.suite.headline if name in measures]
    cells = []
    for entry in shown:
        unit = entry["unit"]
        share = unit == "percent"
        bar = interval_bar(entry["mean"], entry["low"], entry["high"], 1.0) if share else '<svg class="bar"></svg>'
        cells.append(
            f'<div class="tile"><span class="of">{escape(entry["title"])}</span><b>{number(entry["mean"], unit)}</b>'
            f"<span><i>{interval_text(entry)}</i><i>n = {entry['n']}</i></span>{bar}</div>"
        )
    return f'<div class="tiles">{"".join(cells)}</div>' if cells else ""


def interval_text(entry: Mapping[str, Any]) -> str:
    """`91.2 to 95.1%`."""
    low, high = (number(entry[end], entry["unit"]) for end in ("low", "high"))
    unit = high.lstrip("-0123456789.")
    return f"{low.removesuffix(unit)} to {high}"


def _task(task: Task, index: int, result: SuiteResult) -> str:
    entries = {
        m.name: result.document["measures"][m.name] for m in task.measures if m.name in result.document["measures"]
    }
    judged = result.judged.get(task.name, [])
    about = result.document["tasks"].get(task.name, {})
    count = f" <small>{about['examples']:,} examples, {about['seconds']:.0f} s</small>" if about else ""
    return (
        f'<section id="task-{index}"><h2>{escape(task.title)}{count}</h2>{measure_table(entries, task.title)}'
        f"{_histograms(task, judged)}"
        + "".join(_group(group, task.measures) for group in groups(judged, task.measures))
        + "</section>"
    )


def measure_table(entries: Mapping[str, Mapping[str, Any]], task_title: str) -> str:
    """A row for each measure, with a bar for shares and for numbers that come in a row of three or more."""
    if not entries:
        return ""
    tops = bar_tops(entries)
    rows = []
    for name, entry in entries.items():
        bar = interval_bar(entry["mean"], entry["low"], entry["high"], tops[name]) if name in tops else ""
        rows.append(
            f"<tr><td>{escape(short_title(entry['title'], task_title))}</td>"
            f'<td class="v">{number(entry["mean"], entry["unit"])}</td><td class="i">{interval_text(entry)}</td>'
            f'<td class="n">{entry["n"]}</td><td class="plot">{bar}</td></tr>'
        )
    head = '<th>Measure</th><th class="v">Mean</th><th>95% interval</th><th class="n">n</th><th></th>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def bar_tops(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Where each measure's bar ends, by name: shares at 1, numbers of one family (`tokens/...`) at their greatest."""
    tops = {name: 1.0 for name, entry in entries.items() if entry["unit"] == "percent"}
    families: dict[str, list[str]] = {}
    for name, entry in entries.items():
        if entry["unit"] != "percent" and "/" in name:
            families.setdefault(name.rpartition("/")[0], []).append(name)
    for names in families.values():
        least, greatest = min(entries[name]["low"] for name in names), max(entries[name]["high"] for name in names)
        alike = {entries[name]["title"].rpartition(": ")[2].partition(",")[0] for name in names}
        if len(names) >= 3 and least >= 0 and greatest > 0 and len(alike) == 1:
            tops |= dict.fromkeys(names, float(greatest))
    return tops


def short_title(title: str, task_title: str) -> str:
    """A measure's title without the task's: `Understanding: colour` is `Colour` below Understanding."""
    for joint in (": ", ", "):
        rest = title.removeprefix(task_title + joint)
        if rest != title:
            return rest[:1].upper() + rest[1:]
    return title


def _histograms(task: Task, judged: Sequence[Judged]) -> str:
    found = []
    for measure in task.measures:
        values = [example.values[measure.name] for example in judged if measure.name in example.values]
        if measure.unit == "dB" and len(values) >= 10:
            plot = histogram(values, "dB")
            if plot:
                title = escape(short_title(measure.title, task.title))
                found.append(f"<h3>{title} <small>of {len(values)} examples, in dB</small></h3>{plot}")
    return "".join(found)


def _group(group: Group, measures: Sequence[Measure]) -> str:
    shown = len(group.examples)
    if group.title in ("Right", "Wrong"):
        mark = '<span class="ok">✓</span>' if group.title == "Right" else '<span class="no">✗</span>'
        note = f"all {shown}" if shown == group.total else f"{shown} of {group.total}, evenly spread"
    else:
        mark, note = "", f"{shown} of {group.total}"
    cards = "".join(card(example, measures) for example in group.examples)
    wide = max(len(example.pictures) for example in group.examples) > 2
    return (
        f"<h3>{mark} {escape(group.title)} <small>{note}</small></h3>"
        f'<div class="cards{" wide" if wide else ""}">{cards}</div>'
    )


def card(example: Judged, measures: Sequence[Measure]) -> str:
    """One example: its pictures, what was asked, expected and said, and its values."""
    figures = "".join(
        f'<figure><img alt="{escape(f"{role}: {example.prompt}", quote=True)}" src="{picture_source(pixels)}">'
        + (f"<figcaption>{escape(role)}</figcaption>" if len(example.pictures) > 1 else "")
        + "</figure>"
        for role, pixels in example.pictures.items()
    )
    said = "".join(
        f'<dt>{label}</dt><dd title="{escape(text, quote=True)}">{escape(text)}</dd>' for label, text in _said(example)
    )
    kind = "card one" if len(example.pictures) == 1 else "card"
    return (
        f'<div class="{kind}">'
        + (f'<div class="strip">{figures}</div>' if figures else "")
        + (f'<div class="prompt">{escape(example.prompt)}</div>' if example.prompt else "")
        + (f'<dl class="said">{said}</dl>' if said else "")
        + f"{_marks(example, measures)}</div>"
    )


def _said(example: Judged) -> list[tuple[str, str]]:
    """What was expected, unless a picture shows it, and what was said, or read from the picture that was made."""
    expected = "" if "target" in example.pictures else example.expected
    label = "answer" if set(example.pictures) <= {"source"} else "read as"
    answer = example.answer or ("(nothing)" if expected else "")
    return [(name, text) for name, text in (("expected", expected), (label, answer)) if text]


def _marks(example: Judged, measures: Sequence[Measure]) -> str:
    """An example's values: its score, and further ones that say something else."""
    first = score(example, measures)
    if first is None:
        return ""
    told = [first[1]] if first[0].unit == "percent" and first[1] in (0.0, 1.0) else []  # the heading says that one
    marks = []
    for measure in measures:
        value = example.values.get(measure.name)
        if value is None or value in told or measure.higher_is_better is None:
            continue
        told.append(value)
        word = escape(measure.title.rpartition(": ")[2])
        if measure.unit == "percent" and value in (0.0, 1.0):
            marks.append(f'<span><span class="{"ok" if value else "no"}">{"✓" if value else "✗"}</span> {word}</span>')
        else:
            marks.append(f"<span>{word} {number(value, measure.unit)}</span>")
    return f'<div class="marks">{"".join(marks)}</div>' if marks else ""
