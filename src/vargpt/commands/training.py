"""`vargpt train`: run a recipe on a folder of pictures, or go on with it."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

STOPPED = 3
"""Exit status of a run that was asked to stop and has saved: the same command goes on."""
_UNITS = {"s": 1, "m": 60, "h": 3600}


def train(
    recipe: Path,
    data: Path | None,
    output: Path,
    overrides: list[str],
    stages: str | None,
    time_limit: str | None,
    replicate: bool = False,
) -> int:
    """Train the stages of a recipe; the folder of the finished model is printed on stdout. Return the exit status."""
    if not recipe.is_file():
        raise ValueError(f"{recipe}: no such recipe; there are some in recipes/, such as recipes/emoji-small.yaml")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file, expected a folder for checkpoints")
    if replicate and "RANK" not in os.environ:
        raise ValueError(
            "--replicate is for several processes, and this is one: torchrun --nproc_per_node 2 -m vargpt train …, or "
            "leave it out"
        )
    seconds = None if time_limit is None else parse_duration(time_limit)
    names = _stage_names(stages)
    from vargpt.training import distributed
    from vargpt.training.loop.trainer import TimeLimitReached
    from vargpt.training.run import train as run

    try:
        model = run(recipe, data, output, overrides, names, seconds, replicate)
        if distributed.is_main():
            print(model)
    except TimeLimitReached as stopped:
        print(f"vargpt: {stopped}", file=sys.stderr)
        return STOPPED
    finally:
        distributed.shutdown()
    return 0


def dry_run(
    recipe: Path,
    overrides: list[str],
    stages: str | None,
    gpus: int | None,
    gpu_memory: float | None,
    utilisation: float | None,
    as_json: bool,
) -> int:
    """Print the plan of a recipe, or of some of its stages: work, trained parameters, memory, time.

    One GPU of 80 GB at 30% of its peak where nothing else is said. Return the exit status.
    """
    from vargpt.training.planning.plan import Devices, make_plan
    from vargpt.training.planning.plan_text import render
    from vargpt.training.recipes.recipe import load_recipe

    devices = Devices(
        1 if gpus is None else gpus,
        80e9 if gpu_memory is None else gpu_memory * 1e9,
        utilisation=0.3 if utilisation is None else utilisation,
    )
    plan = make_plan(load_recipe(recipe, overrides), devices, _stage_names(stages))
    print(json.dumps(plan.to_dict(), indent=1) if as_json else render(plan))
    return 0


def _stage_names(stages: str | None) -> list[str]:
    names = [] if stages is None else [name.strip() for name in stages.split(",") if name.strip()]
    if stages is not None and not names:
        raise ValueError("--stages is empty: name stages of the recipe, as in --stages tokenizer,sft")
    return names


def parse_duration(text: str) -> float:
    """Seconds of `90s`, `45m`, `1.5h`, a plain number of seconds, or h:mm:ss.

    Raises:
        ValueError: for anything else, and for nothing at all.
    """
    plain = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    clock = re.fullmatch(r"(\d+):([0-5]\d):([0-5]\d)", text.strip())
    if plain:
        seconds = float(plain[1]) * _UNITS[plain[2] or "s"]
    elif clock:
        seconds = 3600.0 * int(clock[1]) + 60 * int(clock[2]) + int(clock[3])
    else:
        seconds = 0.0
    if seconds <= 0:
        raise ValueError(f"--time-limit: expected a duration such as 90s, 45m, 8h or 1:30:00, got {text!r}")
    return seconds
