"""The command line: `vargpt draw | chat | edit | train | prefer | eval | bench | verify | convert | blend`.

Invariant: a mistake of the user ends in one line on stderr and exit status 2, never in a traceback
(VARGPT_DEBUG=1 shows it all the same). Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vargpt.commands.pictures import PictureOptions

app = typer.Typer(
    name="vargpt",
    help="One model that reads, draws and edits pictures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Model folder or hub name. [default: $VARGPT_MODEL, else the bundled model]"),
]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="float32 or bfloat16. [default: as stored]")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, mps. [default: the GPU if there is one]")
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="PNG to write; more pictures get -2, -3, ...")]
CountOption = Annotated[int, typer.Option("--count", "-n", help="How many pictures, with seeds SEED, SEED+1, ...")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of the first picture. [default: 0]")]
AspectOption = Annotated[str | None, typer.Option("--aspect", help="WIDTH:HEIGHT, such as 4:3.")]
SizeOption = Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT in pixels, one that the model draws.")]
GuidanceOption = Annotated[str | None, typer.Option("--guidance", help="Guidance: a number, or one per scale: 4,3,2.")]
TemperatureOption = Annotated[str | None, typer.Option("--temperature", help="A number, or one per scale; 0: no dice.")]
TopPOption = Annotated[float | None, typer.Option("--top-p", help="Never draw a bit value less likely than 1 - top_p.")]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="Behaviour: official or vargpt. [default: as the weights were trained]")
]
DraftOption = Annotated[
    str | None, typer.Option("--draft", help="Words that the answer begins with before it draws, such as a layout.")
]
AtOnceOption = Annotated[bool, typer.Option("--at-once", help="Draw without a draft, for a model that makes some.")]
NegativeOption = Annotated[str | None, typer.Option("--negative", help="What the picture should not be.")]
PreviewsOption = Annotated[
    Path | None, typer.Option("--previews", help="Folder for a PNG after every scale.", file_okay=True)
]


@app.command()
def draw(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    output: OutputOption = Path("drawing.png"),
    count: CountOption = 1,
    seed: SeedOption = None,
    aspect: AspectOption = None,
    size: SizeOption = None,
    previews: PreviewsOption = None,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    negative: NegativeOption = None,
    draft: DraftOption = None,
    at_once: AtOnceOption = False,
    preset: PresetOption = None,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Draw a picture: vargpt draw "a green heart" -o heart.png --seed 7 -n 4 --previews steps/"""
    from vargpt.commands import pictures

    options = PictureOptions(
        output,
        count=count,
        seed=seed,
        aspect=aspect,
        size=size,
        guidance=guidance,
        temperature=temperature,
        top_p=top_p,
        negative=negative,
        draft=draft,
        at_once=at_once,
        previews=previews,
        preset=preset,
        model=model,
        dtype=dtype,
        device=device,
    )
    pictures.draw(prompt, options)


@app.command()
def edit(
    picture: Annotated[Path, typer.Argument(help="The picture to change.")],
    instruction: Annotated[str, typer.Argument(help="What to change.")],
    output: OutputOption = Path("edited.png"),
    count: CountOption = 1,
    seed: SeedOption = None,
    aspect: AspectOption = None,
    size: SizeOption = None,
    previews: PreviewsOption = None,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    draft: DraftOption = None,
    at_once: AtOnceOption = False,
    preset: PresetOption = None,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Change a picture: vargpt edit in.png "make it blue" -o out.png"""
    from vargpt.commands import pictures

    options = PictureOptions(
        output,
        count=count,
        seed=seed,
        aspect=aspect,
        size=size,
        guidance=guidance,
        temperature=temperature,
        top_p=top_p,
        draft=draft,
        at_once=at_once,
        previews=previews,
        preset=preset,
        model=model,
        dtype=dtype,
        device=device,
    )
    pictures.edit(picture, instruction, options)


@app.command()
def chat(
    picture: Annotated[Path | None, typer.Argument(help="A picture to talk about.")] = None,
    question: Annotated[str | None, typer.Argument(help="One question; without it, a conversation begins.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option("--temperature", help="0: always the likeliest word.")] = 0.0,
    seed: SeedOption = None,
    model: ModelOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Ask about a picture, once or in a conversation: vargpt chat photo.png "what is this?" """
    from vargpt.commands import talk

    options = talk.ChatOptions(max_tokens, temperature, seed, model, dtype, device)
    talk.chat(picture, question, options)


@app.command()
def verify(
    goldens: Annotated[Path, typer.Argument(help="A goldens folder: config.json, weights, index.json, scenarios.")],
) -> None:
    """Compare every recorded tensor of a goldens folder with what this code computes; 1 means a difference."""
    from vargpt.commands import checkpoints

    raise typer.Exit(checkpoints.verify(goldens))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Model folder or hub name.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write.")],
    to: Annotated[str, typer.Option("--to", help="Layout to write: vargpt or official.")] = "vargpt",
    max_shard_size: Annotated[str, typer.Option("--max-shard-size", help="Split weights above this size.")] = "5GB",
) -> None:
    """Rewrite a model in the other layout, bit-exactly: the published one, or ours."""
    from vargpt.commands import checkpoints

    checkpoints.convert(source, destination, to, max_shard_size)


