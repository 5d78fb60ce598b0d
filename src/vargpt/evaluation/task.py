"""The seam of evaluation: a suite is a list of tasks, a task judges examples one by one, everything else is shared.

Invariant: an example's key, request and seed are functions of the task and its size alone, so two models (or one model
twice) answer exactly the same examples, and paired comparisons match them by key.

    examples ── Task.judge(subject, batch) ──► Judged ── means with bootstrap intervals ──► results.json, page, compare
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from vargpt.evaluation.intervals import Estimate
    from vargpt.evaluation.subject import Subject

Unit = Literal["percent", "dB", "number"]


@dataclass(frozen=True)
class Measure:
    """One number of a report: `name` is its key in `results.json` ("generation/counting"), `title` what people read.

    Attributes:
        unit: values are shares in [0, 1] for `percent`, else plain numbers.
        higher_is_better: None where neither is (a rate, a length).
    """

    name: str
    title: str
    unit: Unit = "percent"
    higher_is_better: bool | None = True


@dataclass(frozen=True)
class Judged:
    """One example after the model answered it.

    Attributes:
        key: names the example within its task, the same for every model.
        values: by the names of the task's measures; an example has those that apply to it.
        prompt: what was asked, in words.
        answer: what the model said, or what a checker read from its picture.
        expected: what would have been right.
        pictures: uint8 [H, W, 3] by role, in the order to show ("source", "target", "result").
        features: what `Task.overall` needs of an example, never shown.
    """

    key: str
    values: Mapping[str, float]
    prompt: str = ""
    answer: str = ""
    expected: str = ""
    pictures: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    features: Tensor | None = field(default=None, repr=False)


class Task(Protocol):
    """One ability, measured: which examples there are, and how the model's answers to them are judged."""

    name: str
    title: str
    measures: Sequence[Measure]

    def examples(self) -> Sequence[Any]:
        """All examples, cheap to list (pictures are made when they are judged)."""

    def judge(self, subject: Subject, examples: Sequence[Any]) -> list[Judged]:
        """Let the model answer a batch of examples and judge each: one `Judged` per example, in order."""

    def overall(self, judged: Sequence[Judged]) -> dict[str, Estimate]:
        """Measures that are no mean over examples (a Fréchet distance, an entropy), with intervals; {} for most."""


def example_seed(seed: int, task: str, key: str) -> int:
    """The seed, 63 bits, of an example's picture, by the evaluation's seed and the example's name."""
    digest = hashlib.sha256(f"evaluation {seed} {task} {key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
