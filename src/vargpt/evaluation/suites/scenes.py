"""The suite of the small world: questions, drawings by skill, edits, variety.

Invariant: a smaller size asks a part of what a larger one asks, under the same names, so runs of different sizes can be
compared on what they share.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Literal

from vargpt.evaluation.harness import Suite
from vargpt.evaluation.suites.editing import Editing
from vargpt.evaluation.suites.generation import Diversity, Generation
from vargpt.evaluation.suites.understanding import Understanding
from vargpt.evaluation.task import Task
from vargpt.scales import ScaleSchedule

Size = Literal["small", "default", "full"]


@dataclass(frozen=True)
class SceneCounts:
    """How many examples of each kind: questions by kind (10), drawings by skill (6), edits by kind (8) and so on."""

    questions: int
    unseen_questions: int
    drawings: int
    unseen_drawings: int
    captions: int
    long_captions: int
    edits: int
    unseen_edits: int
    diversity_prompts: int
    diversity_seeds: int

    def limited(self, limit: int | None) -> SceneCounts:
        """No number above a limit; a prompt's pictures stay at least two."""
        if limit is None:
            return self
        counts = {field.name: min(getattr(self, field.name), limit) for field in fields(self)}
        return SceneCounts(**{**counts, "diversity_seeds": max(counts["diversity_seeds"], 2)})


SIZES: dict[Size, SceneCounts] = {
    "small": SceneCounts(10, 3, 8, 12, 8, 4, 4, 2, 4, 4),
    "default": SceneCounts(60, 12, 80, 100, 60, 30, 30, 10, 12, 6),
    "full": SceneCounts(200, 50, 200, 400, 200, 100, 100, 50, 40, 8),
}


def scenes_suite(schedule: ScaleSchedule, size: Size = "default", limit: int | None = None, seed: int = 0) -> Suite:
    """All that is asked about scenes.

    Args:
        schedule: of the drawings; pictures that are asked about have its size too.
        limit: at most so many examples of every kind.
        seed: of the questions, prompts, edits and pictures.

    Raises:
        ValueError: for an unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}, expected one of {', '.join(SIZES)}")
    counts = SIZES[size].limited(limit)
    pixels = schedule.image_size
    drawings = {
        "skill": counts.drawings,
        "unseen": counts.unseen_drawings,
        "captions": counts.captions,
        "long-captions": counts.long_captions,
    }
    tasks: list[Task] = [
        Understanding(counts.questions, counts.unseen_questions, pixels, seed),
        Generation(drawings, pixels, seed),
        Editing(counts.edits, counts.unseen_edits, pixels, seed),
        Diversity(counts.diversity_prompts, counts.diversity_seeds, pixels, seed),
    ]
    return Suite(
        "scenes",
        "The small world of scenes",
        tasks,
        headline=("understanding", "generation", "generation/counting", "generation/unseen", "editing/done",
                  "editing/kept"),
        conditions={"seed": seed, "size": size, "limit": limit, "counts": asdict(counts)},
        footnotes=(
            "Pictures are judged by the checker of the scenes alone, from pixels.",
            "Questions, prompts and edits are made with seeds that no training uses.",
        ),
    )  # fmt: skip
