"""Editing of scenes: is the change made that was asked for, and is everything else as it was?

Invariant: the kinds are equally frequent; sources lie in the part set aside, edits that lead to a held-out combination
are counted apart, and the checker alone judges.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from PIL import Image

from vargpt.data.scenes.checker import judge_edit
from vargpt.data.scenes.edits import Edit, EditKind, make_edit
from vargpt.data.scenes.render import render
from vargpt.data.scenes.sampler import sample_scene
from vargpt.data.scenes.words import long_caption
from vargpt.data.scenes.world import Split
from vargpt.evaluation.intervals import Estimate
from vargpt.evaluation.reading import in_words
from vargpt.evaluation.subject import Subject
from vargpt.evaluation.task import Judged, Measure, example_seed

KINDS: tuple[EditKind, ...] = get_args(EditKind)


@dataclass(frozen=True)
class SceneEdit:
    """An edit with its place."""

    key: str
    edit: Edit
    split: Split


class Editing:
    """Share of edits whose change was made (`done`), share of the rest that was kept, and both without fault (`right`).

    Args:
        per_kind: edits of each kind without held-out combinations.
        unseen_per_kind: the same whose target shows one.
        image_size: pixels (height, width) of the pictures.
    """

    name = "editing"
    title = "Editing"

    def __init__(self, per_kind: int, unseen_per_kind: int, image_size: tuple[int, int], seed: int = 0) -> None:
        self.per_kind, self.unseen_per_kind = per_kind, unseen_per_kind
        self.image_size, self.seed = image_size, seed
        groups = ["", *(f"/{kind}" for kind in KINDS), "/unseen"]
        self.measures: Sequence[Measure] = (
            Measure("editing/right", "Edits without fault (done, all else kept)"),
            *(Measure(f"editing/done{group}", f"Edits done{_named(group)}") for group in groups),
            *(Measure(f"editing/kept{group}", f"Rest kept in edits{_named(group)}") for group in groups),
        )

    def examples(self) -> list[SceneEdit]:
        """All edits, kind by kind."""
        seen = [(kind, index) for kind in KINDS for index in range(self.per_kind)]
        # An edit of the background leads to no combination: there is none that is unseen.
        unseen = [(kind, index) for kind in KINDS if kind in _COMBINING for index in range(self.unseen_per_kind)]
        return [
            *(self._make(kind, "validation", index) for kind, index in seen),
            *(self._make(kind, "unseen", index) for kind, index in unseen),
        ]

    def _make(self, kind: EditKind, split: Split, index: int) -> SceneEdit:
        key = f"{kind} {split} {index}"
        generator = random.Random(f"evaluation {self.seed} edit {key}")
        height, width = self.image_size
        source_split: Split = "train" if split == "unseen" else split
        while True:
            edit = make_edit(sample_scene(generator, source_split, aspect=width / height), generator, kind, split)
            if edit is not None:
                return SceneEdit(key, edit, split)

    def judge(self, subject: Subject, examples: Sequence[SceneEdit]) -> list[Judged]:
        """Edit, read the results and compare."""
        sources = [render(example.edit.source, *self.image_size) for example in examples]
        conversations = [
            subject.edit_request(Image.fromarray(source), example.edit.instruction)
            for source, example in zip(sources, examples, strict=True)
        ]
        seeds = [example_seed(self.seed, self.name, example.key) for example in examples]
        results = subject.drawings(conversations, seeds)
        judged = []
        for example, source, result, reading in zip(examples, sources, results, subject.read(results), strict=True):
            score = judge_edit(reading, example.edit)
            target = torch.from_numpy(render(example.edit.target, *self.image_size))
            judged.append(
                Judged(
                    example.key,
                    _values(example, score.asked, score.kept),
                    example.edit.instruction,
                    in_words(reading),
                    long_caption(example.edit.target),
                    {"source": torch.from_numpy(source), "target": target, "result": result},
                )
            )
        return judged

    def overall(self, judged: Sequence[Judged]) -> dict[str, Estimate]:
        """Nothing beyond means."""
        del judged
        return {}


_COMBINING: tuple[EditKind, ...] = ("recolour", "add", "move", "replace")
"""Kinds that can make a held-out combination of a scene that has none."""


def _named(group: str) -> str:
    return {"": "", "/unseen": ": to unseen combinations"}.get(group, f": {group.removeprefix('/')}")


def _values(example: SceneEdit, done: bool, kept: float) -> dict[str, float]:
    if example.split == "unseen":
        return {"editing/done/unseen": float(done), "editing/kept/unseen": kept}
    kind = example.edit.kind
    return {
        "editing/right": float(done and kept == 1.0),
        "editing/done": float(done),
        "editing/kept": kept,
        f"editing/done/{kind}": float(done),
        f"editing/kept/{kind}": kept,
    }
