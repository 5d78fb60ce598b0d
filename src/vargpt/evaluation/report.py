"""The report of an evaluation: `results.json`, a Markdown table, and one self-contained page with pictures.

Invariant: the page loads nothing from elsewhere, and every number on it is in the JSON with its conditions.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor

from vargpt.evaluation.folder import Outcome, Sample
from vargpt.sampling import Sampling

_SHOWN = 12
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } td, th { padding: .3em .9em; border-bottom: 1px solid #ddd; text-align: left; }
.row { display: flex; flex-wrap: wrap; gap: 14px; } .card { width: 156px; font-size: 12px; }
.card img { width: 72px; height: 72px; border: 1px solid #eee; border-radius: 6px; }
.wrong { color: #b3402f; } .right { color: #1f8a4c; } p.note { color: #666; }
"""
_TITLES = {
    "reconstruction": "Reconstruction (PSNR, dB)",
    "naming": "Naming (exact match)",
    "drawing": "Drawing (nearest picture is the one named)",
    "editing": "Editing (nearer to the target than to the source)",
}


def conditions(model_name: str, data: str, sampling: Sampling, dtype: str, seconds: float) -> dict[str, Any]:
    """What the numbers depend on."""
    settings = {k: v for k, v in asdict(sampling).items() if k in ("guidance_scale", "temperature", "top_p")}
    return {
        "model": model_name, "data": data, "sampling": settings, "seeds": "place of the example in its list",
        "dtype": dtype, "threads": torch.get_num_threads(), "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__, "transformers": transformers.__version__, "seconds": round(seconds, 1),
    }  # fmt: skip


def results(outcomes: list[Outcome], settings: dict[str, Any]) -> dict[str, Any]:
    """The JSON document."""
    measures: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        measures.setdefault(outcome.name, {})[outcome.part] = outcome.estimate.as_dict()
    return {"measures": measures, "conditions": settings}


def markdown_table(document: dict[str, Any]) -> str:
    """The table of a card or README, with 95% intervals."""
    lines = ["| measure | training names | validation names |", "| --- | --- | --- |"]
    for name, parts in document["measures"].items():
        cells = [_cell(name, parts.get(part)) for part in ("train", "validation")]
        lines.append(f"| {_TITLES[name]} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def write_report(outcomes: list[Outcome], settings: dict[str, Any], directory: Path) -> Path:
    """Write `results.json` and `index.html` atomically; return the page."""
    directory.mkdir(parents=True, exist_ok=True)
    document = results(outcomes, settings)
    _write(directory / "results.json", json.dumps(document, indent=1) + "\n")
    sections = "\n".join(_section(outcome) for outcome in outcomes)
    facts = html.escape(json.dumps(settings))
    table = _html_table(document)
    page = directory / "index.html"
    _write(
        page,
        f"<!doctype html><meta charset=utf-8><title>Evaluation</title><style>{_STYLE}</style>"
        f"<h1>Evaluation</h1>{table}<p class=note>{facts}</p>{sections}\n",
    )
    return page


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _cell(name: str, estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    if name == "reconstruction":
        return f"{estimate['mean']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}], n = {estimate['n']}"
    low, mean, high = (100 * estimate[key] for key in ("low", "mean", "high"))
    return f"{mean:.1f}% [{low:.1f}, {high:.1f}], n = {estimate['n']}"


def _html_table(document: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{_TITLES[name]}</td>"
        + "".join(f"<td>{_cell(name, parts.get(part))}</td>" for part in ("train", "validation"))
        + "</tr>"
        for name, parts in document["measures"].items()
    )
    return f"<table><tr><th>measure</th><th>training names</th><th>validation names</th></tr>{rows}</table>"


def _section(outcome: Outcome) -> str:
    """Best, median and worst examples; for right-or-wrong measures an even spread."""
    ranked = sorted(outcome.samples, key=lambda sample: -sample.value)
    if outcome.name == "reconstruction":
        middle = len(ranked) // 2
        third = _SHOWN // 3
        groups = {"best": ranked[:third], "median": ranked[middle : middle + third], "worst": ranked[-third:]}
    else:
        right = [sample for sample in outcome.samples if sample.value]
        wrong = [sample for sample in outcome.samples if not sample.value]
        groups = {"right": _spread(right), "wrong": _spread(wrong)}
    body = "".join(
        f"<h3>{title}</h3><div class=row>{''.join(_card(sample) for sample in samples)}</div>"
        for title, samples in groups.items()
        if samples
    )
    return f"<h2>{_TITLES[outcome.name]}, {outcome.part}</h2>{body}"


def _spread(samples: list[Sample]) -> list[Sample]:
    count = min(_SHOWN, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


def _card(sample: Sample) -> str:
    images = "".join(_image(image) for image in (sample.source, sample.target, sample.result) if image is not None)
    said = f"<br><i>{html.escape(sample.answer)}</i>" if sample.answer else ""
    value = f"<br>{sample.value:.1f} dB" if sample.value > 1 else ""
    return f"<div class=card>{images}<br>{html.escape(sample.label)}{said}{value}</div>"


def _image(pixels_HW3: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3.numpy()).save(buffer, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
