"""`vargpt prefer`: sample pictures of prompts, score them, and write the best and the worst as preference pairs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vargpt.commands.common import find_model, load_pipeline
from vargpt.commands.evaluation import trained_split
from vargpt.commands.pictures import parse_numbers
from vargpt.commands.training import STOPPED, parse_duration

if TYPE_CHECKING:
    from vargpt.inference.pipeline import VargptPipeline
    from vargpt.preferences.build import PairPlan
    from vargpt.preferences.prompts import PairPrompt, PromptTask
    from vargpt.sampling import Sampling


@dataclass(frozen=True)
class PreferOptions:
    """What the verb takes; None: the model's own, or the default of `PairPlan`."""

    output: Path
    prompts: Path | None = None
    data: Path | None = None
    task: str | None = None
    num_samples: int | None = None
    scorer: str | None = None
    margin: float = 0.0
    given: bool = False
    limit: int | None = None
    seed: int = 0
    guidance: str | None = None
    temperature: str | None = None
    top_p: float | None = None
    aspect: str | None = None
    batch_size: int = 16
    shard_size: int = 16
    on_error: str = "stop"
    time_limit: str | None = None
    model: str | None = None
    dtype: str | None = None
    device: str | None = None


def prefer(options: PreferOptions) -> int:
    """Make the pairs; the folder is printed on stdout. Return the exit status."""
    from vargpt.inference.sizes import choose_schedule
    from vargpt.preferences.build import make_pairs
    from vargpt.preferences.report import PAGE, REPORT
    from vargpt.preferences.sample import ModelPainter
    from vargpt.preferences.scorers import load_scorer
    from vargpt.training.loop.stopping import StopRequest

    stop = StopRequest(None if options.time_limit is None else parse_duration(options.time_limit))
    plan, scorer = _plan(options), None if options.scorer is None else load_scorer(options.scorer)
    plan.check(scorer)
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"{options.output}: is a file, expected a folder for the pairs")
    numbers = {name: parse_numbers(f"--{name}", getattr(options, name)) for name in ("guidance", "temperature")}
    wanted = _Wanted(options)
    pipeline = load_pipeline(options.model, options.dtype, options.device)
    given = {"guidance_scale": numbers["guidance"], "temperature": numbers["temperature"], "top_p": options.top_p}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    sampling: Sampling = replace(pipeline.sampling, **changes)
    schedule = choose_schedule(pipeline.model.config, aspect_ratio=options.aspect)
    prompts, identity = wanted.prompts(pipeline)
    with stop.installed():
        made = make_pairs(
            ModelPainter(pipeline, sampling, schedule),
            scorer,
            prompts,
            options.output,
            plan,
            scorer_name=options.scorer,
            identity={"model_name": pipeline.name, **identity},
            pipeline=pipeline,
            should_stop=lambda: stop.reason is not None,
        )
    if not made.finished:
        done = f"{made.prompts} of {len(prompts)} prompts"
        print(f"vargpt: stopped by {stop.reason} after {done}; the same command goes on", file=sys.stderr)
        return STOPPED
    print(_outcome(options.output / REPORT), file=sys.stderr)
    print(f"pictures: {options.output / PAGE}", file=sys.stderr)
    print(options.output)
    return 0


def _plan(options: PreferOptions) -> PairPlan:
    from vargpt.preferences.build import PairPlan

    if options.on_error not in ("stop", "skip"):
        raise ValueError(f"--on-error is stop or skip, got {options.on_error!r}")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {options.limit}")
    if not 0 <= options.seed < 2**31:
        raise ValueError(f"--seed must be from 0 to 2**31 - 1, got {options.seed}")
    default = 1 if options.given and options.scorer is None else 8
    return PairPlan(
        num_samples=default if options.num_samples is None else options.num_samples,
        margin=options.margin,
        chosen="given" if options.given else "sampled",
        seed=options.seed,
        batch_size=options.batch_size,
        on_error="skip" if options.on_error == "skip" else "stop",
        prompts_per_shard=options.shard_size,
    )


class _Wanted:
    """The prompts asked for: read and checked before the model is loaded, worded when it is."""

    def __init__(self, options: PreferOptions) -> None:
        from vargpt.data.folder import read_folder
        from vargpt.preferences.prompts import read_prompts

        if (options.prompts is None) == (options.data is None):
            raise ValueError("give the prompts either as --prompts FILE or as --data DIR")
        if options.task not in (None, "draw", "edit"):
            raise ValueError(f"--task is draw or edit, got {options.task!r}")
        if options.prompts is not None and options.task is not None:
            raise ValueError("--task goes with --data; in a prompts file a line with an image is an edit")
        self.limit, self.task = options.limit, options.task or "draw"
        self.name = (options.prompts or options.data or Path()).name
        self.file = None if options.prompts is None else read_prompts(options.prompts)
        found = find_model(options.model)
        self.folder = None if options.data is None else read_folder(options.data, trained_split(found))

    def prompts(self, pipeline: VargptPipeline) -> tuple[list[PairPrompt], dict[str, Any]]:
        """The prompts as the model knows them, and what decides them."""
        from vargpt.preferences.prompts import folder_prompts, folder_sha256

        config, habits = pipeline.model.config, pipeline.habits
        if self.file is not None:
            prompts = self.file.prompts(config, habits, self.limit)
            return prompts, {"prompts_file": self.name, "prompts_sha256": self.file.sha256}
        assert self.folder is not None
        task: PromptTask = "edit" if self.task == "edit" else "draw"
        prompts = folder_prompts(self.folder, task, config, habits, self.limit)
        return prompts, {"data": self.name, "data_sha256": folder_sha256(self.folder), "task": task}


def _outcome(path: Path) -> str:
    """The report in a line."""
    report = json.loads(path.read_text(encoding="utf-8"))
    text = (
        f"{report['pairs']} pairs of {report['prompts']} prompts: {report['ties']} ties, "
        f"{report['below_margin']} below the margin, {report['broken']} broken"
    )
    if not report["pairs"]:
        text += "; there is nothing to train on: try more samples, a smaller margin or a finer scorer"
    return text
