"""Files of conversations as a source: JSON lines or one JSON array, any number of files.

Invariant: a sample is one record of a file, whole and as it is; wording is never changed.

Our own form, one conversation per line (here on three):

    {"messages": [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "now in red"}]},
        {"role": "assistant", "content": [{"type": "image_gen", "image": "b.png"}]}]}
"""

from __future__ import annotations

import itertools
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vargpt.data.sources.parsing import inside, our_conversation
from vargpt.data.sources.protocol import BrokenSample, Sample, Task
from vargpt.data.sources.records import BrokenRecord, RecordFile
from vargpt.processing.conversation import Conversation


class RecordFiles:
    """The records of several files, numbered through.

    Attributes:
        problems: what is wrong with whole files (one that ends in the middle, say).
    """

    def __init__(self, name: str, paths: Sequence[Path]) -> None:
        names = Counter(path.name for path in paths)
        self._name = name
        self._files = [RecordFile(path, path.name if names[path.name] == 1 else str(path)) for path in paths]
        self._starts = list(itertools.accumulate((len(file) for file in self._files), initial=0))
        self.problems = [BrokenSample(name, file.label, file.problem) for file in self._files if file.problem]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int) -> tuple[str, dict[str, Any]]:
        """Key and record.

        Raises:
            BrokenSample: if the record is not a JSON object.
        """
        file_index = bisect_right(self._starts, index) - 1
        file, number = self._files[file_index], index - self._starts[file_index]
        try:
            return file.key(number), file.read(number)
        except BrokenRecord as error:
            raise BrokenSample(self._name, file.key(number), str(error)) from error


class RecordSource:
    """Whole conversations (task `chat`) from records that `parse` understands."""

    tasks: frozenset[Task] = frozenset({"chat"})

    def __init__(self, name: str, paths: Sequence[Path], parse: Callable[[dict[str, Any]], Conversation]) -> None:
        self.name = name
        self._records = RecordFiles(name, paths)
        self._parse = parse
        self.problems = self._records.problems

    def count(self, task: Task) -> int:
        """Records, for the task `chat`."""
        return len(self._records) if task == "chat" else 0

    def shards(self, task: Task) -> Sequence[int]:
        """One: records are read in any order."""
        return (self.count(task),)

    def sample(self, task: Task, index: int, chance: random.Random, variety: float) -> Sample:
        """One conversation as it stands in its file; `chance` and `variety` have nothing to choose."""
        if not 0 <= index < self.count(task):
            raise ValueError(f"source {self.name!r} has {self.count(task)} samples for {task!r}, got index {index}")
        key, record = self._records.read(index)
        try:
            return Sample(key, self._parse(record))
        except BrokenRecord as error:
            raise BrokenSample(self.name, key, str(error)) from error


def conversations_source(name: str, paths: Sequence[Path], images: Path) -> RecordSource:
    """Conversations in our own form; image names are relative to `images`."""
    resolve = inside(images)
    return RecordSource(name, paths, lambda record: our_conversation(record, resolve))
