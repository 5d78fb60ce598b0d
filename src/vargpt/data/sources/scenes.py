"""Generated scenes as a source: drawn on the fly, without files.

Invariant: sample i of a task is always the same scene in the same words; nothing of the held-out splits is in any
sample.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from vargpt.data.scenes.questions import ALL_KINDS, QUESTION_KINDS, QuestionKind
from vargpt.data.scenes.sampler import KIND_WEIGHTS, Kind
from vargpt.data.scenes.source import TASKS, SceneTask, scene_example
from vargpt.data.sources.protocol import Sample, Task
from vargpt.processing.conversation import Conversation

COUNT = 1_000_000
SIDE = 256


class ScenesSource:
    """`count` scenes per task (draw, caption, question, edit), `side` pixels high and wide.

    Args:
        kinds: of scenes (of the sources of edits), as often as each is among all; every kind where None.
        questions: asked about one scene, at most (validation asks one).
        question_kinds: what is asked about, in training and validation; everything where None.
        long_captions: share of captions in sentences, in training and validation.
        drafts: share of drawings and edits that say first what they will show, of captions that say it of theirs,
            and of questions that are asked after it.
        inventories: share of captions that say of every shape what it is like.
    """

    tasks: frozenset[Task] = frozenset(TASKS)

    def __init__(
        self,
        name: str,
        count: int = COUNT,
        side: int = SIDE,
        seed: int = 0,
        kinds: Sequence[str] | None = None,
        questions: int = 1,
        question_kinds: Sequence[str] | None = None,
        long_captions: float = 0.0,
        drafts: float = 0.0,
        inventories: float = 0.0,
    ) -> None:
        if count < 1:
            raise ValueError(f"source {name!r}: count must be at least 1, got {count}")
        self.name = name
        self._kinds: list[Kind] | None = None if kinds is None else _known_kinds(name, kinds)
        self._count, self._side, self._seed = count, side, seed
        self._questions, self._long_captions = questions, long_captions
        self._asked = QUESTION_KINDS if question_kinds is None else _known_questions(name, question_kinds)
        self._drafts, self._inventories = drafts, inventories

    def count(self, task: Task) -> int:
        """As many as were asked for, for each task."""
        return self._count if task in self.tasks else 0

    def shards(self, task: Task) -> Sequence[int]:
        """One: scenes are made in any order."""
        return (self.count(task),)

    def validation(self, task: SceneTask, index: int) -> Conversation:
        """A scene of the part set aside, in its canonical words; see `vargpt.data.scenes`."""
        side, kind = self._side, self._kind(task, index)
        example = scene_example(
            self._seed, index, task, height=side, width=side, split="validation", kind=kind, variety=0.0,
            question_kinds=self._asked, long_captions=self._long_captions, drafts=self._drafts,
            inventories=self._inventories,
        )  # fmt: skip
        return example.conversation

    def sample(self, task: Task, index: int, chance: random.Random, variety: float) -> Sample:
        """One scene, worded by its own number; see `Source.sample`."""
        if not 0 <= index < self.count(task) or task == "chat":
            raise ValueError(f"source {self.name!r} has {self.count(task)} samples for {task!r}, got index {index}")
        side, kind = self._side, self._kind(task, index)
        example = scene_example(
            self._seed, index, task, height=side, width=side, kind=kind, variety=variety,
            questions=self._questions, question_kinds=self._asked, long_captions=self._long_captions,
            drafts=self._drafts, inventories=self._inventories,
        )  # fmt: skip
        return Sample(f"{task} {index}", example.conversation)

    def _kind(self, task: Task, index: int) -> Kind | None:
        if self._kinds is None:
            return None
        generator = random.Random(f"kind {self._seed} {index} {task}")
        return generator.choices(self._kinds, [KIND_WEIGHTS[kind] for kind in self._kinds])[0]


def _known_kinds(name: str, kinds: Sequence[str]) -> list[Kind]:
    found: list[Kind] = [kind for kind in KIND_WEIGHTS if kind in kinds and kind != "empty"]
    if not kinds or len(found) != len(kinds):
        choice = ", ".join(kind for kind in KIND_WEIGHTS if kind != "empty")
        raise ValueError(f"source {name!r}: kinds must be different ones of {choice}, got {list(kinds)}")
    return found


def _known_questions(name: str, kinds: Sequence[str]) -> list[QuestionKind]:
    found = [kind for kind in ALL_KINDS if kind in kinds]
    if not kinds or len(found) != len(kinds):
        choice = ", ".join(ALL_KINDS)
        raise ValueError(f"source {name!r}: question_kinds must be different ones of {choice}, got {list(kinds)}")
    return found
