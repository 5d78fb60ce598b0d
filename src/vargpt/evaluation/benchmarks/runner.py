"""Draw the pictures of a benchmark: what is missing, batch by batch, each written whole before the next batch.

Invariant: a picture's seed is a function of (seed, number of the prompt, number of the sample), so shards, batches and
restarts change nothing but the order of the work; a picture that is there is not drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vargpt.evaluation.benchmarks.layouts import Benchmark, BenchPrompt, is_complete
from vargpt.evaluation.benchmarks.record import finish_run
from vargpt.evaluation.benchmarks.wording import Request
from vargpt.inference.pictures import save_png
from vargpt.preferences.sample import Painter, picture_seed

Progress = Callable[[int, int], None]
"""`progress(drawn, to_draw)` after every batch."""


@dataclass(frozen=True)
class BenchRun:
    """What to draw.

    Attributes:
        requests: one per prompt.
        shard: (number from 0, of how many); prompts are dealt out in turn.
        limit: only the first so many prompts, to try things out.
    """

    benchmark: Benchmark
    prompts: Sequence[BenchPrompt]
    requests: Sequence[Request]
    samples: int
    seed: int
    batch_size: int = 8
    shard: tuple[int, int] = (0, 1)
    limit: int | None = None

    def mine(self) -> list[BenchPrompt]:
        """The prompts of this shard, within the limit."""
        number, shards = self.shard
        return [prompt for prompt in self.prompts[: self.limit] if prompt.index % shards == number]

    def seeds(self, prompt: BenchPrompt) -> list[int]:
        """The seeds of a prompt's pictures."""
        return [picture_seed(self.seed, prompt.index, sample) for sample in range(self.samples)]

    def files(self, prompt: BenchPrompt) -> list[str]:
        """The files of a prompt's pictures, relative to the folder."""
        return [self.benchmark.picture(prompt, sample) for sample in range(self.samples)]


@dataclass(frozen=True)
class Drawn:
    """What a session did: `missing` counts the pictures of the whole benchmark that are still to draw."""

    pictures: int
    missing: int


def draw_benchmark(
    painter: Painter,
    run: BenchRun,
    folder: Path,
    about: Callable[[BenchPrompt], dict[str, Any]] = lambda prompt: {},
    should_stop: Callable[[], bool] = lambda: False,
    progress: Progress = lambda drawn, to_draw: None,
) -> Drawn:
    """Draw this shard's missing pictures into a folder that has its record, and end the run when none is missing.

    Args:
        about: text entries for the PNG files of a prompt, beside its seed.
        should_stop: asked between batches.
    """
    mine, drawn = run.mine(), 0
    for prompt in mine:
        _complete(run, folder, prompt)
    to_draw = [(prompt, sample) for prompt in mine for sample in _missing(run, folder, prompt)]
    for batch in _batches(to_draw, run.batch_size):
        if should_stop():
            break
        seeds = [run.seeds(prompt)[sample] for prompt, sample in batch]
        pictures = painter.draw(
            [run.requests[prompt.index].conversation for prompt, _ in batch], [[seed] for seed in seeds]
        )
        for (prompt, sample), seed, row in zip(batch, seeds, pictures, strict=True):
            run.benchmark.begin(folder, prompt)
            save_png(folder / run.benchmark.picture(prompt, sample), row[0].image, {**about(prompt), "seed": str(seed)})
        for prompt in {prompt.index: prompt for prompt, _ in batch}.values():
            _complete(run, folder, prompt)
        drawn += len(batch)
        progress(drawn, len(to_draw))
    missing = sum(len(_missing(run, folder, prompt)) for prompt in run.prompts)
    if not missing:
        run.benchmark.finish(folder, run.prompts, run.samples)
        finish_run(folder, run.samples * len(run.prompts))
    return Drawn(drawn, missing)


def _missing(run: BenchRun, folder: Path, prompt: BenchPrompt) -> list[int]:
    return [sample for sample, name in enumerate(run.files(prompt)) if not is_complete(folder / name)]


def _complete(run: BenchRun, folder: Path, prompt: BenchPrompt) -> None:
    """Make what is made of a prompt's pictures, where they are all there (a kill may have come in between)."""
    if not _missing(run, folder, prompt):
        run.benchmark.complete(folder, prompt, run.samples)


def _batches(items: list[tuple[BenchPrompt, int]], size: int) -> Iterator[list[tuple[BenchPrompt, int]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
