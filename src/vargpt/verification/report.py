"""Run every recorded scenario and report: a table of tensors, then one line of JSON.

Invariant: a recorded scenario is either compared or reported as failed, also when the code under test stops with an
error; none is skipped in silence, and one that fails does not hide the others.

    vargpt verify DIR
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table

from vargpt.model import VargptForConditionalGeneration
from vargpt.verification.compare import Report, Row
from vargpt.verification.generation import verify_generation
from vargpt.verification.goldens import Goldens
from vargpt.verification.image_tokenizer import verify_image_tokenizer
from vargpt.verification.preference import verify_preference
from vargpt.verification.sampler import verify_sampler
from vargpt.verification.settings import verify_settings
from vargpt.verification.training import verify_training
from vargpt.verification.understanding import verify_understanding

_COMPANIONS = frozenset({"dpo_reference_override"})
"""Files that belong to another scenario."""

_INPUT = re.compile(
    r"((single|batch)\.)?(images?(_[ab])?_u8|input_image_u8|input_ids|attention_mask|pixel_values(_b)?|image_grid_thw)"
    r"|forced_tokens|(bits|vocab)\.logits|(flip\.)?mask_\d+|flip\.strength|scale\d+\.bits"
)
"""Recorded tensors that are fed to the code."""

Progress = Callable[[str], None]


def verify(directory: str | Path, progress: Progress | None = None) -> list[Row]:
    """Compare every recorded tensor of a goldens folder with what the public code computes.

    Args:
        progress: called with the name of each scenario before it runs.

    Returns:
        One row per tensor.

    Raises:
        ValueError: if the folder is no goldens folder, or its weights do not fit its sizes.
    """
    goldens = Goldens(Path(directory))
    report = verify_settings(goldens)
    rows = report.rows
    model = goldens.load()
    scenarios = [name for name in goldens.names() if name not in _COMPANIONS]
    if not scenarios:
        raise ValueError(f"{directory} holds no recorded scenario: expected files such as train.safetensors")
    for scenario in scenarios:
        if progress is not None:
            progress(scenario)
        try:
            rows = [*rows, *_run(goldens, model, scenario).rows]
        except (ValueError, RuntimeError, KeyError, IndexError, AssertionError) as error:
            stopped = Report(scenario)
            stopped.failed("(stopped)", " ".join(f"{type(error).__name__}: {error}".split())[:200])
            rows = [*rows, *stopped.rows]
    return rows


def not_compared(directory: str | Path, rows: list[Row]) -> list[str]:
    """Recorded tensors that are neither inputs nor compared, e.g. of a kind that this version does not know."""
    goldens, names = Goldens(Path(directory)), []
    for scenario in goldens.names():
        known = {row.tensor for row in rows if row.scenario == scenario}
        if scenario not in _COMPANIONS:
            names += [
                f"{scenario}/{name}"
                for name in goldens.tensors(scenario)
                if not any(shown == name or shown.startswith((f"{name} (", f"{name}[")) for shown in known)
                and _INPUT.fullmatch(name) is None
            ]
    return names


def _run(goldens: Goldens, model: VargptForConditionalGeneration, scenario: str) -> Report:
    if scenario.startswith("tokenizer"):
        return verify_image_tokenizer(goldens, model.image_tokenizer, scenario)
    if scenario.startswith("sampler"):
        return verify_sampler(goldens, scenario)
    if scenario.startswith("understand"):
        return verify_understanding(goldens, model, scenario)
    if scenario.startswith("train"):
        return verify_training(goldens, model, scenario)
    if scenario.startswith("gen"):
        return verify_generation(goldens, model, scenario)
    if scenario.startswith("dpo"):
        return verify_preference(goldens, model, scenario)
    report = Report(scenario)
    report.failed("(all)", "unknown scenario: expected tokenizer, sampler, understand, train*, gen* or dpo")
    return report


def print_table(rows: list[Row], console: Console) -> None:
    """One line per tensor."""
    table = Table("scenario", "tensor", "max abs", "max rel", "tolerance", "pass", "note", box=None, pad_edge=False)
    for row in rows:
        style = None if row.passed else "bold red"
        verdict = "yes" if row.passed else "NO"
        numbers = (f"{row.absolute:.1e}", f"{row.relative:.1e}", f"{row.tolerance:.1e}")
        table.add_row(row.scenario, row.tensor, *numbers, verdict, row.note, style=style)
    console.print(table)


def run(directory: str | Path) -> int:
    """Print the table and a last line of JSON; return 0 if all tensors agree, else 1."""
    console = Console() if Console().is_terminal else Console(width=150)
    started = time.perf_counter()
    rows = verify(directory, lambda scenario: Console(stderr=True).print(f"verifying {scenario}", style="dim"))
    print_table(fold_norms(rows), console)
    failed = [row for row in rows if not row.passed]
    scenarios = list(dict.fromkeys(row.scenario for row in rows))
    shares = [row.absolute / row.tolerance for row in rows if 0 < row.tolerance < 1]  # bytes have a whole step
    summary = {
        "goldens": str(directory),
        "passed": not failed,
        "tensors": len(rows),
        "num_failed": len(failed),
        "failed": [name for scenario in scenarios for name in _names(failed, scenario)[:5]],
        "worst_share_of_tolerance": min(max(shares, default=0.0), 1e9),
        "not_compared": not_compared(directory, rows),
        "scenarios": {name: sum(row.scenario == name for row in rows) for name in scenarios},
        "seconds": round(time.perf_counter() - started, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(json.dumps(summary))
    return 1 if failed else 0


def _names(rows: list[Row], scenario: str) -> list[str]:
    return [f"{row.scenario}/{row.tensor}" for row in rows if row.scenario == scenario]


def fold_norms(rows: list[Row]) -> list[Row]:
    """Show the gradient norms that agree as one line per scenario, the worst of them."""
    folded: list[Row] = []
    for scenario in dict.fromkeys(row.scenario for row in rows):
        mine = [row for row in rows if row.scenario == scenario]
        norms = [row for row in mine if row.passed and row.tensor.startswith("grad_norm.")]
        folded += [row for row in mine if row not in norms]
        if norms:
            worst = max(norms, key=lambda row: row.absolute / row.tolerance if row.tolerance else 0.0)
            folded.append(replace(worst, note=f"worst of {len(norms)} gradient norms"))
    return folded