@app.command()
def blend(
    first: Annotated[str, typer.Argument(help="Model folder or hub name; its text tokenizer and habits are kept.")],
    second: Annotated[str, typer.Argument(help="What further training made of it.")],
    destination: Annotated[Path, typer.Argument(help="Folder to write.")],
    share: Annotated[float, typer.Option("--share", help="0: the first, 1: the second.")] = 0.5,
) -> None:
    """Write a model between two of one shape: part of what training gave and took."""
    from vargpt.commands import checkpoints

    checkpoints.blend(first, second, destination, share)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe, such as recipes/emoji-small.yaml.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of images with metadata.jsonl, or of the recipe's sources.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where checkpoints go. [default: runs/RECIPE]")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change one entry: --set stages.0.loop.steps=100. Repeatable.")
    ] = None,
    stages: Annotated[str | None, typer.Option("--stages", help="Only these, by name: tokenizer,sft.")] = None,
    time_limit: Annotated[
        str | None, typer.Option("--time-limit", help="Save and stop after this long: 90s, 45m, 8h or 1:30:00.")
    ] = None,
    replicate: Annotated[
        bool, typer.Option("--replicate", help="Under torchrun: the whole model on every process (small models).")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan: work, memory, time. No data.")] = False,
    gpus: Annotated[int | None, typer.Option("--gpus", help="Of the plan. [default: 1]", min=1)] = None,
    gpu_memory: Annotated[float | None, typer.Option("--gpu-memory", help="Of the plan, GB. [default: 80]")] = None,
    utilisation: Annotated[
        float | None, typer.Option("--utilisation", help="Of the plan: share of the GPUs' peak. [default: 0.3]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as JSON.")] = False,
) -> None:
    """Train from scratch, or go on where the same command was stopped. Stopped and saved: exit status 3."""
    from vargpt.commands import training

    if dry_run and replicate:
        raise ValueError("--replicate is for training; a plan (--dry-run) is of sharded models")
    if dry_run:
        raise typer.Exit(training.dry_run(recipe, overrides or [], stages, gpus, gpu_memory, utilisation, as_json))
    if as_json or any(value is not None for value in (gpus, gpu_memory, utilisation)):
        raise ValueError("--gpus, --gpu-memory, --utilisation and --json belong to --dry-run")
    output = out if out is not None else Path("runs") / recipe.stem
    raise typer.Exit(training.train(recipe, data, output, overrides or [], stages, time_limit, replicate))


