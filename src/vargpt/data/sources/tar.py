"""Tar shards (webdataset style) as a source: `key.jpg` with `key.txt` or `key.json`.

Invariant: opening reads one small header per shard; a sample is read by seeking, without going through its shard. The
first record decides what the shards hold: captioned images (tasks `draw` and `caption`) or conversations (`chat`).

Captions: `key.txt`, or `key.json` that is a string or has `caption` or `text`. Conversations: `key.json` in our form,
whose images are named by the rest of their member's name: `{"type": "image", "image": "source.png"}` for
`key.source.png`. Other members are left alone.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import time
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from vargpt.data.instructions import Style, caption_conversation, draw_conversation
from vargpt.data.sources import tar_index
from vargpt.data.sources.index_file import Index, kept_facts, load_or_build, read_ranges
from vargpt.data.sources.parsing import Resolve, our_conversation
from vargpt.data.sources.protocol import BrokenSample, Sample, Task
from vargpt.data.sources.records import MAX_RECORD_BYTES, BrokenRecord, parse_json
from vargpt.processing.conversation import Conversation
from vargpt.processing.images import MAX_FILE_BYTES

_OPEN_INDEXES = 64
_LOOKED_AT = 16
_OPENED_AT_A_TIME = 8
_TELL_EVERY = 10.0
"""Seconds between lines about the progress of indexing."""


class TarSource:
    """Captioned images or conversations in tar shards.

    Attributes:
        problems: damaged shards and records that were left out of the index (the first ones of each shard).
        problem_count: all of them.
    """

    def __init__(self, name: str, paths: Sequence[Path], style: Style = "short") -> None:
        """Open the shards, indexing those that are new or have changed.

        Args:
            style: the family of wordings.

        Raises:
            ValueError: if a shard cannot be read.
        """
        self.name, self._paths = name, list(paths)
        self._style: Style = style
        self._index = lru_cache(maxsize=_OPEN_INDEXES)(self._load)
        found = _all_facts(name, self._paths)
        self._lengths = [int(facts["records"]) for facts in found]
        self.problem_count = sum(facts["problem_count"] for facts in found)
        self.problems = [
            BrokenSample(name, f"{path.name}/{key}", reason)
            for path, facts in zip(self._paths, found, strict=True)
            for key, reason in facts["problems"]
        ]
        self._starts = list(itertools.accumulate(self._lengths, initial=0))
        conversations = self._holds_conversations()
        self.tasks: frozenset[Task] = frozenset({"chat"} if conversations else {"draw", "caption"})

    def count(self, task: Task) -> int:
        """Records, for the tasks that they serve."""
        return self._starts[-1] if task in self.tasks else 0

    def shards(self, task: Task) -> Sequence[int]:
        """Records per shard."""
        return self._lengths if task in self.tasks else (0,)

    def sample(self, task: Task, index: int, chance: random.Random, variety: float) -> Sample:
        """One captioned image, worded, or one conversation; see `Source.sample`."""
        if not 0 <= index < self.count(task):
            raise ValueError(f"source {self.name!r} has {self.count(task)} samples for {task!r}, got index {index}")
        key, record = self._record(index)
        try:
            if task == "chat":
                return Sample(key, record.conversation())
            caption, image = record.caption(), record.only_image()
        except BrokenRecord as error:
            raise BrokenSample(self.name, key, str(error)) from error
        if task == "draw":
            return Sample(key, draw_conversation(caption, image, chance, variety, self._style))
        return Sample(key, caption_conversation(image, caption, chance, variety, self._style))

    def _load(self, shard: int) -> Index:
        return load_or_build(self._paths[shard], tar_index.VERSION, tar_index.build)

    def _record(self, index: int) -> tuple[str, _Record]:
        shard = bisect_right(self._starts, index) - 1
        number = index - self._starts[shard]
        path, found = self._paths[shard], self._index(shard)
        arrays = found.arrays
        if number + 1 >= len(arrays["firsts"]):
            raise ValueError(f"{path}: has changed since it was opened; start again")
        first, end = int(arrays["firsts"][number]), int(arrays["firsts"][number + 1])
        key = arrays["keys"][int(arrays["key_ends"][number]) : int(arrays["key_ends"][number + 1])].tobytes()
        names = found.facts["suffixes"]
        members = {
            names[arrays["suffixes"][row]]: (int(arrays["offsets"][row]), int(arrays["sizes"][row]))
            for row in range(first, end)
        }
        return f"{path.name}/{os.fsdecode(key)}", _Record(path, found.stamp, members)

    def _holds_conversations(self) -> bool:
        for index in range(min(_LOOKED_AT, self._starts[-1])):
            _, record = self._record(index)
            if "txt" in record.members:
                return False
            try:
                value = record.json()
            except BrokenRecord:
                continue
            return isinstance(value, dict) and "messages" in value
        return False


def _all_facts(name: str, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """What the shards' indexes say of them; indexes are made where they are missing.

    Indexes that exist are read several at a time, because reading many small files is mostly waiting. The others are
    made in another order in each process, so that processes that start together find each other's work.
    """
    with ThreadPoolExecutor(_OPENED_AT_A_TIME) as pool:
        kept = list(pool.map(lambda path: kept_facts(path, tar_index.VERSION), paths))
    found = {number: facts for number, facts in enumerate(kept) if facts is not None}
    missing = [number for number in range(len(paths)) if number not in found]
    random.Random(os.getpid()).shuffle(missing)
    told = time.monotonic()
    for number in missing:
        found[number] = load_or_build(paths[number], tar_index.VERSION, tar_index.build, facts_only=True).facts
        if time.monotonic() - told > _TELL_EVERY:
            told = time.monotonic()
            print(f"source {name!r}: {len(found):,} of {len(paths):,} shards are indexed", file=sys.stderr)
    return [found[number] for number in range(len(paths))]


class _Record:
    """The members of one record, read when asked for."""

    def __init__(self, path: Path, stamp: tuple[int, int], members: dict[str, tuple[int, int]]) -> None:
        self._path, self._stamp, self.members = path, stamp, members

    def read(self, suffix: str, limit: int) -> bytes:
        """The bytes of a member."""
        if suffix not in self.members:
            raise BrokenRecord(f"has no member .{suffix}, only {', '.join(self.members)}")
        if self.members[suffix][1] > limit:
            raise BrokenRecord(f"member .{suffix} has {self.members[suffix][1]:,} bytes, the limit is {limit:,}")
        return read_ranges(self._path, self._stamp, [self.members[suffix]])[0]

    def json(self) -> Any:
        """What `.json` holds."""
        return parse_json(self.read("json", MAX_RECORD_BYTES))

    def caption(self) -> str:
        """The words about the image."""
        value: Any
        if "txt" in self.members:
            try:
                value = self.read("txt", MAX_RECORD_BYTES).decode("utf-8")
            except UnicodeDecodeError as error:
                raise BrokenRecord(f"member .txt is not UTF-8 text (byte {error.start})") from error
        else:
            value = self.json()
            if isinstance(value, dict):
                value = value.get("caption", value.get("text"))
        if not isinstance(value, str) or not value.strip():
            raise BrokenRecord("has no caption: expected words in .txt, or in .json under caption or text")
        return value.strip()

    def only_image(self) -> bytes:
        """The one image, encoded."""
        images = [suffix for suffix in self.members if tar_index.is_image(suffix)]
        if len(images) != 1:
            raise BrokenRecord(f"expected one image, got {', '.join(images) or 'none'}")
        return self.read(images[0], MAX_FILE_BYTES)

    def conversation(self) -> Conversation:
        """The conversation in `.json`."""
        value = self.json()
        if not isinstance(value, dict):
            raise BrokenRecord(f"member .json must be an object, got {type(value).__name__}")
        return our_conversation(value, self._resolve())

    def _resolve(self) -> Resolve:
        def resolve(name: Any) -> bytes:
            if not isinstance(name, str):
                raise BrokenRecord(f"an image must be given by its member's name, got {name!r:.80}")
            return self.read(name.lower(), MAX_FILE_BYTES)

        return resolve
