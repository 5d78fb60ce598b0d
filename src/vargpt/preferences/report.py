"""The report of a folder of pairs: counts, yield, histograms of scores, as `report.json` and as a page.

Invariant: every number comes from the shards alone, so a resumed run ends with the report of an unbroken one.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from vargpt.data.pair_records import schedule_from_json
from vargpt.data.pairs import PairFolder, read_json, shards, write_durably, write_index
from vargpt.preferences.page import page_html

REPORT = "report.json"
PAGE = "index.html"
_BINS = 20


def finish_pairs(folder: Path) -> dict[str, Any]:
    """Declare a folder whole: write the index, `report.json` and `index.html`; return the report.

    Raises:
        ValueError: for a shard that is missing or damaged.
    """
    outcomes = [outcome for shard in shards(folder) for outcome in shard["outcomes"]]
    write_index(folder)
    report = summarise(outcomes, read_json(folder / "pairs.json")["settings"])
    write_durably(folder / REPORT, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    write_durably(folder / PAGE, page_html(PairFolder(folder), report).encode("utf-8"))
    return report


def summarise(outcomes: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """Count what came of every prompt.

    Returns:
        Counts of prompts by outcome, `yield` (pairs per prompt), pictures and image tokens drawn, and for every kind of
        score its mean, extremes and histogram.
    """
    kinds = Counter(outcome["outcome"] for outcome in outcomes)
    pictures = sum(len(outcome.get("seeds", [])) for outcome in outcomes)
    schedule = settings.get("schedule")
    tokens = None if schedule is None else pictures * schedule_from_json(schedule).num_tokens
    scores: dict[str, list[float]] = {"sampled": [], "given": [], "chosen": [], "rejected": [], "difference": []}
    for outcome in outcomes:
        if outcome.get("scores") is None:
            continue
        scores["sampled"] += outcome["scores"]
        if outcome["given_score"] is not None:
            scores["given"].append(outcome["given_score"])
        if outcome["outcome"] == "pair":
            better = outcome["given_score"] if outcome["chosen"] is None else outcome["scores"][outcome["chosen"]]
            worse = outcome["scores"][outcome["rejected"]]
            scores["chosen"].append(better)
            scores["rejected"].append(worse)
            scores["difference"].append(better - worse)
    return {
        "prompts": len(outcomes),
        "pairs": kinds["pair"],
        "ties": kinds["tie"],
        "below_margin": kinds["margin"],
        "broken": kinds["broken"],
        "yield": kinds["pair"] / max(len(outcomes), 1),
        "pictures": pictures,
        "image_tokens": tokens,
        "scores": {name: histogram(values) for name, values in scores.items() if values},
        "broken_prompts": [
            {"key": outcome["key"], "reason": outcome["reason"]}
            for outcome in outcomes
            if outcome["outcome"] == "broken"
        ],
        "settings": settings,
    }


def histogram(values: list[float]) -> dict[str, Any]:
    """Mean, extremes and counts in equal bins from the smallest value to the largest (one bin where they are equal)."""
    low, high = min(values), max(values)
    bins = _BINS if high > low else 1
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / (high - low) * bins), bins - 1) if high > low else 0] += 1
    return {"count": len(values), "mean": sum(values) / len(values), "min": low, "max": high, "histogram": counts}
