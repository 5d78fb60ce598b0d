"""The journal of a stage: one JSON line per logged step, a progress line with ETA, and curves as a PNG.

Invariant: after a resume at step s the journal holds no entry beyond s, so it equals that of an unbroken run.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path


def format_duration(seconds: float) -> str:
    """Format a duration as h:mm:ss."""
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


class Journal:
    """Appends metrics to `directory/journal.jsonl` and reports progress on standard error."""

    def __init__(self, directory: Path, stage: str, total_steps: int, resumed_step: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "journal.jsonl"
        self._stage = stage
        self._total = total_steps
        self._start_step = resumed_step
        self._start_time = time.monotonic()
        self._keep_until(resumed_step)

    def _keep_until(self, step: int) -> None:
        entries = [entry for entry in read_journal(self._path) if entry["step"] <= step]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        os.replace(partial, self._path)

    def record(self, step: int, metrics: dict[str, float], samples_per_step: int) -> None:
        """Append one entry (step counts finished optimiser steps) and print progress."""
        with open(self._path, "a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        elapsed = time.monotonic() - self._start_time
        rate = (step - self._start_step) / elapsed if elapsed > 0 else 0.0
        eta = format_duration((self._total - step) / rate) if rate > 0 else "?"
        shown = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(
            f"{self._stage} {step}/{self._total} ({100 * step / self._total:.0f}%) {shown} "
            f"| {rate * samples_per_step:.1f} samples/s, ETA {eta}",
            file=sys.stderr,
            flush=True,
        )


def read_journal(path: Path) -> list[dict[str, float]]:
    """Read the entries of a journal; a last line cut short by a kill is dropped."""
    if not path.exists():
        return []
    entries = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise RuntimeError(f"{path}, line {number}: not JSON ({error}); repair or delete that line") from error
    return entries


def plot_curves(directory: Path) -> Path | None:
    """Draw every metric of the journal over steps into `directory/curves.png`; None without matplotlib or entries."""
    entries = read_journal(directory / "journal.jsonl")
    if not entries:
        return None
    try:
        import matplotlib
    except ImportError:
        print("curves.png is not drawn: pip install 'vargpt[train]' brings matplotlib", file=sys.stderr)
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted({name for entry in entries for name in entry if name != "step"})
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        axis.plot([step for step, _ in points], [value for _, value in points], linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(names) :]:
        axis.set_visible(False)
    figure.tight_layout()
    path = directory / "curves.png"
    partial = directory / "curves.partial.png"
    figure.savefig(partial, dpi=90)
    plt.close(figure)
    os.replace(partial, path)
    return path
