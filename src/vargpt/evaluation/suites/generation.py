"""Drawing of scenes: GenEval's six skills, unseen combinations, captions of any scene, and variety across seeds.

Invariant: the checker alone judges; a drawing is right when all facts that its skill is about hold, the number of
things among them. The overall score is the mean over the six skills, as in GenEval; all have equally many prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from torch import Tensor

from vargpt.data.scenes.checker import Reading
from vargpt.data.scenes.facts import share_that_holds
from vargpt.data.scenes.world import BACKGROUNDS, place_of
from vargpt.evaluation.intervals import Estimate
from vargpt.evaluation.reading import in_words
from vargpt.evaluation.subject import Subject
from vargpt.evaluation.suites.prompts import GROUPS, SKILLS, DrawPrompt, draw_prompt
from vargpt.evaluation.task import Judged, Measure, example_seed
from vargpt.preferences.scenes import clearness

COLLAPSED_DISTANCE = 0.02
"""Pictures of one prompt that differ by less than this (root mean square, black to white = 1) are one picture."""


class Generation:
    """Right drawings by skill.

    Args:
        counts: prompts of each group of `prompts.GROUPS`; those not named have none. The six skills take one number,
            under `skill`.
        image_size: pixels (height, width) of the pictures.
    """

    name = "generation"
    title = "Drawing"

    def __init__(self, counts: Mapping[str, int], image_size: tuple[int, int], seed: int = 0) -> None:
        self.counts = {group: counts.get("skill" if group in SKILLS else group, 0) for group in GROUPS}
        self.image_size, self.seed = image_size, seed
        self.measures: Sequence[Measure] = (
            Measure("generation", "Drawing, mean of the six skills"),
            *(Measure(f"generation/{group}", f"Drawing: {title}") for group, title in GROUPS.items()),
            Measure("generation/unseen-pairs", "Drawing: unseen colour and shape"),
            Measure("generation/unseen-relations", "Drawing: unseen relations"),
            Measure("generation/every-fact", "Drawings of the six skills with every fact right"),
            Measure("generation/facts", "Facts right in drawings of the six skills"),
            Measure("generation/clearness", "Clearness of the six skills' drawings"),
        )

    def examples(self) -> list[DrawPrompt]:
        """All prompts, group by group."""
        height, width = self.image_size
        return [
            draw_prompt(self.seed, group, index, width / height)
            for group, count in self.counts.items()
            for index in range(count)
        ]

    def judge(self, subject: Subject, examples: Sequence[DrawPrompt]) -> list[Judged]:
        """Draw, read and compare."""
        conversations = [subject.draw_request(example.prompt) for example in examples]
        seeds = [example_seed(self.seed, self.name, example.key) for example in examples]
        results = subject.drawings(conversations, seeds)
        return [
            judge_drawing(example, reading, result)
            for example, reading, result in zip(examples, subject.read(results), results, strict=True)
        ]

    def overall(self, judged: Sequence[Judged]) -> dict[str, Estimate]:
        """Nothing beyond means: with equally many prompts per skill the mean over skills is one over drawings."""
        del judged
        return {}


def judge_drawing(example: DrawPrompt, reading: Reading, result: Tensor) -> Judged:
    """Judge what was read from the drawing (uint8 [H, W, 3]) of a prompt."""
    right = float(all(verdict.holds for verdict in reading.judge(example.judged)))
    verdicts = reading.judge(example.facts)
    values = {f"generation/{example.group}": right}
    if example.group in SKILLS:
        values["generation"] = right
        values["generation/every-fact"] = float(all(verdict.holds for verdict in verdicts))
        values["generation/facts"] = share_that_holds(verdicts)
        values["generation/clearness"] = clearness(reading)
    if example.group == "unseen":
        part = "relations" if example.facts.relations else "pairs"
        values[f"generation/unseen-{part}"] = right
    wrong = ", ".join(f"{verdict.kind} {verdict.said}" for verdict in verdicts if not verdict.holds)
    seen = in_words(reading) + (f" (not there: {wrong})" if wrong else "")
    return Judged(example.key, values, example.prompt, seen, pictures={"result": result})


class Diversity:
    """How much the pictures of one prompt differ where the prompt says nothing: places and background.

    Args:
        prompts: how many, of the skills in turn.
        seeds: pictures of each.
        image_size: pixels (height, width) of the pictures.

    Raises:
        ValueError: for fewer than two seeds.
    """

    name = "diversity"
    title = "Variety across seeds"
    groups = ("single-object", "two-objects", "counting", "position")
    measures: Sequence[Measure] = (
        Measure("diversity/distance", "Distance between pictures of a prompt (RMS)", "number"),
        Measure("diversity/layouts", "Different layouts among pictures of a prompt"),
        Measure("diversity/backgrounds", "Different backgrounds, of those that there could be"),
        Measure("diversity/collapsed", "Prompts whose pictures are all alike", higher_is_better=False),
    )

    def __init__(self, prompts: int, seeds: int, image_size: tuple[int, int], seed: int = 0) -> None:
        if seeds < 2:
            raise ValueError(f"diversity needs at least 2 pictures of a prompt, got {seeds}")
        self.prompts, self.seeds, self.image_size, self.seed = prompts, seeds, image_size, seed

    def examples(self) -> list[DrawPrompt]:
        """Prompts that leave much open."""
        height, width = self.image_size
        count = len(self.groups)
        # Prompts of other numbers than those of `Generation`.
        return [
            draw_prompt(self.seed, self.groups[index % count], 1_000_000 + index, width / height)
            for index in range(self.prompts)
        ]

    def judge(self, subject: Subject, examples: Sequence[DrawPrompt]) -> list[Judged]:
        """Draw every prompt with every seed and compare its pictures with each other."""
        requests = [subject.draw_request(example.prompt) for example in examples for _ in range(self.seeds)]
        seeds = [
            example_seed(self.seed, self.name, f"{example.key} {copy}")
            for example in examples
            for copy in range(self.seeds)
        ]
        results = subject.drawings(requests, seeds)
        readings = subject.read(results)
        judged = []
        for index, example in enumerate(examples):
            part = slice(index * self.seeds, (index + 1) * self.seeds)
            pictures = {f"seed {copy}": picture for copy, picture in enumerate(results[part])}
            values = variety(results[part], readings[part])
            backgrounds = ", ".join(reading.scene.background for reading in readings[part])
            judged.append(Judged(f"{example.key} x{self.seeds}", values, example.prompt, backgrounds, "", pictures))
        return judged

    def overall(self, judged: Sequence[Judged]) -> dict[str, Estimate]:
        """Nothing beyond means."""
        del judged
        return {}


def variety(images_nHW3: Tensor, readings: Sequence[Reading]) -> dict[str, float]:
    """Compare the pictures of one prompt with each other.

    Returns:
        The measures of `Diversity`: mean over pairs of the root mean square difference (black to white = 1); shares of
        different layouts (which ninths of the picture are taken) and backgrounds, 1 where as many are seen as can be;
        and 1 where all layouts and backgrounds are one, or all pictures one.
    """
    distances = [rms(first, second) for first, second in combinations(images_nHW3, 2)]
    layouts = {tuple(sorted(place_of(t.x, t.y) for t in reading.scene.things)) for reading in readings}
    backgrounds = {reading.scene.background for reading in readings if reading.background_known}
    alike = len(layouts) == 1 and len(backgrounds) <= 1
    return {
        "diversity/distance": sum(distances) / len(distances),
        "diversity/layouts": (len(layouts) - 1) / (len(readings) - 1),
        "diversity/backgrounds": max(len(backgrounds) - 1, 0) / (min(len(readings), len(BACKGROUNDS)) - 1),
        "diversity/collapsed": float(alike or max(distances) < COLLAPSED_DISTANCE),
    }


def rms(first: Tensor, second: Tensor) -> float:
    """Root mean square difference of two pictures in bytes, black to white = 1."""
    return float((first.float() - second.float()).square().mean().sqrt()) / 255.0
