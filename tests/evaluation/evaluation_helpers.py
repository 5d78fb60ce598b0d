"""A subject that answers from a script instead of a model, and scenes in which given facts hold.

Invariant: pictures are read by the real checker.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vargpt.data.scenes.checker import Reading, read
from vargpt.data.scenes.facts import Facts, judge
from vargpt.data.scenes.render import render
from vargpt.data.scenes.world import Scene, Thing, is_legible
from vargpt.evaluation.subject import Subject
from vargpt.scales import ScaleSchedule


class Scripted:
    """Answers questions with `answer(picture, text)` and draws `paint(request, seed)`, uint8 [H, W, 3].

    Requests are what `draw_request` and `edit_request` were given.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        paint: Callable[[Any, int], np.ndarray] | None = None,
        answer: Callable[[Any, str], str] | None = None,
        schedule: ScaleSchedule | None = None,
    ) -> None:
        self.paint, self.answer, self.seeds = paint, answer, list[int]()
        self.schedule = schedule

    def draw_request(self, words: str) -> str:
        return words

    def edit_request(self, source: Any, instruction: str) -> tuple[Any, str]:
        return source, instruction

    def question(self, image: Any, text: str = "what is this?") -> tuple[Any, str]:
        return image, text

    def answers(self, conversations: Sequence[tuple[Any, str]], max_new_tokens: int = 48) -> list[str]:
        assert self.answer is not None and max_new_tokens > 0
        return [self.answer(*conversation) for conversation in conversations]

    def drawings(self, conversations: Sequence[Any], seeds: Sequence[int], schedule: Any = None) -> Tensor:
        assert self.paint is not None
        del schedule
        self.seeds += seeds
        pictures = [self.paint(request, seed) for request, seed in zip(conversations, seeds, strict=True)]
        return torch.stack([torch.from_numpy(picture) for picture in pictures])

    def read(self, images_nHW3: Tensor) -> list[Reading]:
        return [read(picture) for picture in images_nHW3.numpy()]


def scripted(
    paint: Callable[[Any, int], np.ndarray] | None = None, answer: Callable[[Any, str], str] | None = None
) -> Subject:
    """A `Scripted` where a `Subject` is expected."""
    return cast(Subject, Scripted(paint, answer))


def scene_of(facts: Facts, seed: int = 0, background: str = "white") -> Scene:
    """A legible scene in which all facts hold clearly; what they leave open is plain, smaller than large, anywhere."""
    generator = random.Random(seed)
    size = "medium" if len(facts.mentions) < 4 else "small"
    looks = [
        Thing(m.shape or "circle", m.colour or "red", m.size or ("medium" if m.texture else size), m.texture or "plain")
        for m in facts.mentions
    ]
    depth = {relation for _, relation, _ in facts.relations} & {"in front of", "behind"}
    order = [1, 0] if depth == {"in front of"} else list(range(len(looks)))
    for _ in range(200_000):
        x, y = generator.uniform(0.14, 0.86), generator.uniform(0.14, 0.86)
        things = []
        for look in looks:
            reach = 0.3 if depth else 1.0
            things.append(replace(look, x=min(max(x, 0.0), 1.0), y=min(max(y, 0.0), 1.0)))
            x = generator.uniform(max(x - reach, 0.14), min(x + reach, 0.86))
            y = generator.uniform(max(y - reach, 0.14), min(y + reach, 0.86))
        scene = Scene(tuple(things[index] for index in order), facts.background or background)
        overlapping = any(scene.overlaps(a, b) for a in range(len(things)) for b in range(a))
        clear = all(
            relation in scene.relations(order.index(first), order.index(second))
            for first, relation, second in facts.relations
        )
        if (
            clear
            and overlapping == bool(depth)
            and is_legible(scene)
            and all(verdict.holds for verdict in judge(facts, scene))
        ):
            return scene
    raise AssertionError(f"no scene for {facts}")


def painted(scene: Scene, side: int = 96) -> np.ndarray:
    """A scene's picture."""
    return render(scene, side, side)


def recoloured(scene: Scene, colour: str) -> Scene:
    """The scene with all things of one colour."""
    return replace(scene, things=tuple(replace(thing, colour=colour) for thing in scene.things))
