"""`vargpt eval`: measure a model with one suite or several, or compare two results."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vargpt.commands.common import find_model, load_pipeline
from vargpt.commands.pictures import parse_numbers

if TYPE_CHECKING:
    from vargpt.data.folder import ImageFolder
    from vargpt.evaluation.suites import SuiteRequest
    from vargpt.inference.pipeline import VargptPipeline
    from vargpt.sampling import Sampling

EMOJI = Path("data") / "noto-emoji"
SHARED_VARIABLE = "VARGPT_SHARED"
_MOST_WORKERS = 8


@dataclass(frozen=True)
class EvalOptions:
    """What the verb takes; None: the model's own, or a default that fits the machine."""

    suites: tuple[str, ...] = ("scenes",)
    model: str | None = None
    data: Path | None = None
    output: Path | None = None
    size: str = "default"
    limit: int | None = None
    resolution: int | None = None
    seed: int = 0
    batch_size: int | None = None
    workers: int | None = None
    guidance: str | None = None
    temperature: str | None = None
    top_p: float | None = None
    drafts: bool | None = None
    dtype: str | None = None
    device: str | None = None


def evaluate(options: EvalOptions) -> None:
    """Measure; tables and, last, one line of JSON go to stdout, `results.json` and the page to the output folder."""
    _check(options)
    numbers = {name: parse_numbers(f"--{name}", getattr(options, name)) for name in ("guidance", "temperature")}
    folders = {name: _folder(name, options) for name in options.suites}
    from vargpt.evaluation.harness import run_suite, write_results
    from vargpt.evaluation.report.page import write_page
    from vargpt.evaluation.subject import Subject
    from vargpt.evaluation.suites import make_suite, square_schedule
    from vargpt.evaluation.tables import results_table

    pipeline = load_pipeline(options.model, options.dtype, options.device)
    schedule = square_schedule(pipeline.model.config, options.resolution)
    suites = [make_suite(name, _request(name, options, schedule, folders[name])) for name in options.suites]
    output = options.output or Path("runs/evaluation") / Path(pipeline.name).name
    several = options.output is None or len(suites) > 1
    sampling = _sampling(pipeline, numbers, options.top_p)
    batch_size = options.batch_size or (256 if pipeline.device.type == "cuda" else 32)
    workers = options.workers or _default_workers(pipeline)
    known = {"model": pipeline.name, "path": Path(find_model(options.model)).name}
    documents = []
    with Subject(pipeline, sampling, schedule, batch_size, workers, options.drafts) as subject:
        for suite in suites:
            result = run_suite(suite, subject, known)
            directory = output / suite.name if several else output
            path = write_results(result, directory)
            page = write_page(result, directory)
            print(f"numbers: {path}\npictures: {page}", file=sys.stderr)
            print(f"\n{suite.title}: {pipeline.name}\n\n{results_table(result.document)}")
            documents.append(result.document)
    print(json.dumps(documents[0] if len(documents) == 1 else {"suites": documents}))


def compare_results(first: Path, second: Path, output: Path | None) -> None:
    """Compare two results of the same suite (or folders of several); tables and one line of JSON go to stdout."""
    from vargpt.evaluation.compare import compare, pairs_of_results
    from vargpt.evaluation.report.comparison import write_comparison
    from vargpt.evaluation.tables import comparison_table

    documents = [compare(a, b) for a, b in pairs_of_results(first, second)]
    page = write_comparison(documents, (output or Path("runs/evaluation/comparison")) / "index.html")
    print(f"page: {page}", file=sys.stderr)
    for document in documents:
        print(f"\n{document['title']}\nA: {document['a']}\nB: {document['b']}\n\n{comparison_table(document)}")
    print(json.dumps(documents[0] if len(documents) == 1 else {"suites": documents}))


def trained_split(model: str) -> float:
    """Share of the pictures that a model's training set aside: by the recipe in its folder, else the default."""
    from vargpt.data.folder import VALIDATION_FRACTION
    from vargpt.training.recipes.recipe import load_recipe

    recipe = Path(model) / "recipe.yaml"
    return load_recipe(recipe).validation_fraction if recipe.is_file() else VALIDATION_FRACTION


def find_emoji() -> Path | None:
    """The Noto Emoji folder: below $VARGPT_SHARED, or in `shared` beside the checkout; None where it is absent."""
    roots = [Path(os.environ[SHARED_VARIABLE])] if SHARED_VARIABLE in os.environ else []
    roots.append(Path(__file__).resolve().parents[4] / "shared")
    return next((root / EMOJI for root in roots if (root / EMOJI).is_dir()), None)


def _check(options: EvalOptions) -> None:
    for name in ("limit", "batch_size", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if not 0 <= options.seed < 2**31:
        raise ValueError(f"--seed must be from 0 to 2**31 - 1, got {options.seed}")
    if options.output is not None and options.output.exists() and not options.output.is_dir():
        raise ValueError(f"{options.output}: is a file, expected a folder for the results")
    twice = [name for name in options.suites if options.suites.count(name) > 1]
    if twice:
        raise ValueError(f"--suite {twice[0]} is given twice")
    from vargpt.evaluation.suites import SIZES, SUITES, WITH_FOLDER

    if options.size not in SIZES:
        raise ValueError(f"--size is {', '.join(SIZES)}, got {options.size!r}")
    for name in options.suites:
        if name not in SUITES and not Path(name).is_dir():
            raise ValueError(f"--suite {name}: no such suite ({', '.join(SUITES)}) and no such folder of pictures")
    if options.data is not None and not set(options.suites) & set(WITH_FOLDER):
        raise ValueError(f"--data goes with the suites {' and '.join(WITH_FOLDER)}; a folder alone is --suite DIR")


def _folder(suite: str, options: EvalOptions) -> ImageFolder | None:
    """The folder of captioned pictures that a suite uses, read and checked."""
    from vargpt.data.folder import read_folder
    from vargpt.evaluation.suites import SUITES, WITH_FOLDER

    if suite in SUITES and suite not in WITH_FOLDER:
        return None
    place = options.data or find_emoji() if suite in SUITES else Path(suite)
    if place is None:
        if suite == "tokenizer":
            return None
        raise ValueError(
            f"--suite {suite}: the Noto Emoji folder is not here; name it with --data DIR, or set {SHARED_VARIABLE} to "
            f"the folder that holds {EMOJI}"
        )
    return read_folder(place, trained_split(find_model(options.model)))


def _request(name: str, options: EvalOptions, schedule: Any, folder: ImageFolder | None) -> SuiteRequest:
    from vargpt.evaluation.suites import SIZES, SUITES, SuiteRequest

    size = next(size for size in SIZES if size == options.size)
    called = name if name in SUITES else Path(name).resolve().name
    return SuiteRequest(schedule, size, options.limit, options.seed, folder, called)


def _sampling(pipeline: VargptPipeline, numbers: dict[str, Any], top_p: float | None) -> Sampling:
    given = {"guidance_scale": numbers["guidance"], "temperature": numbers["temperature"], "top_p": top_p}
    return replace(pipeline.sampling, **{name: value for name, value in given.items() if value is not None})


def _default_workers(pipeline: VargptPipeline) -> int:
    """Reading pictures is slow only beside a GPU."""
    return min(_MOST_WORKERS, os.cpu_count() or 1) if pipeline.device.type == "cuda" else 1
