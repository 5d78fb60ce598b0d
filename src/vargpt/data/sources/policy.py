"""What happens to records that cannot be used: the run stops, or they are named, counted and replaced.

Invariant: the replacement is the next usable record in the source's own order, so it depends on the files alone: a
resumed run, and every rank, takes the same one.
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vargpt.data.sources.protocol import BrokenSample, Sample, Source, Task
from vargpt.processing.conversation import Conversation, DrawPart, ImagePart, Message, TextPart
from vargpt.processing.images import open_image

OnError = Literal["stop", "skip"]
LIMIT = 1000
"""How many records in a row may be unusable before that is taken for a mistake in the set-up."""


@dataclass(frozen=True)
class BrokenSummary:
    """How much of a source could not be used in this process so far.

    Attributes:
        records: different records that were named.
        replaced: samples that another record stood in for.
    """

    records: int
    replaced: int


class BrokenLog:
    """Names each broken record once and counts; safe to use from several threads."""

    def __init__(self, report: Callable[[str], None] | None = None) -> None:
        """Args: report: takes one line per broken record; stderr by default."""
        self._report = report or (lambda line: print(line, file=sys.stderr))
        self._seen: set[str] = set()
        self._replaced = 0
        self._lock = threading.Lock()

    def left_out(self, error: BrokenSample) -> None:
        """Note a record that is in no sample at all."""
        self._note(error)

    def replaced(self, error: BrokenSample) -> None:
        """Note a record that the next one stands in for."""
        with self._lock:
            self._replaced += 1
        self._note(error)

    def _note(self, error: BrokenSample) -> None:
        with self._lock:
            new = error.key not in self._seen
            self._seen.add(error.key)
        if new:
            self._report(f"skipped: {error}")

    def summary(self) -> BrokenSummary:
        """The counts so far."""
        with self._lock:
            return BrokenSummary(len(self._seen), self._replaced)


class CheckedSource:
    """A source under a policy for broken records.

    With `skip`, and for images that lie in shards, images are decoded here (to PIL images), so that a broken one is
    found while another record can still take its place; otherwise they stay paths.

    Attributes:
        source: the source itself.
        broken: what could not be used.
    """

    def __init__(self, source: Source, on_error: OnError = "stop", log: BrokenLog | None = None) -> None:
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error must be 'stop' or 'skip', got {on_error!r}")
        self.source, self.on_error = source, on_error
        self.broken = log if log is not None else BrokenLog()

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    @property
    def tasks(self) -> frozenset[Task]:
        """The source's tasks."""
        return self.source.tasks

    def count(self, task: Task) -> int:
        """The source's records, broken ones among them."""
        return self.source.count(task)

    def shards(self, task: Task) -> Sequence[int]:
        """The source's shards."""
        return self.source.shards(task)

    def sample(self, task: Task, index: int, chance: random.Random, variety: float) -> Sample:
        """One sample; under `skip` the next usable one where this one is broken.

        Raises:
            BrokenSample: under `stop`, for a broken record or image.
            ValueError: under `skip`, if none of the next `LIMIT` records can be used.
        """
        if self.on_error == "stop":
            return _decoded(self.name, self.source.sample(task, index, chance, variety), paths=False)
        state = chance.getstate()
        count = self.count(task)
        tries = min(LIMIT, count)
        for step in range(tries):
            try:
                sample = self.source.sample(task, (index + step) % count, chance, variety)
                return _decoded(self.name, sample, paths=True)
            except BrokenSample as error:
                last = error
                self.broken.replaced(error)
                chance.setstate(state)
        raise ValueError(f"{tries} records in a row cannot be used; is the path of the images right? The last: {last}")


def _decoded(name: str, sample: Sample, paths: bool) -> Sample:
    """The sample with its encoded images (and files, if `paths`) as PIL images."""

    def decode(part: Any) -> Any:
        if isinstance(part, TextPart) or not isinstance(part.image, (Path, bytes) if paths else bytes):
            return part
        try:
            image = open_image(part.image)
        except ValueError as error:
            raise BrokenSample(name, sample.key, str(error)) from error
        return ImagePart(image=image) if isinstance(part, ImagePart) else DrawPart(image=image)

    messages = tuple(
        Message(role=message.role, content=tuple(decode(part) for part in message.content))
        for message in sample.conversation.messages
    )
    return Sample(sample.key, Conversation(messages=messages))
