"""What a source of samples is: random access by index, so that shuffling, sharding and resuming are arithmetic.

Invariant: `sample` is a pure function of its arguments and the files; a record that cannot be used raises
`BrokenSample`, which names it, and nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from vargpt.data.order import Order, Permutation, ShardedPermutation
from vargpt.processing.conversation import Conversation

Task = Literal["draw", "caption", "edit", "question", "chat"]
"""What a sample trains: `chat` is a whole conversation as it is, the others are made from records."""


@dataclass(frozen=True)
class Sample:
    """One training conversation.

    Attributes:
        key: names the record; unique and stable inside its source.
        conversation: its images may be files, encoded bytes or PIL images.
    """

    key: str
    conversation: Conversation


class BrokenSample(ValueError):
    """A record or image that cannot be used: which source, which record, why."""

    def __init__(self, source: str, key: str, reason: str) -> None:
        super().__init__(f"source {source!r}, {key}: {reason}")
        self.source, self.key, self.reason = source, key, reason

    def __reduce__(self) -> tuple[type[BrokenSample], tuple[str, str, str]]:
        """Survive the way from a worker process."""
        return BrokenSample, (self.source, self.key, self.reason)


class Source(Protocol):
    """Samples by index."""

    @property
    def name(self) -> str:
        """What the recipe calls it."""

    @property
    def tasks(self) -> frozenset[Task]:
        """The tasks that it has samples for."""

    def count(self, task: Task) -> int:
        """How many samples it has for a task; 0 for a task that it does not know."""

    def shards(self, task: Task) -> Sequence[int]:
        """Samples that lie close together, as lengths that add up to `count`; one length where any order is as good."""

    def sample(self, task: Task, index: int, chance: random.Random, variety: float) -> Sample:
        """One sample.

        Args:
            index: in [0, count(task)).
            chance: all choice of wording comes from here.
            variety: chance of another wording than the canonical one.

        Raises:
            BrokenSample: if the record or an image of it cannot be used.
        """


def shuffled(source: Source, task: Task, seed: int, window: int = 8) -> Order:
    """The order to read a source's samples in: a full shuffle, or one that stays inside `window` shards at a time.

    Raises:
        ValueError: if the source has no samples for the task.
    """
    lengths = source.shards(task)
    if not sum(lengths):
        known = ", ".join(sorted(source.tasks)) or "none"
        raise ValueError(f"source {source.name!r} has no samples for the task {task!r}; it has: {known}")
    if len(lengths) == 1:
        return Permutation(lengths[0], seed)
    return ShardedPermutation(lengths, seed, window)
