"""Parquet files as a source: captioned images, or conversations with their images.

Invariant: opening reads the footers alone; a sample reads its row group, and the last few row groups stay in memory.
The columns of the first file decide what the files hold, and all files must have them.

Captions (tasks `draw` and `caption`): `image` (bytes, or a struct with `bytes`) and `text` or `caption`. Conversations
(`chat`): `messages` (role, content) or `conversations` (from, value) with `<image>` and `<image_gen>` in the texts, and
`images`, a list of the same kinds of image. Needs `pip install 'vargpt[data]'`.
"""

from __future__ import annotations

import itertools
import random
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vargpt.data.instructions import Style, caption_conversation, draw_conversation
from vargpt.data.sources.index_file import stamp_of
from vargpt.data.sources.parsing import Resolve, images_of, inside, placeholder_conversation, turns_of, with_answer
from vargpt.data.sources.protocol import BrokenSample, Sample, Task
from vargpt.data.sources.records import BrokenRecord
from vargpt.processing.conversation import Conversation

_KEPT_BYTES = 2 << 30
"""Memory for row groups: a shuffle reads those of its window in turn (`vargpt.data.order.ShardedPermutation`)."""
_TURNS = ("messages", "conversations")
_WORDS = ("text", "caption")


class ParquetSource:
    """Captioned images or conversations in parquet files.

    Attributes:
        problems: files that cannot be read and were left out.
    """

    def __init__(self, name: str, paths: Sequence[Path], images: Path, style: Style = "short") -> None:
        """Open the files.

        Args:
            images: where images lie that are given by path.
            style: the family of wordings.

        Raises:
            ValueError: if pyarrow is missing, or a file lacks the columns.
        """
        self.name = name
        self._style: Style = style
        self.problems: list[BrokenSample] = []
        self._resolve = _image_reader(inside(images))
        self._groups: list[tuple[Path, tuple[int, int], int]] = []
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._columns: list[str] = []
        lengths: list[int] = []
        pyarrow, parquet = _pyarrow()
        self._damage = (pyarrow.ArrowException, OSError)
        for path in paths:
            stamp = stamp_of(path)
            try:
                with parquet.ParquetFile(path) as file:
                    columns = _columns(path, file.schema_arrow.names)
                    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            except self._damage as error:
                self.problems.append(BrokenSample(name, path.name, f"not a whole parquet file ({_short(error)})"))
                continue
            self._columns = self._columns or columns
            if columns != self._columns:
                raise ValueError(f"{path}: has the columns {columns}, but the first file has {self._columns}")
            self._groups += [(path, stamp, group) for group in range(len(sizes))]
            lengths += sizes
        self._lengths = lengths
        self._starts = list(itertools.accumulate(lengths, initial=0))
        self.tasks: frozenset[Task] = frozenset({"draw", "caption"} if "image" in self._columns else {"chat"})

    def count(self, task: Task) -> int:
        """Rows, for the tasks that they serve."""
        return self._starts[-1] if task in self.tasks else 0

    def shards(self, task: Task) -> Sequence[int]:
        """Rows per row group."""
        return self._lengths if task in self.tasks else (0,)

    def sample(self, task: Task, index: int, chance: random.Random, variety: float) -> Sample:
        """One captioned image, worded, or one conversation; see `Source.sample`."""
        if not 0 <= index < self.count(task):
            raise ValueError(f"source {self.name!r} has {self.count(task)} samples for {task!r}, got index {index}")
        group = bisect_right(self._starts, index) - 1
        path, _, number = self._groups[group]
        row_index = index - self._starts[group]
        key = f"{path.name} row group {number} row {row_index + 1}"
        try:
            row = self._table(group).slice(row_index, 1).to_pylist()[0]
            if task == "chat":
                return Sample(key, self._conversation(row))
            image, caption = self._resolve(row["image"]), _caption(row, self._columns[0])
        except BrokenRecord as error:
            raise BrokenSample(self.name, key, str(error)) from error
        if task == "draw":
            return Sample(key, draw_conversation(caption, image, chance, variety, self._style))
        return Sample(key, caption_conversation(image, caption, chance, variety, self._style))

    def _conversation(self, row: dict[str, Any]) -> Conversation:
        return with_answer(placeholder_conversation(turns_of(row), images_of(row, self._resolve)))

    def _table(self, group: int) -> Any:
        """A row group, kept for the next samples: neighbours in the order share it."""
        with self._lock:
            if group in self._kept:
                self._kept.move_to_end(group)
                return self._kept[group]
            path, stamp, number = self._groups[group]
            if stamp_of(path) != stamp:
                raise ValueError(f"{path}: has changed since it was opened; start again")
            _, parquet = _pyarrow()
            try:
                with parquet.ParquetFile(path) as file:
                    table = file.read_row_group(number, columns=self._columns, use_threads=False)
            except self._damage as error:
                raise BrokenRecord(f"the row group cannot be read ({_short(error)})") from error
            self._kept[group] = table
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
            return table


def _columns(path: Path, names: list[str]) -> list[str]:
    """The columns to read: words first, then images."""
    turns = next((column for column in _TURNS if column in names), None)
    if turns is not None:
        return [turns, "images"] if "images" in names else [turns]
    words = next((column for column in _WORDS if column in names), None)
    if words is not None and "image" in names:
        return [words, "image"]
    raise ValueError(
        f"{path}: expected the columns image and text (or caption), or messages and images, got {', '.join(names)}"
    )


def _image_reader(by_name: Resolve) -> Resolve:
    """Images as bytes, as a struct of bytes and path, or as a path alone."""

    def resolve(image: Any) -> Path | bytes:
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, bytes) and image:
            return image
        return by_name(image)

    return resolve


def _caption(row: dict[str, Any], column: str) -> str:
    words = row[column]
    if not isinstance(words, str) or not words.strip():
        raise BrokenRecord(f"has no caption: expected words in the column {column}, got {words!r:.60}")
    return words.strip()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("reading parquet files needs pyarrow: pip install 'vargpt[data]'") from error
    return pyarrow, pyarrow.parquet
