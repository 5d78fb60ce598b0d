"""Make a folder of preference pairs: for `vargpt prefer` and for the `pairs` stage of a recipe.

Invariant: what a shard holds is a function of the painter, the scorer, the prompts and the plan; a run that was stopped
or killed goes on at the first missing shard and ends with bytewise the same files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from PIL import Image

from vargpt.data.pair_records import DrawnImage, Pair, encode_png
from vargpt.data.pairs import PairWriter
from vargpt.inference.pipeline import VargptPipeline
from vargpt.preferences.origin import origin
from vargpt.preferences.progress import Progress
from vargpt.preferences.prompts import PairPrompt
from vargpt.preferences.report import finish_pairs
from vargpt.preferences.sample import Drawing, Painter, draw_samples, picture_seed
from vargpt.preferences.scorers import Scorer
from vargpt.preferences.scoring import scoring
from vargpt.preferences.select import Choice, Reason, best_and_worst, given_and_worst


class Prompts(Protocol):
    """Prompts by number; `prompts[i]` may open files, and raises ValueError for a prompt that cannot be used."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> PairPrompt: ...


@dataclass(frozen=True)
class PairPlan:
    """How pairs are made.

    Attributes:
        num_samples: pictures sampled per prompt.
        margin: least difference of the two scores.
        chosen: `sampled`: best and worst sample; `given`: the data's own picture against a sample (the worst one where
            there is a scorer, else the first).
        seed: of all pictures; see `picture_seed`.
        batch_size: pictures drawn at once; changes nothing else.
        on_error: for a prompt whose pictures cannot be used: `stop`, or `skip` and count it.
        prompts_per_shard: a run that is killed loses at most the work on so many prompts.
        workers: processes that score; 0 scores here. A scorer that asks the model needs 0.
        share: (rank, world): make only the shards whose number is rank modulo world; when all have, one calls
            `finish_pairs`.
    """

    num_samples: int = 8
    margin: float = 0.0
    chosen: Literal["sampled", "given"] = "sampled"
    seed: int = 0
    batch_size: int = 16
    on_error: Literal["stop", "skip"] = "stop"
    prompts_per_shard: int = 16
    workers: int = 0
    share: tuple[int, int] = (0, 1)

    def check(self, scorer: Scorer | None) -> None:
        """Refuse a plan that cannot give pairs.

        Raises:
            ValueError: saying what is missing.
        """
        least = 2 if self.chosen == "sampled" else 1
        if self.num_samples < least:
            raise ValueError(f"num_samples must be at least {least} for pairs of {self.chosen} pictures")
        if self.chosen == "sampled" and scorer is None:
            raise ValueError("pairs of sampled pictures need a scorer that says which is better")
        if self.chosen == "given" and scorer is None and self.num_samples > 1:
            raise ValueError("without a scorer one sample per prompt is used: set num_samples to 1, or give a scorer")
        if self.chosen == "given" and scorer is None and self.margin > 0:
            raise ValueError("a margin needs a scorer, got none")
        if self.margin < 0 or self.batch_size < 1:
            raise ValueError(
                f"margin must not be negative and batch_size at least 1, got {self.margin} and {self.batch_size}"
            )


@dataclass(frozen=True)
class PairsMade:
    """Where a call ended: `finished` is False if it was stopped; the same call goes on. `prompts`: done in all."""

    finished: bool
    prompts: int
    folder: Path


