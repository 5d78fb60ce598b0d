"""A plan as text for a terminal of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from vargpt.training.planning.plan import Plan, StagePlan

WIDTH = 100
_MEMORY = ("weights", "gradients", "optimizer", "averages", "reference", "gathered", "activations", "cache")
_FLOPS = ("forward", "backward", "recompute", "reference", "encode", "decode", "sampling")


def render(plan: Plan) -> str:
    """Return the plan as lines of at most 100 characters: model, stages, trained parts, operations, memory."""
    devices = plan.devices
    plural = "s" if devices.count > 1 else ""
    sections = [
        f"{plan.recipe} on {devices.count} GPU{plural} of {devices.memory / 1e9:.0f} GB",
        _model(plan),
        _stages(plan),
        "Trained parameters\n" + "\n".join(_trained(stage) for stage in plan.stages),
        _operations(plan),
        _memory(plan),
        "Assumptions\n" + "\n".join(_wrapped(line, "- ") for line in plan.assumptions),
    ]
    return "\n\n".join(sections)


def _model(plan: Plan) -> str:
    rows = [[name, f"{count:,}"] for name, count in plan.parameters.items()]
    total = sum(plan.parameters.values())
    rows.append(["all", f"{total:,}"])
    if plan.published_parameters is not None:
        rows.append(["in the published layout", f"{plan.published_parameters:,}"])
    return "Model\n" + table(["part", "parameters"], rows)


def _stages(plan: Plan) -> str:
    rows = [
        [stage.name, f"{stage.height}x{stage.width}", f"{stage.steps:,}", f"{stage.batch:,}", count(stage.samples),
         count(stage.tokens), count(stage.total_flops), number(stage.gpu_hours),
         duration(stage.gpu_hours / plan.devices.count)]
        for stage in plan.stages
    ]  # fmt: skip
    rows.append(["all", "", "", "", "", "", count(sum(stage.total_flops for stage in plan.stages)),
                 number(plan.gpu_hours), duration(plan.gpu_hours / plan.devices.count)])  # fmt: skip
    head = ["stage", "pixels", "steps", "batch", "samples", "tokens", "FLOP", "GPU-hours", "time"]
    return "Stages\n" + table(head, rows)


def _trained(stage: StagePlan) -> str:
    parts = ", ".join(f"{module} {count(size)}" for module, size in stage.trained.items()) or "nothing"
    total = f" = {count(sum(stage.trained.values()))}" if len(stage.trained) > 1 else ""
    preset = "" if stage.trainable == "-" else f" ({stage.trainable})"
    return _wrapped(f"{stage.name}{preset}: {parts}{total}", "  ")


def _operations(plan: Plan) -> str:
    kinds = [kind for kind in _FLOPS if any(kind in stage.flops for stage in plan.stages)]
    rows = [
        [stage.name, *(count(stage.flops.get(kind, 0.0) / stage.samples) for kind in kinds),
         count(stage.total_flops / stage.samples)]
        for stage in plan.stages
    ]  # fmt: skip
    return "FLOP per sample\n" + table(["stage", *kinds, "all"], rows)


def _memory(plan: Plan) -> str:
    kinds = [kind for kind in _MEMORY if any(stage.memory.get(kind) for stage in plan.stages)]
    rows = []
    for stage in plan.stages:
        fits = "" if stage.total_memory <= plan.devices.memory else " !"
        memory = {**stage.memory, "activations": stage.memory["activations"] + stage.memory.get("logits", 0.0)}
        rows.append(
            [stage.name, *(number(memory.get(kind, 0.0) / 1e9) for kind in kinds),
             number(stage.total_memory / 1e9) + fits, str(stage.micro_batch), f"{stage.most:,}"]
        )  # fmt: skip
    short = {"activations": "activ.", "gradients": "grad.", "optimizer": "optim.", "reference": "refer.",
             "gathered": "gather", "averages": "ema"}  # fmt: skip
    head = ["GB per GPU", *(short.get(kind, kind) for kind in kinds), "all", "micro", "most"]
    note = "micro: samples at once, as in the recipe (per GPU at most batch / GPUs); most: how many would fit."
    over = [stage.name for stage in plan.stages if stage.total_memory > plan.devices.memory]
    if over:
        note += f"\n! does not fit into {plan.devices.memory / 1e9:.0f} GB."
    return "Memory\n" + table(head, rows) + "\n" + note


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first flush left, the others flush right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


def count(value: float) -> str:
    """Three digits and a unit: 2.05M, 7.66G; E for 10^18."""
    for size, unit in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value < 999.5 * size else f"{value / size:.0f}{unit}"
    return f"{value:.0f}" if value else "-"


def number(value: float) -> str:
    """Few digits: 4,243 or 23.2 or 0.31."""
    if value == 0:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}" if value >= 0.01 else "<0.01"


def duration(hours: float) -> str:
    """Minutes, hours or days."""
    if hours < 1:
        return f"{60 * hours:.0f} min" if hours >= 1 / 60 else "<1 min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} d"


def _wrapped(text: str, bullet: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=bullet, subsequent_indent=" " * max(2, len(bullet)))
