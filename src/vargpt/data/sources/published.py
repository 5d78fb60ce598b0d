"""The JSON that VARGPT-v1.1 was published with: supervised and editing records, and preference records.

Invariant: placeholders and images agree in number and order; the two sides of a preference differ in the picture only.

Supervised and editing (`images` in the order of `<image>` and `<image_gen>`):

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "...<image_gen>"}],
     "images": ["data/1.jpg"]}

Preferences (`images`: those of the prompt, if any, then chosen, rejected):

    {"conversations": [{"from": "human", "value": "..."}], "chosen": {"from": "gpt", "value": "...<image_gen>"},
     "rejected": {"from": "gpt", "value": "...<image_gen>"}, "images": ["chosen.png", "rejected.png"]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vargpt.data.sources.conversations import RecordFiles, RecordSource
from vargpt.data.sources.parsing import (
    Resolve,
    images_of,
    inside,
    placeholder_conversation,
    turn_of,
    turns_of,
    with_answer,
)
from vargpt.data.sources.protocol import BrokenSample
from vargpt.data.sources.records import BrokenRecord
from vargpt.processing.conversation import DRAW_PLACEHOLDER, Conversation, DrawPart, assistant


@dataclass(frozen=True)
class Preference:
    """Two pictures for one prompt, as files.

    Attributes:
        prompt: ends with the user's turn.
        answer: words of the assistant before the picture, the same for both sides.
    """

    key: str
    prompt: Conversation
    answer: str
    chosen: Path | bytes
    rejected: Path | bytes


def published_source(name: str, paths: Sequence[Path], images: Path) -> RecordSource:
    """The published supervised and editing JSON (one array, or lines)."""
    resolve = inside(images)
    return RecordSource(
        name, paths, lambda record: with_answer(placeholder_conversation(turns_of(record), images_of(record, resolve)))
    )


def published_preferences_source(name: str, paths: Sequence[Path], images: Path) -> RecordSource:
    """The published preference JSON as conversations: each prompt with its chosen picture."""
    resolve = inside(images)
    return RecordSource(name, paths, lambda record: _chosen_conversation(_preference("", record, resolve)))


class PublishedPreferences:
    """The published preference JSON (one array, or lines) as pairs."""

    def __init__(self, name: str, paths: Sequence[Path], images: Path) -> None:
        self._name = name
        self._records = RecordFiles(name, paths)
        self._resolve = inside(images)
        self.problems = self._records.problems

    def __len__(self) -> int:
        return len(self._records)

    def preference(self, index: int) -> Preference:
        """One pair.

        Raises:
            BrokenSample: if the record cannot be used.
        """
        key, record = self._records.read(index)
        try:
            return _preference(key, record, self._resolve)
        except BrokenRecord as error:
            raise BrokenSample(self._name, key, str(error)) from error


def _preference(key: str, record: dict[str, Any], resolve: Resolve) -> Preference:
    turns, images = turns_of(record), images_of(record, resolve)
    if turns[-1]["role"] != "user":
        raise BrokenRecord(f"the prompt must end with the user's turn, got {turns[-1]['role']}")
    if len(images) < 2:
        raise BrokenRecord(f"expected the chosen and the rejected image last in images, got {len(images)} images")
    chosen, rejected = (_words_before(record, side) for side in ("chosen", "rejected"))
    if chosen != rejected:
        raise BrokenRecord(
            f"chosen and rejected must differ in the picture only, got {chosen!r:.60} and {rejected!r:.60}"
        )
    return Preference(key, placeholder_conversation(turns, images[:-2]), chosen, images[-2], images[-1])


def _words_before(record: dict[str, Any], side: str) -> str:
    """What the assistant says before its one picture."""
    if side not in record:
        raise BrokenRecord(f"has no {side!r}")
    turn = turn_of(record[side])
    words, mark, rest = turn["content"].partition(DRAW_PLACEHOLDER)
    if turn["role"] != "assistant" or not mark or rest.strip():
        raise BrokenRecord(f"{side} must be an answer of the assistant that ends with {DRAW_PLACEHOLDER}")
    return words.strip()


def _chosen_conversation(preference: Preference) -> Conversation:
    drawn = DrawPart(image=preference.chosen)
    answer = assistant(preference.answer, drawn) if preference.answer else assistant(drawn)
    return Conversation(messages=(*preference.prompt.messages, answer))