@app.command()
def prefer(
    model: Annotated[str | None, typer.Argument(help="Model folder or hub name. [default: the bundled model]")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the pairs.")] = Path("runs/pairs"),
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="Lines of text, or .jsonl: prompt, image, target, caption, key."),
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Folder of images with metadata.jsonl.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="Of --data: draw or edit. [default: draw]")] = None,
    num_samples: Annotated[
        int | None,
        typer.Option("--num-samples", help="Pictures per prompt. [default: 8; --given without scorer: 1]"),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option("--scorer", help="scenes, targets, self, a URL, or package.module:name; arguments after ?"),
    ] = None,
    margin: Annotated[float, typer.Option("--margin", help="Least difference of the two scores.", min=0)] = 0.0,
    given: Annotated[bool, typer.Option("--given", help="Chosen: the data's own picture; rejected: a sample.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", help="So many prompts, evenly spread. [default: all]")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of all pictures.")] = 0,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    aspect: AspectOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Pictures at once.", min=1)] = 16,
    shard_size: Annotated[int, typer.Option("--shard-size", help="Prompts per shard.", min=1)] = 16,
    on_error: Annotated[str, typer.Option("--on-error", help="For a broken prompt: stop, or skip and count.")] = "stop",
    time_limit: Annotated[str | None, typer.Option("--time-limit", help="Stop after this long: 90s, 45m, 8h.")] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Make preference pairs: sample, score, pair best and worst. The same command goes on where it was stopped (3)."""
    from vargpt.commands import preferences

    options = preferences.PreferOptions(
        out,
        prompts=prompts,
        data=data,
        task=task,
        num_samples=num_samples,
        scorer=scorer,
        margin=margin,
        given=given,
        limit=limit,
        seed=seed,
        guidance=guidance,
        temperature=temperature,
        top_p=top_p,
        aspect=aspect,
        batch_size=batch_size,
        shard_size=shard_size,
        on_error=on_error,
        time_limit=time_limit,
        model=model,
        dtype=dtype,
        device=device,
    )
    raise typer.Exit(preferences.prefer(options))


@app.command(name="eval")
def evaluate(
    model: Annotated[str | None, typer.Argument(help="Model folder or hub name. [default: the bundled model]")] = None,
    suites: Annotated[
        list[str] | None,
        typer.Option("--suite", help="scenes, emoji, tokenizer, or a folder of captioned pictures. Repeatable."),
    ] = None,
    size: Annotated[str, typer.Option("--size", help="How many examples: small, default or full.")] = "default",
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many examples of each kind.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the results. [default: runs/evaluation/MODEL/SUITE]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the suite emoji. [default: in $VARGPT_SHARED or ../shared]")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option("--compare", help="Two folders of results: B - A, paired. No model.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option("--resolution", help="Side of the pictures in pixels. [default: the model's]")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Examples at once. [default: 32; 256 on a GPU]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Processes that read pictures. [default: 1; 8 with a GPU]")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of examples and pictures.")] = 0,
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    drafts: Annotated[
        bool | None,
        typer.Option(
            "--drafts/--at-once", help="Say first what a picture will show, or draw at once. [default: the model's]"
        ),
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Measure a model, with intervals and pictures, or compare two results: vargpt eval --compare A B."""
    from vargpt.commands import evaluation

    if compare is not None:
        if model is not None or suites:
            raise ValueError("--compare takes two folders of results, no model and no suite")
        return evaluation.compare_results(compare[0], compare[1], out)
    evaluation.evaluate(
        evaluation.EvalOptions(
            tuple(suites or ("scenes",)),
            model=model,
            data=data,
            output=out,
            size=size,
            limit=limit,
            resolution=resolution,
            seed=seed,
            batch_size=batch_size,
            workers=workers,
            guidance=guidance,
            temperature=temperature,
            top_p=top_p,
            drafts=drafts,
            dtype=dtype,
            device=device,
        )
    )


@app.command()
def bench(
    benchmark: Annotated[str, typer.Argument(help="geneval, geneval2 or dpg.")],
    prompts: Annotated[
        Path,
        typer.Option("--prompts", help="The benchmark's: evaluation_metadata.jsonl, geneval2_data.jsonl, prompts/."),
    ],
    model: Annotated[str | None, typer.Argument(help="Model folder or hub name. [default: the bundled model]")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to draw into. [default: runs/BENCHMARK]")] = None,
    template: Annotated[
        str, typer.Option("--template", help="draw, plain, depict, trained, or a .txt or .json of templates.")
    ] = "draw",
    rewritten: Annotated[
        Path | None, typer.Option("--rewritten", help=".jsonl of prompt and rewritten, for every prompt.")
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="Per prompt. [default: 4; geneval2: 1]")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of all pictures and wordings.")] = 0,
    preset: Annotated[str, typer.Option("--preset", help="Sampling: model (its own), paper or official.")] = "model",
    guidance: GuidanceOption = None,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    height: Annotated[int | None, typer.Option("--height", help="Pixels. [default: the model's own]")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Pixels. [default: the model's own]")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Pictures at once.", min=1)] = 8,
    shard: Annotated[str | None, typer.Option("--shard", help="Only this share of the prompts: 1/4, ..., 4/4.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first so many prompts, to try it.")] = None,
    time_limit: Annotated[str | None, typer.Option("--time-limit", help="Stop after this long: 90s, 45m, 8h.")] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Draw an outside benchmark's prompts for its own scorer. The same command goes on where it was stopped (3)."""
    from vargpt.commands import benchmarks

    options = benchmarks.BenchOptions(
        benchmark,
        prompts,
        out if out is not None else Path("runs") / benchmark,
        template=template,
        rewritten=rewritten,
        samples=samples,
        seed=seed,
        preset=preset,
        guidance=guidance,
        temperature=temperature,
        top_p=top_p,
        height=height,
        width=width,
        batch_size=batch_size,
        shard=shard,
        limit=limit,
        time_limit=time_limit,
        model=model,
        dtype=dtype,
        device=device,
    )
    raise typer.Exit(benchmarks.bench(options))


def main() -> None:
    """Run the command line; the entry point of the `vargpt` script."""
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("VARGPT_DEBUG"):
            raise
        print(f"vargpt: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    main()
