"""What a recipe's stages take from its sources: opened once, named, with what is set aside for validation.

Invariant: nothing that validation looks at is ever trained on, in any role.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vargpt.data.instructions import canonical_caption, canonical_draw, canonical_edit
from vargpt.data.scenes.source import TASKS, SceneTask
from vargpt.data.sources.folder import FolderSource
from vargpt.data.sources.open import open_source
from vargpt.data.sources.policy import CheckedSource
from vargpt.data.sources.scenes import ScenesSource
from vargpt.processing.conversation import Conversation, TextPart
from vargpt.training.recipes.schema import DataEntry, Recipe, stage_entries
from vargpt.training.steps import chance_at

VALIDATION_EXAMPLES = 64
_TEXT_SAMPLES = 4000
"""Conversations per source and task whose words the text tokenizer is trained on; folders give all of theirs."""


class StageData:
    """The sources of a recipe, each opened when a stage first needs it.

    Args:
        data_dir: where relative paths of sources start; None where the recipe needs none.
    """

    def __init__(self, recipe: Recipe, data_dir: Path | None) -> None:
        self._recipe, self.root = recipe, data_dir
        self._opened: dict[str, CheckedSource] = {}
        self._validation: dict[tuple[str, str], list[Conversation]] = {}

    def sources(self, entries: Sequence[DataEntry]) -> dict[str, CheckedSource]:
        """The sources that a stage's data names.

        Raises:
            ValueError: for a source that cannot be opened.
        """
        names = dict.fromkeys(entry.source for entry in entries)
        for name in names:
            if name not in self._opened:
                self._opened[name] = self._open(name)
        return {name: self._opened[name] for name in names}

    def _open(self, name: str) -> CheckedSource:
        recipe, section = self._recipe, self._recipe.sources[name]
        if self.root is None and section.format != "scenes" and not Path(section.path).is_absolute():
            raise ValueError(
                f"source {name!r} is a {section.format} at {section.path!r}: say where it lies with --data"
            )
        sides = [max(recipe.stage_schedule(stage).image_size) for stage in recipe.stages]
        return open_source(
            name,
            section,
            self.root or Path(),
            recipe.validation_fraction,
            style=section.style,
            side=max(sides),
            seed=recipe.seed,
        )

    def texts(self) -> Iterator[str]:
        """Words to train a text tokenizer on: of the training part, without the templates' wording where it can be."""
        entries = [entry for stage in self._recipe.stages for entry in stage_entries(stage)]
        for name, source in self.sources(entries).items():
            if isinstance(source.source, FolderSource):
                folder = source.source.folder
                yield from (record.text for record in folder.split_images("train"))
                yield from (edit.instruction for edit in folder.split_edits("train"))
                continue
            for task in sorted({entry.task for entry in entries if entry.source == name}):
                for index in range(min(source.count(task), _TEXT_SAMPLES)):
                    chance = chance_at(self._recipe.seed, f"source {name}", index, f"texts for {task}")
                    yield from _texts(source.sample(task, index, chance, 1.0).conversation)

    def validation(self, entries: Sequence[DataEntry]) -> dict[str, list[Conversation]]:
        """Conversations by task that sources set aside, in canonical wording; none of formats without such a part."""
        found: dict[str, list[Conversation]] = {"draw": [], "caption": [], "question": [], "edit": []}
        for checked in self.sources(entries).values():
            source = checked.source
            if isinstance(source, FolderSource):
                folder = source.folder
                images = folder.split_images("validation")[:VALIDATION_EXAMPLES]
                edits = folder.split_edits("validation")[:VALIDATION_EXAMPLES]
                found["draw"] += [canonical_draw(r.text, folder.path(r.file_name)) for r in images]
                found["caption"] += [canonical_caption(folder.path(r.file_name), r.text) for r in images]
                found["edit"] += [
                    canonical_edit(folder.path(e.source), folder.path(e.target), e.instruction) for e in edits
                ]
            elif isinstance(source, ScenesSource):
                wanted = {entry.task for entry in entries if entry.source == source.name}
                for task in (task for task in TASKS if task in wanted):
                    found[task] += self._validation_scenes(source, task)
        return found

    def _validation_scenes(self, source: ScenesSource, task: SceneTask) -> list[Conversation]:
        """Made once: several stages ask for the same ones."""
        key = (source.name, task)
        if key not in self._validation:
            self._validation[key] = [source.validation(task, index) for index in range(VALIDATION_EXAMPLES)]
        return self._validation[key]

    def summary(self) -> dict[str, str]:
        """How many samples each opened source has, by task."""
        return {
            name: ", ".join(f"{source.count(task):,} {task}" for task in sorted(source.tasks))
            for name, source in self._opened.items()
        }

    def facts(self) -> dict[str, Any]:
        """What identifies the records of every source that was opened: a result depends on them."""
        return {name: source_facts(source) for name, source in self._opened.items()}


def source_facts(source: CheckedSource) -> dict[str, Any]:
    """Counts by task, and for a folder the hash of its records."""
    facts: dict[str, Any] = {task: source.count(task) for task in sorted(source.tasks)}
    if isinstance(source.source, FolderSource):
        folder = source.source.folder
        records = [record.model_dump() for record in (*folder.images, *folder.edits)]
        facts["sha256"] = hashlib.sha256(json.dumps(records).encode("utf-8", "surrogatepass")).hexdigest()
    return facts


def _texts(conversation: Conversation) -> list[str]:
    return [part.text for turn in conversation.turns for part in turn.content if isinstance(part, TextPart)]