def make_pairs(
    painter: Painter,
    scorer: Scorer | None,
    prompts: Prompts,
    output: Path,
    plan: PairPlan,
    *,
    scorer_name: str | None = None,
    identity: dict[str, Any] | None = None,
    pipeline: VargptPipeline | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PairsMade:
    """Sample, score, pair and write shards; then the index, `report.json` and `index.html`.

    Args:
        painter: `ModelPainter(VargptPipeline(model, processor), sampling, schedule)`, or anything that draws.
        scorer: None only for given pictures.
        prompts: by number; for given pictures each with its target.
        scorer_name: the scorer's spec, for settings and messages.
        identity: what decides the prompts (JSON values), so that a folder of other prompts is refused.
        pipeline: handed to the scorer.
        should_stop: asked between batches.

    Raises:
        ValueError: for a plan that cannot work, a folder that was begun otherwise, a prompt that cannot be used (unless
            the plan skips those), scores that are none.
        RuntimeError: for a service that does not answer.
    """
    plan.check(scorer)
    if not len(prompts):
        raise ValueError("there is no prompt to make pairs for")
    settings = {
        **painter.describe(),
        **(identity or {}),
        "prompts": len(prompts),
        "scorer": scorer_name,
        "chosen": plan.chosen,
        "num_samples": plan.num_samples,
        "margin": plan.margin,
        "seed": plan.seed,
    }
    writer = PairWriter(output, settings, origin(), plan.prompts_per_shard, plan.share)
    progress = Progress(len(prompts), plan.num_samples, writer.next_prompt, plan.share[1])
    with scoring(scorer, scorer_name or "", pipeline, plan.workers) as score_all:
        while writer.next_prompt < len(prompts):
            first = writer.next_prompt
            count = min(max(1, plan.batch_size // plan.num_samples), writer.room, len(prompts) - first)
            rows = _prepare(prompts, range(first, first + count), painter, plan)
            if not _sample(rows, painter, plan, should_stop):
                progress.close()
                return PairsMade(False, writer.next_prompt + writer.room - plan.prompts_per_shard, output)
            usable = [row for row in rows if row.prompt is not None]
            found = score_all([(row.prompt, row.pictures()) for row in usable if row.prompt is not None])
            for row, scores in zip(usable, found, strict=True):
                row.scores = scores
            for row in rows:
                pair, note = _judge(row, painter, plan)
                writer.add(pair, note)
                progress.count(pair is not None)
    writer.finish()
    progress.close()
    if plan.share[1] == 1:
        finish_pairs(output)
    return PairsMade(True, len(prompts), output)


@dataclass
class _Row:
    """A prompt on its way to a pair."""

    prompt: PairPrompt | None
    key: str
    seeds: list[int]
    given: Drawing | None
    broken: str | None
    drawings: list[Drawing]
    scores: list[float] | None = None

    def pictures(self) -> list[Image.Image]:
        """All that are scored: the samples, and after them the given picture where there is one."""
        given = [] if self.given is None else [self.given.image]
        return [*(drawing.image for drawing in self.drawings), *given]


def _prepare(prompts: Prompts, numbers: range, painter: Painter, plan: PairPlan) -> list[_Row]:
    """Open what the prompts name; a broken one stops the run or is kept as broken."""
    rows = []
    for number in numbers:
        seeds = [picture_seed(plan.seed, number, sample) for sample in range(plan.num_samples)]
        prompt, key, given = None, f"prompt {number}", None
        try:
            prompt = prompts[number]
            key = prompt.key
            prompt.sources()
            prompt.picture()
            if plan.chosen == "given":
                if prompt.target is None:
                    raise ValueError(f"{key}: has no picture of its own, which pairs with given pictures need")
                given = painter.encode(prompt.target)
        except ValueError as error:
            if plan.on_error == "stop":
                raise
            rows.append(_Row(None, key, [], None, " ".join(str(error).split()), []))
            continue
        rows.append(_Row(prompt, key, seeds, given, None, []))
    return rows


def _sample(rows: list[_Row], painter: Painter, plan: PairPlan, should_stop: Callable[[], bool]) -> bool:
    """Draw the samples of all usable rows; False if it was told to stop."""
    usable = [row for row in rows if row.prompt is not None]
    if should_stop():
        return False
    if not usable:
        return True
    requests = [row.prompt.request for row in usable if row.prompt is not None]
    batches = draw_samples(painter, requests, [row.seeds for row in usable], plan.batch_size)
    for batch in batches:
        for number, drawing in batch:
            usable[number].drawings.append(drawing)
        if should_stop() and len(usable[-1].drawings) < plan.num_samples:
            return False
    return True


def _judge(row: _Row, painter: Painter, plan: PairPlan) -> tuple[Pair | None, dict[str, Any]]:
    """Pair a row's pictures by their scores; the note holds all that the report wants to know."""
    if row.prompt is None:
        return None, {"key": row.key, "outcome": "broken", "reason": row.broken}
    given = row.given
    scores: list[float] | None = None
    given_score: float | None = None
    choice: Choice | Reason = Choice(None, 0)
    if row.scores is not None:
        scores = row.scores[: len(row.drawings)]
        if given is None:
            choice = best_and_worst(scores, plan.margin)
        else:
            given_score = row.scores[-1]
            choice = given_and_worst(given_score, scores, plan.margin)
    note: dict[str, Any] = {"key": row.key, "outcome": "pair", "words": row.prompt.words, "seeds": row.seeds}
    note |= {"scores": scores, "given_score": given_score, "chosen": None, "rejected": None}
    if not isinstance(choice, Choice):
        return None, {**note, "outcome": choice}
    note |= {"chosen": choice.chosen, "rejected": choice.rejected}
    better = given if choice.chosen is None else row.drawings[choice.chosen]
    assert better is not None
    better_score = given_score if choice.chosen is None or scores is None else scores[choice.chosen]
    worse = row.drawings[choice.rejected]
    worse_score = None if scores is None else scores[choice.rejected]
    pair = Pair(
        row.key,
        row.prompt.prompt,
        row.prompt.answer,
        DrawnImage(encode_png(better.image), better.bits_Ld, better_score, better.seed),
        DrawnImage(encode_png(worse.image), worse.bits_Ld, worse_score, worse.seed),
        painter.schedule,
    )
    return pair, note
