"""The tables of docs/ablations.md from results: means with intervals, and differences from the first row of a table.

Invariant: everything is computed from docs/ablations.json, which holds one number per example, row and seed; intervals
are 95% percentile bootstraps over seeds and, within them, over examples, with a fixed seed. Rows of a table answered
the same examples, so differences are paired by seed and example.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from ablation_rows import ABLATIONS, ASK, DRAW, EDIT, PLAIN, Ablation
from numpy.typing import NDArray

DOCUMENT, NUMBERS = Path("docs/ablations.md"), Path("docs/ablations.json")
COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    DRAW: (("facts", "facts drawn"), ("right", "all right")),
    PLAIN: (("facts", "facts drawn without guidance"),),
    ASK: (("understanding", "understanding"),),
    EDIT: (("done", "edits done"), ("kept", "rest kept")),
}
"""Part -> its measures with their titles."""
_RESAMPLES = 4000
Values = NDArray[np.float64]


def write(
    results: list[dict[str, Any]],
    limits: dict[str, dict[str, list[float]]],
    conditions: dict[str, Any],
    seeds: int,
) -> None:
    """Write the numbers and put the tables into the document, between `<!-- table N -->` and `<!-- end -->`.

    Args:
        limits: what the image tokenizer leaves of real pictures, by their side; table 0.
        conditions: what all of it was made with (`Bench.conditions`); table 10.
    """
    rows: dict[str, dict[str, dict[str, list[list[float]]]]] = {}
    for ablation in ABLATIONS:
        for row in ablation.rows:
            found = _values(row.recipe, results, seeds)
            if found:
                rows[row.recipe] = found
    numbers = {"seeds": seeds, "conditions": conditions, "rows": rows, "limits": limits}
    _replace(NUMBERS, json.dumps(numbers, separators=(",", ":")) + "\n")
    text = DOCUMENT.read_text()
    tables = {0: limit_table(limits), 10: condition_table(conditions, seeds)}
    tables |= {ablation.number: table(ablation, rows) for ablation in ABLATIONS}
    for number, made in tables.items():
        pattern = rf"(<!-- table {number} -->\n).*?(<!-- end -->)"
        if not re.search(pattern, text, re.S):
            raise ValueError(f"{DOCUMENT} has no place for table {number}: <!-- table N --> to <!-- end -->")
        text = re.sub(pattern, lambda match, made=made: match[1] + made + match[2], text, flags=re.S)
    _replace(DOCUMENT, text)


def _values(recipe: str, results: list[dict[str, Any]], seeds: int) -> dict[str, dict[str, list[list[float]]]]:
    """Part -> measure -> numbers per seed and example; a part only where every seed has it."""
    mine = sorted((entry for entry in results if recipe in entry["rows"]), key=lambda entry: entry["seed"])
    found: dict[str, dict[str, list[list[float]]]] = {}
    for part in COLUMNS:
        judged = [entry["judge"][part] for entry in mine if part in entry["judge"]]
        if judged and len(judged) == seeds:
            found[part] = {measure: [one[measure] for one in judged] for measure in judged[0]}
    return found


def table(ablation: Ablation, rows: dict[str, dict[str, dict[str, list[list[float]]]]]) -> str:
    """A table in Markdown: per measure the mean with its interval, and from the second row on the difference."""
    columns = [(part, *column) for part in ablation.parts for column in COLUMNS[part]]
    lines = [
        "| row | recipe | " + " | ".join(title for _, _, title in columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    first = rows.get(ablation.rows[0].recipe, {})
    for row in ablation.rows:
        cells = []
        for part, measure, _ in columns:
            own, base = (found.get(part, {}).get(measure) for found in (rows.get(row.recipe, {}), first))
            cells.append(_cell(own, None if row == ablation.rows[0] else base))
        lines.append(f"| {row.label} | `{row.recipe}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def limit_table(limits: dict[str, dict[str, list[float]]]) -> str:
    """What the checker sees in real pictures after the image tokenizer."""
    lines = ["| real pictures, encoded and decoded | facts drawn | all right |", "|---|---|---|"]
    for side, measures in limits.items():
        cells = [_cell([measures[name]], None) for name in ("facts", "right")]
        lines.append(f"| {side} px | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def condition_table(conditions: dict[str, Any], seeds: int) -> str:
    """Machine, precision, seeds, examples and seconds."""
    examples = conditions["examples"]
    lines = {
        "machine": f"{', '.join(conditions['device'])}; {', '.join(conditions['threads'])} thread(s) per process",
        "precision": "float32 weights; training under bfloat16 autocast, measuring on a CPU without, on a GPU with it",
        "seeds": f"{seeds} (0 to {seeds - 1}): weights, data and bit errors; the examples are the same for all",
        "examples per row and seed": f"{examples[DRAW]} prompts, {examples[ASK]} questions, {examples[EDIT]} edits",
        "versions": f"torch {', '.join(conditions['torch'])}, transformers {', '.join(conditions['transformers'])}, "
        f"Python {', '.join(conditions['python'])}",
        "commits": ", ".join(sorted({f"`{commit[:7]}`" for commit in conditions["commit"]})),
        "median seconds of a stage": ", ".join(f"{stage} {value}" for stage, value in conditions["seconds"].items()),
    }
    return "| what | value |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in lines.items())


def _cell(own: list[list[float]] | None, base: list[list[float]] | None) -> str:
    if own is None:
        return "not run yet"
    values = np.asarray(own)
    mean, low, high = (100 * number for number in interval(values))
    text = f"{mean:.1f} [{low:.1f}, {high:.1f}]"
    if base is None:
        return text
    mean, low, high = (100 * number for number in interval(values - np.asarray(base)))
    marks = "**" if low > 0 or high < 0 else ""
    return f"{text}<br>{marks}{mean:+.1f} [{low:+.1f}, {high:+.1f}]{marks}"


def interval(values: Values) -> tuple[float, float, float]:
    """Mean of [seeds, examples] with its 95% interval over both."""
    generator = np.random.default_rng(0)
    seeds, count = values.shape
    means = np.empty(_RESAMPLES)
    for index in range(_RESAMPLES):
        drawn = values[generator.integers(0, seeds, seeds)]
        picked = generator.integers(0, count, (seeds, count))
        means[index] = np.take_along_axis(drawn, picked, 1).mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    os.replace(partial, path)
