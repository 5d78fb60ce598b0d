"""Generated scenes as a source: drawn on the fly, without files.

Invariant: sample i of a task is always the same scene in the same words; nothing of the held-out splits is in any
sample.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from vargpt.data.scenes.source import TASKS, SceneTask, scene_example
from vargpt.data.sources.protocol import Sample, Task
from vargpt.processing.conversation import Conversation

COUNT = 1_000_000
SIDE = 256


class ScenesSource:
    """`count` scenes per task (draw, caption, question, edit), `side` pixels high and wide."""

    tasks: frozenset[Task] = frozenset(TASKS)

    def __init__(self, name: str, count: int = COUNT, side: int = SIDE, seed: int = 0) -> None:
        if count < 1:
            raise ValueError(f"source {name!r}: count must be at least 1, got {count}")
        self.name = name
        self._count, self._side, self._seed = count, side, seed

    def count(self, task: Task) -> int:
        """As many as were asked for, for each task."""
        return self._count if task in self.tasks else 0

    def shards(self, task: Task) -> Sequence[int]:
        """One: scenes are made in any order."""
        return (self.count(task),)

    def validation(self, task: SceneTask, index: int) -> Conversation:
        """A scene of the part set aside, in its canonical words; see `vargpt.data.scenes`."""
        side = self._side
        example = scene_example(self._seed, index, task, height=side, width=side, split="validation", variety=0.0)
        return example.conversation

    def sample(self, task: Task, index: int, chance: random.Random, variety: float) -> Sample:
        """One scene, worded by its own number; see `Source.sample`."""
        if not 0 <= index < self.count(task) or task == "chat":
            raise ValueError(f"source {self.name!r} has {self.count(task)} samples for {task!r}, got index {index}")
        example = scene_example(self._seed, index, task, height=self._side, width=self._side, variety=variety)
        return Sample(f"{task} {index}", example.conversation)
