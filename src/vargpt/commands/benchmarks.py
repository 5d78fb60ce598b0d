"""`vargpt bench`: draw the prompts of an outside benchmark into the folder that its own scorer reads."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vargpt.commands.common import StatusLine, find_model, load_pipeline
from vargpt.commands.pictures import parse_numbers
from vargpt.commands.training import STOPPED, parse_duration

if TYPE_CHECKING:
    from vargpt.evaluation.benchmarks.layouts import Benchmark, PromptList
    from vargpt.evaluation.benchmarks.record import RunFacts
    from vargpt.evaluation.benchmarks.runner import BenchRun, Drawn
    from vargpt.evaluation.benchmarks.wording import TemplateChoice, TrainedWording
    from vargpt.inference.pipeline import VargptPipeline
    from vargpt.preferences.sample import ModelPainter
    from vargpt.processing.conversation import Conversation
    from vargpt.sampling import Sampling

PRESETS = ("model", "paper", "official")


@dataclass(frozen=True)
class BenchOptions:
    """What the verb takes; None: the benchmark's or the model's own."""

    benchmark: str
    prompts: Path
    output: Path
    template: str = "draw"
    rewritten: Path | None = None
    samples: int | None = None
    seed: int = 0
    preset: str = "model"
    guidance: str | None = None
    temperature: str | None = None
    top_p: float | None = None
    height: int | None = None
    width: int | None = None
    batch_size: int = 8
    shard: str | None = None
    limit: int | None = None
    time_limit: str | None = None
    model: str | None = None
    dtype: str | None = None
    device: str | None = None


class _Input:
    """What can be read and refused before a model is loaded."""

    def __init__(self, options: BenchOptions) -> None:
        from vargpt.evaluation.benchmarks.layouts import find_benchmark
        from vargpt.evaluation.benchmarks.record import read_run
        from vargpt.evaluation.benchmarks.wording import read_rewritten, read_template, rewrite

        if options.preset not in PRESETS:
            raise ValueError(f"--preset is one of {', '.join(PRESETS)}, got {options.preset!r}")
        if not 0 <= options.seed < 2**31:
            raise ValueError(f"--seed must be from 0 to 2**31 - 1, got {options.seed}")
        if options.limit is not None and options.limit < 1:
            raise ValueError(f"--limit must be at least 1, got {options.limit}")
        if (options.height is None) != (options.width is None):
            raise ValueError("give both --height and --width, or neither for the model's own size")
        self.benchmark: Benchmark = find_benchmark(options.benchmark)
        self.samples = self.benchmark.samples if options.samples is None else options.samples
        if self.samples < 1:
            raise ValueError(f"--samples must be at least 1, got {self.samples}")
        self.shard = parse_shard(options.shard)
        self.sampling = {
            "guidance_scale": parse_numbers("--guidance", options.guidance),
            "temperature": parse_numbers("--temperature", options.temperature),
            "top_p": options.top_p,
        }
        self.template: TemplateChoice = read_template(options.template)
        self.prompts: PromptList = self.benchmark.read(options.prompts)
        self.words = [prompt.prompt for prompt in self.prompts.prompts]
        self.rewritten_sha256: str | None = None
        if options.rewritten is not None:
            rewritten, self.rewritten_sha256 = read_rewritten(options.rewritten)
            self.words = rewrite(self.words, rewritten, options.rewritten)
        self.recorded = read_run(options.output) is not None
        find_model(options.model)


def bench(options: BenchOptions) -> int:
    """Draw what is missing of a benchmark; the folder is printed on stdout. Return the exit status."""
    from vargpt.evaluation.benchmarks.record import begin_run, log_session, readme
    from vargpt.evaluation.benchmarks.runner import draw_benchmark
    from vargpt.inference.sizes import choose_schedule
    from vargpt.preferences.origin import origin
    from vargpt.preferences.sample import ModelPainter
    from vargpt.training.loop.stopping import StopRequest

    stop = StopRequest(None if options.time_limit is None else parse_duration(options.time_limit))
    given = _Input(options)
    pipeline = load_pipeline(options.model, options.dtype, options.device)
    schedule = choose_schedule(pipeline.model.config, options.height, options.width)
    size = schedule.image_size
    given.benchmark.check(given.samples, *size)
    sampling = _sampling(pipeline, options.preset, given.sampling)
    painter = ModelPainter(pipeline, sampling, schedule, drafts=pipeline.habits.draft)
    trained = trained_wording(pipeline, find_model(options.model))
    run, wording = _run(given, options, pipeline, trained)
    facts = _facts(given, options, painter, wording, _unconditional(painter, run.requests[0].conversation))
    rewritten = given.rewritten_sha256 is not None
    lines = [_line(run, pipeline, given.words, rewritten, number) for number in range(len(run.prompts))]
    text = readme(given.benchmark, facts, len(run.prompts), given.samples, size)
    begin_run(options.output, given.benchmark, facts, lines, text)
    here = {"shard": options.shard, "batch_size": options.batch_size, "device": _device(pipeline)}
    log_session(options.output, "start", **here, origin=origin())
    entries = [
        {"prompt": words, "request": line["request"], "model": pipeline.name, "software": "vargpt"}
        for words, line in zip(given.words, lines, strict=True)
    ]
    status = StatusLine()
    with stop.installed():
        drawn = draw_benchmark(
            painter,
            run,
            options.output,
            about=lambda prompt: entries[prompt.index],
            should_stop=lambda: stop.reason is not None,
            progress=lambda done, total: status.show(_progress(done, total, status.seconds), step=True),
        )
    status.clear()
    log_session(options.output, "end", shard=options.shard, pictures=drawn.pictures, missing=drawn.missing)
    print(_outcome(given, options, drawn, stop.reason), file=sys.stderr)
    if stop.reason is not None and drawn.missing:
        return STOPPED
    print(options.output)
    return 0


def parse_shard(text: str | None) -> tuple[int, int]:
    """(number from 0, of how many) of '2/4', which counts from 1."""
    if text is None:
        return 0, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--shard reads I/N with I from 1 to N, such as 2/4, got {text!r}")
    return int(match[1]) - 1, int(match[2])


def trained_wording(pipeline: VargptPipeline, model: str) -> TrainedWording:
    """How drawing was worded when a model was trained: by the recipe in its folder, else assumed."""
    from vargpt.evaluation.benchmarks.wording import TrainedWording, assumed_wording
    from vargpt.training.recipes.recipe import load_recipe
    from vargpt.training.recipes.schema import SftStage

    path = Path(model) / "recipe.yaml"
    if path.is_file():
        recipe = load_recipe(path)
        for stage in reversed(recipe.stages):
            entries = [entry for entry in stage.data if entry.task == "draw"] if isinstance(stage, SftStage) else []
            if isinstance(stage, SftStage) and entries:
                source = recipe.sources.get(entries[0].source)
                return TrainedWording(stage.variety, "short" if source is None else source.style, known=True)
    return assumed_wording(pipeline.model.config)


def _sampling(pipeline: VargptPipeline, preset: str, given: dict[str, Any]) -> Sampling:
    from vargpt.sampling import Sampling

    base = {"model": lambda: pipeline.sampling, "paper": Sampling.paper, "official": Sampling.official}[preset]()
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return replace(base, **changes)


def _run(
    given: _Input, options: BenchOptions, pipeline: VargptPipeline, trained: TrainedWording
) -> tuple[BenchRun, dict[str, Any]]:
    """The run, and what decided its wording."""
    from vargpt.evaluation.benchmarks.runner import BenchRun
    from vargpt.evaluation.benchmarks.wording import Wording

    wording = Wording(given.template, options.seed, pipeline.model.config, pipeline.habits, trained)
    run = BenchRun(
        given.benchmark,
        given.prompts.prompts,
        [wording.request(index, words) for index, words in enumerate(given.words)],
        given.samples,
        options.seed,
        options.batch_size,
        given.shard,
        options.limit,
    )
    return run, wording.describe()


def _facts(
    given: _Input, options: BenchOptions, painter: ModelPainter, wording: dict[str, Any], unconditional: str | None
) -> RunFacts:
    from vargpt.checkpoint.loading import resolve_folder
    from vargpt.evaluation.benchmarks.record import RunFacts, weights_files
    from vargpt.preferences.origin import origin
    from vargpt.sampling import per_scale

    scales = painter.schedule.num_scales
    for name in ("guidance_scale", "temperature"):
        per_scale(getattr(painter.sampling, name), scales, name)
    height, width = painter.schedule.image_size
    settings = {
        "benchmark": given.benchmark.name,
        "prompts_sha256": given.prompts.sha256,
        "rewritten_sha256": given.rewritten_sha256,
        "template": wording,
        "samples": given.samples,
        "seed": options.seed,
        "height": height,
        "width": width,
        **painter.describe(),
        "behaviour": asdict(painter.pipeline.model.behaviour),
    }
    about = {
        "model": painter.pipeline.name,
        "weights_files": {} if given.recorded else weights_files(resolve_folder(find_model(options.model))),
        "preset": options.preset,
        "unconditional_request": unconditional,
        "prompts_file": options.prompts.name,
        "prompts": len(given.prompts.prompts),
        "prompts_of_the_benchmark": given.benchmark.count,
        "rewritten_file": None if options.rewritten is None else options.rewritten.name,
        "origin": origin(),
        "device": _device(painter.pipeline),
    }
    return RunFacts(settings, about)


def _line(run: BenchRun, pipeline: VargptPipeline, words: list[str], rewritten: bool, number: int) -> dict[str, Any]:
    """A line of prompts.jsonl."""
    prompt, request = run.prompts[number], run.requests[number]
    return {
        "index": prompt.index,
        "key": prompt.key,
        "prompt": prompt.prompt,
        "rewritten": words[number] if rewritten else None,
        "template": request.template,
        "request": _as_text(pipeline, request.conversation),
        "seeds": run.seeds(prompt),
        "files": run.files(prompt),
    }


def _as_text(pipeline: VargptPipeline, conversation: Conversation) -> str:
    """A request as the model's tokens say it, chat format and all; the picture starts right behind."""
    ids = pipeline.processor.encode(conversation, training=False).ids
    return str(pipeline.processor.tokenizer.decode(ids.tolist(), skip_special_tokens=False))


