"""The journal of a stage: one JSON line per logged step, and its curves as a PNG.

Invariant: it holds only numbers that follow from the recipe and the data, and after a resume at step s no entry beyond
s, so it equals that of an unbroken run.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vargpt.training.loop.progress import split_scale


class Journal:
    """Appends metrics to `directory/journal.jsonl`, after it dropped what lies beyond the resumed step."""

    def __init__(self, directory: Path, resumed_step: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "journal.jsonl"
        entries = [entry for entry in read_journal(self._path) if entry["step"] <= resumed_step]
        partial = self._path.with_suffix(".partial")
        with open(partial, "w") as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in entries))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._path)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one entry; step counts finished optimiser steps."""
        with open(self._path, "a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def flush(self) -> None:
        """Have every entry on the disk: before the checkpoint that stands beyond it."""
        with open(self._path, "a") as file:
            os.fsync(file.fileno())


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


def group_curves(names: Sequence[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return plots in order: a title, and (label, metric) of each line; metrics of all scales share a plot."""
    plots: dict[str, list[tuple[int, str]]] = {}
    for name in sorted(names):
        split = split_scale(name)
        title, scale = split if split is not None else (name, -1)
        plots.setdefault(title if split is None else f"{title} by scale", []).append((scale, name))
    return [
        (title, [("" if scale < 0 else str(scale), name) for scale, name in sorted(lines)])
        for title, lines in plots.items()
    ]


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

    plots = group_curves([name for name in {key for entry in entries for key in entry} if name != "step"])
    columns = min(4, len(plots))
    rows = math.ceil(len(plots) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False)
    for axis, (title, lines) in zip(axes.flat, plots, strict=False):
        for index, (label, name) in enumerate(lines):
            points = [(entry["step"], entry[name]) for entry in entries if name in entry]
            colour = plt.get_cmap("viridis")(0.9 * index / (len(lines) - 1)) if len(lines) > 1 else None
            axis.plot(
                [step for step, _ in points], [value for _, value in points],
                linewidth=1, marker="." if len(points) < 3 else None, color=colour, label=label,
            )  # fmt: skip
        if len(lines) > 1:
            axis.legend(fontsize=6, ncols=2, handlelength=1, columnspacing=0.8)
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(plots) :]:
        axis.set_visible(False)
    figure.tight_layout()
    path = directory / "curves.png"
    partial = directory / "curves.partial.png"
    figure.savefig(partial, dpi=90)
    plt.close(figure)
    os.replace(partial, path)
    return path
