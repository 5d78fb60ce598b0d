"""Two results of one suite, compared example by example.

Invariant: only examples that both have count (the same words under the same name: another version may ask another thing
there), so both models answered the same; the interval is that of the mean
difference (paired bootstrap), and a word is said only where it excludes zero.

    vargpt eval --compare A B        differences are B - A
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vargpt.evaluation.harness import EXAMPLES, RESULTS
from vargpt.evaluation.intervals import Estimate, bootstrap

Values = dict[tuple[str, str, str], dict[str, float]]
_MUST_AGREE = ("seed", "data", "extractor", "validation_fraction")


@dataclass(frozen=True)
class Recorded:
    """Results on disk: the document, and the values of every example by (task, key, prompt)."""

    path: Path
    document: dict[str, Any]
    values: Values

    @property
    def label(self) -> str:
        """How the page calls it: the model and the folder."""
        return f"{self.document['conditions'].get('model', '?')} ({self.path.parent})"


def read_recorded(path: Path) -> Recorded:
    """Read the results of one suite.

    Args:
        path: the folder, or its `results.json`.

    Raises:
        ValueError: for files that are missing or not ours.
    """
    file = path / RESULTS if path.is_dir() else path
    examples = file.with_name(EXAMPLES)
    for needed in (file, examples):
        if not needed.is_file():
            raise ValueError(f"{path}: no {needed.name} here; expected a folder that `vargpt eval --out` wrote")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        values: Values = {}
        for line in examples.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            values[record["task"], record["key"], record.get("prompt", "")] = record["values"]
        if not {"suite", "measures", "conditions"} <= document.keys():
            raise KeyError("suite")
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: not results of `vargpt eval`, or broken ({error!r}); measure the model anew"
        ) from error
    return Recorded(file, document, values)


def pairs_of_results(first: Path, second: Path) -> list[tuple[Recorded, Recorded]]:
    """Results to compare: the two, or all suites that two folders of several suites share.

    Raises:
        ValueError: for folders without results, or without a suite in common.
    """
    if any((path / RESULTS).is_file() or path.is_file() for path in (first, second)):
        return [(read_recorded(first), read_recorded(second))]
    suites = []
    for path in (first, second):
        found = {file.parent.name for file in path.glob(f"*/{RESULTS}")}
        if not found:
            raise ValueError(f"{path}: no {RESULTS} here; expected a folder that `vargpt eval --out` wrote")
        suites.append(found)
    shared = sorted(suites[0] & suites[1])
    if not shared:
        raise ValueError(f"no suite in common: {first} has {', '.join(sorted(suites[0]))}, {second} has "
                         f"{', '.join(sorted(suites[1]))}")  # fmt: skip
    return [(read_recorded(first / name), read_recorded(second / name)) for name in shared]


def compare(first: Recorded, second: Recorded, seed: int = 0) -> dict[str, Any]:
    """Paired differences, second minus first, of every measure that both have.

    Returns:
        {"suite", "title", "a", "b", "measures": {name: {"title", "unit", "higher_is_better", "a", "b", "difference",
        "low", "high", "n", "verdict"}}, "not_paired": [...], "conditions": {"a", "b"}}: `a` and `b` are means over the
        n shared examples; `not_paired` names measures that are no means over examples.

    Raises:
        ValueError: for different suites or examples, or none in common.
    """
    one, two = first.document, second.document
    if one["suite"] != two["suite"]:
        raise ValueError(
            f"{first.path} is of suite {one['suite']}, {second.path} of {two['suite']}: compare like with like"
        )
    for name in _MUST_AGREE:
        values = [document["conditions"].get(name) for document in (one, two)]
        if values[0] != values[1]:
            raise ValueError(f"the two were measured on different examples: {name} is {values[0]} in {first.path} and "
                             f"{values[1]} in {second.path}")  # fmt: skip
    shared = [key for key in first.values if key in second.values]
    if not shared:
        raise ValueError(f"{first.path} and {second.path} have no example in common")
    measures: dict[str, dict[str, Any]] = {}
    not_paired = []
    for name, entry in one["measures"].items():
        if name not in two["measures"]:
            continue
        keys = [key for key in shared if name in first.values[key] and name in second.values[key]]
        if not keys:
            not_paired.append(name)
            continue
        a = [first.values[key][name] for key in keys]
        b = [second.values[key][name] for key in keys]
        difference = paired_difference(a, b, seed)
        measures[name] = {
            "title": entry["title"],
            "unit": entry["unit"],
            "higher_is_better": entry["higher_is_better"],
            "a": sum(a) / len(a),
            "b": sum(b) / len(b),
            "difference": difference.mean,
            "low": difference.low,
            "high": difference.high,
            "n": difference.count,
            "verdict": verdict(difference, entry["higher_is_better"]),
        }
    return {
        "suite": one["suite"],
        "title": one.get("title", one["suite"]),
        "a": first.label,
        "b": second.label,
        "measures": measures,
        "not_paired": not_paired,
        "conditions": {"a": one["conditions"], "b": two["conditions"]},
    }


def paired_difference(a: list[float], b: list[float], seed: int = 0) -> Estimate:
    """Mean of b - a over pairs with its 95% bootstrap interval: whole pairs are drawn anew.

    Raises:
        ValueError: for lists of different lengths, or empty ones.
    """
    return bootstrap([second - first for first, second in zip(a, b, strict=True)], seed)


def verdict(difference: Estimate, higher_is_better: bool | None) -> str:
    """Say `better`, `worse` (`higher`, `lower` where neither is) or `no difference shown` of the second."""
    if difference.low <= 0.0 <= difference.high:
        return "no difference shown"
    higher = difference.mean > 0
    if higher_is_better is None:
        return "higher" if higher else "lower"
    return "better" if higher == higher_is_better else "worse"
