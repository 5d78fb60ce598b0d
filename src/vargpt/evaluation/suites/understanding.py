"""Understanding of scenes: questions of every kind about fresh pictures, judged by exact match.

Invariant: the kinds are equally frequent, half of the scenes are fresh ones of the training part and half of the part
set aside, yes is the answer of half of the questions of existence and of relations, and no scene was made with a seed
that training uses. Scenes with held-out combinations are counted apart.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from vargpt.data.scenes.questions import QUESTION_KINDS, Question, QuestionKind, ask
from vargpt.data.scenes.render import render
from vargpt.data.scenes.sampler import sample_scene
from vargpt.data.scenes.world import Scene, Split
from vargpt.evaluation.intervals import Estimate
from vargpt.evaluation.subject import Subject
from vargpt.evaluation.task import Judged, Measure

_YES_NO = ("yes", "no")
_ALWAYS_YES_NO: tuple[QuestionKind, ...] = ("existence", "relation")
"""Kinds with no other answers: they take turns, or among 60 questions chance would make three in four a yes."""
_MAX_ANSWER_TOKENS = 24


@dataclass(frozen=True)
class SceneQuestion:
    """A question, the scene it is about and where that comes from."""

    key: str
    scene: Scene
    question: Question
    split: Split


class Understanding:
    """Exact match of greedy answers, case and outer space aside.

    Args:
        per_kind: questions of each kind on scenes without held-out combinations.
        unseen_per_kind: the same on scenes with one.
        image_size: pixels (height, width) of the pictures.
    """

    name = "understanding"
    title = "Understanding"

    def __init__(self, per_kind: int, unseen_per_kind: int, image_size: tuple[int, int], seed: int = 0) -> None:
        self.per_kind, self.unseen_per_kind = per_kind, unseen_per_kind
        self.image_size, self.seed = image_size, seed
        self.measures: Sequence[Measure] = (
            Measure("understanding", "Understanding, all questions"),
            *(Measure(f"understanding/{kind}", f"Understanding: {kind}") for kind in QUESTION_KINDS),
            Measure("understanding/yes-no", "Understanding: answers yes or no"),
            Measure("understanding/unseen", "Understanding: scenes with unseen combinations"),
        )

    def examples(self) -> list[SceneQuestion]:
        """All questions, kind by kind."""
        seen: list[tuple[QuestionKind, Split, int]] = [
            (kind, "validation" if index % 2 else "train", index)
            for kind in QUESTION_KINDS
            for index in range(self.per_kind)
        ]
        unseen: list[tuple[QuestionKind, Split, int]] = [
            (kind, "unseen", index) for kind in QUESTION_KINDS for index in range(self.unseen_per_kind)
        ]
        return [self._make(*place) for place in (*seen, *unseen)]

    def _make(self, kind: QuestionKind, split: Split, index: int) -> SceneQuestion:
        key = f"{kind} {split} {index}"
        generator = random.Random(f"evaluation {self.seed} question {key}")
        height, width = self.image_size
        while True:
            scene = sample_scene(generator, split, aspect=width / height)
            question = ask(scene, generator, kind)
            if question is not None and (kind not in _ALWAYS_YES_NO or question.answer == _YES_NO[index // 2 % 2]):
                return SceneQuestion(key, scene, question, split)

    def judge(self, subject: Subject, examples: Sequence[SceneQuestion]) -> list[Judged]:
        """Ask, and compare with the right answers."""
        pictures = [render(example.scene, *self.image_size) for example in examples]
        conversations = [
            subject.question(Image.fromarray(picture), example.question.text)
            for picture, example in zip(pictures, examples, strict=True)
        ]
        answers = subject.answers(conversations, _MAX_ANSWER_TOKENS)
        return [
            Judged(
                example.key,
                _values(example, answer),
                example.question.text,
                answer.strip(),
                example.question.answer,
                {"source": torch.from_numpy(picture)},
            )
            for example, answer, picture in zip(examples, answers, pictures, strict=True)
        ]

    def overall(self, judged: Sequence[Judged]) -> dict[str, Estimate]:
        """Nothing beyond means."""
        del judged
        return {}


def _values(example: SceneQuestion, answer: str) -> dict[str, float]:
    right = float(answer.strip().casefold() == example.question.answer.casefold())
    if example.split == "unseen":
        return {"understanding/unseen": right}
    values = {"understanding": right, f"understanding/{example.question.kind}": right}
    if example.question.choices == _YES_NO:
        values["understanding/yes-no"] = right
    return values
