"""An image folder as a source: drawing, captioning and editing samples of its training part.

Invariant: no image of the validation part is in any sample.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from vargpt.data.folder import ImageFolder
from vargpt.data.instructions import Style, caption_conversation, draw_conversation, edit_conversation
from vargpt.data.sources.protocol import Sample, Task

_TASKS: tuple[Task, ...] = ("draw", "caption", "edit")


class FolderSource:
    """Samples of an `ImageFolder`; images are given as paths."""

    def __init__(self, name: str, folder: ImageFolder, style: Style = "short") -> None:
        """Args: style: the family of wordings."""
        self.name = name
        self._style: Style = style
        self.folder = folder
        self._images = folder.split_images("train")
        self._edits = [
            (number, edit) for number, edit in enumerate(folder.edits, 1) if folder.edit_part(edit) == "train"
        ]
        self.tasks: frozenset[Task] = frozenset(task for task in _TASKS if self.count(task))

    def count(self, task: Task) -> int:
        """Training images, or training edit pairs."""
        if task in ("draw", "caption"):
            return len(self._images)
        return len(self._edits) if task == "edit" else 0

    def shards(self, task: Task) -> Sequence[int]:
        """One: files are read in any order."""
        return (self.count(task),)

    def sample(self, task: Task, index: int, chance: random.Random, variety: float) -> Sample:
        """One conversation about an image or an edit pair; see `Source.sample`."""
        if not 0 <= index < self.count(task):
            raise ValueError(f"source {self.name!r} has {self.count(task)} samples for {task!r}, got index {index}")
        if task == "edit":
            number, edit = self._edits[index]
            source, target = self.folder.path(edit.source), self.folder.path(edit.target)
            conversation = edit_conversation(source, target, edit.instruction, chance, variety, self._style)
            return Sample(f"edit {number}: {edit.source} -> {edit.target}", conversation)
        record = self._images[index]
        path = self.folder.path(record.file_name)
        if task == "draw":
            return Sample(record.file_name, draw_conversation(record.text, path, chance, variety, self._style))
        return Sample(record.file_name, caption_conversation(path, record.text, chance, variety, self._style))