def _unconditional(painter: ModelPainter, conversation: Conversation) -> str | None:
    """The request of the branch that guidance leads away from; None where the weights have a branch of their own."""
    from vargpt.inference.requests import prompt_free_request

    behaviour = painter.pipeline.model.behaviour
    if behaviour.guidance_backbone == behaviour.guidance_context == "official":
        return None
    return _as_text(painter.pipeline, prompt_free_request(conversation))


def _device(pipeline: VargptPipeline) -> str:
    import torch

    device = pipeline.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _progress(done: int, total: int, seconds: float) -> str:
    left = seconds / done * (total - done)
    return f"{done} of {total} pictures, {seconds / done:.2f} s each, {left / 60:.0f} min left"


def _outcome(given: _Input, options: BenchOptions, drawn: Drawn, reason: str | None) -> str:
    """The session in a line."""
    text = f"{drawn.pictures} pictures drawn, {drawn.missing} of the benchmark are missing"
    if given.prompts.left_out:
        text += f"; {given.prompts.left_out} repeated prompts were left out"
    if len(given.prompts.prompts) != given.benchmark.count:
        text += f"; {len(given.prompts.prompts)} prompts, {given.benchmark.title} has {given.benchmark.count}"
    if reason is not None and drawn.missing:
        return f"vargpt: stopped by {reason}: {text}; the same command goes on"
    return text if drawn.missing else f"{text}; {options.output / 'README.txt'} says how to score them"
