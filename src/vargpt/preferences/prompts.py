"""What pictures are sampled for: prompts from a file, from a data folder, or from any conversation that draws.

Invariant: a prompt ends with the user's turn; the words that the assistant says before its picture are kept apart, so
chosen and rejected differ in their picture alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, field_validator

from vargpt.configuration import VargptConfig
from vargpt.data.folder import ImageFolder
from vargpt.data.schema import read_jsonl
from vargpt.inference.habits import Habits
from vargpt.inference.requests import draw_request, edit_request, opened
from vargpt.processing.conversation import Conversation, DrawPart, DrawSource, ImagePart, TextPart
from vargpt.processing.images import PreparedImage, open_image
from vargpt.sampling import pixels_to_uint8

PromptTask = Literal["draw", "edit"]
_DRAW = "draw "


@dataclass(frozen=True)
class PairPrompt:
    """One prompt.

    Attributes:
        key: names it in shards, reports and errors.
        prompt: ends with the user's turn; may hold pictures to read.
        answer: what the assistant says before the picture.
        caption: what the picture should show, in words; empty where only the request is known.
        target: the data's own picture, where there is one.
    """

    key: str
    prompt: Conversation
    answer: str = ""
    caption: str = ""
    target: DrawSource | None = None

    @property
    def request(self) -> Conversation:
        """The conversation that is to go on with a picture."""
        return opened(self.prompt, self.answer)

    @property
    def words(self) -> str:
        """The caption, or else the words of the user's last turn."""
        return self.caption or spoken(self.prompt)

    def sources(self) -> list[Image.Image]:
        """The pictures of the user's last turn.

        Raises:
            ValueError: for a picture that cannot be opened, or of which only patches are there.
        """
        pictures = []
        for part in self.prompt.messages[-1].content:
            if isinstance(part, ImagePart):
                if isinstance(part.image, PreparedImage):
                    raise ValueError(f"{self.key}: the prompt has patches instead of a picture; give the picture")
                pictures.append(open_image(part.image))
        return pictures

    def picture(self) -> Image.Image | None:
        """The target as a picture, None where there is none.

        Raises:
            ValueError: for one that cannot be opened.
        """
        if self.target is None:
            return None
        if isinstance(self.target, torch.Tensor):
            return Image.fromarray(pixels_to_uint8(self.target[None])[0].cpu().numpy())
        return open_image(self.target)


def spoken(prompt: Conversation) -> str:
    """The words of the last turn."""
    parts = prompt.messages[-1].content
    return " ".join("".join(part.text for part in parts if isinstance(part, TextPart)).split())


def caption_of(prompt: Conversation) -> str:
    """The name in a canonical drawing request ("draw NAME"); empty for any other request."""
    words = spoken(prompt)
    reads = any(isinstance(part, ImagePart) for part in prompt.messages[-1].content)
    return words.removeprefix(_DRAW) if words.startswith(_DRAW) and not reads else ""


def from_conversation(key: str, conversation: Conversation, caption: str | None = None) -> PairPrompt:
    """Cut a conversation whose last turn draws into prompt, words before the picture and target picture.

    Words after the picture are left out: a preference is about the picture.

    Args:
        caption: what the picture shows; by default the name in a canonical drawing request.

    Raises:
        ValueError: for a last turn that draws more than one picture, or pictures drawn before it.
    """
    *earlier, last = conversation.messages
    if last.role == "user":
        return PairPrompt(key, conversation, caption=caption_of(conversation) if caption is None else caption)
    if len(conversation.drawings) > 1:
        raise ValueError(f"{key}: the conversation draws {len(conversation.drawings)} pictures; pairs need one, last")
    words: list[str] = []
    target = None
    for part in last.content:
        if isinstance(part, DrawPart):
            target = part.image
            break
        if isinstance(part, TextPart):
            words.append(part.text)
    if conversation.drawings and not any(isinstance(part, DrawPart) for part in last.content):
        raise ValueError(f"{key}: the last turn of the conversation draws nothing, an earlier one does")
    prompt = Conversation(messages=tuple(earlier))
    found = caption_of(prompt) if caption is None else caption
    return PairPrompt(key, prompt, "".join(words), found, target)


class PromptRecord(BaseModel):
    """One line of a prompts file; pictures are files, relative to it.

    `prompt`: what to draw, or with `image` how to change that picture. `caption`: what the result shows, for scorers
    (drawing: the prompt). `target`: the picture it should be. `key`: its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: str
    image: str | None = None
    target: str | None = None
    caption: str | None = None
    key: str | None = None

    @field_validator("prompt")
    @classmethod
    def _has_words(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value.strip()


@dataclass(frozen=True)
class PromptFile:
    """A prompts file that was read: its records with their keys, and a fingerprint of it."""

    path: Path
    records: tuple[PromptRecord, ...]
    keys: tuple[str, ...]
    sha256: str

    def prompts(self, config: VargptConfig, habits: Habits, limit: int | None = None) -> list[PairPrompt]:
        """Word the requests as the model knows them."""
        return [
            _worded(config, habits, key, record.prompt, self._path(record.image), self._path(record.target), record)
            for key, record in take(list(zip(self.keys, self.records, strict=True)), limit)
        ]

    def _path(self, name: str | None) -> Path | None:
        return None if name is None else self.path.parent / name


def read_prompts(path: Path) -> PromptFile:
    """Read prompts: one per line, or with the suffix .jsonl one JSON object per line (`PromptRecord`).

    Raises:
        ValueError: naming file and line, for a missing or empty file, a broken line, a picture that is not there.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file of prompts")
    data = path.read_bytes()
    try:
        lines = data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text; expected one prompt per line") from error
    if path.suffix.lower() in (".jsonl", ".json"):
        records = read_jsonl(path, PromptRecord)
    else:
        records = [PromptRecord(prompt=line) for line in lines if line.strip()]
    if not records:
        raise ValueError(f"{path}: holds no prompt; expected one per line")
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    keys = tuple(record.key or f"{path.name}:{number}" for number, record in zip(numbers, records, strict=True))
    seen: set[str] = set()
    for key, record in zip(keys, records, strict=True):
        if key in seen:
            raise ValueError(f"{path}: the key {key!r} is used twice")
        seen.add(key)
        for name in (record.image, record.target):
            if name is not None and not (path.parent / name).is_file():
                raise ValueError(f"{path}: {key}: no such picture {path.parent / name}")
    return PromptFile(path, tuple(records), keys, hashlib.sha256(data).hexdigest())


def folder_prompts(
    folder: ImageFolder, task: PromptTask, config: VargptConfig, habits: Habits, limit: int | None = None
) -> list[PairPrompt]:
    """The training part of a data folder as prompts, with its own pictures as targets.

    Raises:
        ValueError: for edits of a folder that has none to train on.
    """
    if task == "draw":
        return [
            _worded(config, habits, record.file_name, record.text, None, folder.path(record.file_name))
            for record in take(folder.split_images("train"), limit)
        ]
    edits = take(folder.split_edits("train"), limit)
    if not edits:
        raise ValueError(f"{folder.root}: has no edit pair to train on; write edits.jsonl, or use --task draw")
    return [
        _worded(
            config,
            habits,
            f"{edit.source} -> {edit.target}: {edit.instruction}",
            edit.instruction,
            folder.path(edit.source),
            folder.path(edit.target),
            PromptRecord(prompt=edit.instruction, caption=folder.captions[edit.target]),
        )
        for edit in edits
    ]


def folder_sha256(folder: ImageFolder) -> str:
    """A fingerprint of a folder's records and split."""
    records = [record.model_dump() for record in (*folder.images, *folder.edits)]
    text = json.dumps([folder.validation_fraction, records])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def take(items: Sequence[Any], limit: int | None) -> list[Any]:
    """At most `limit` items, evenly spread over the list (all of them when None)."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def _worded(
    config: VargptConfig,
    habits: Habits,
    key: str,
    words: str,
    source: Path | None,
    target: Path | None,
    record: PromptRecord | None = None,
) -> PairPrompt:
    """A request as the model knows it; what it lets the assistant say first becomes the answer."""
    known = record.caption if record is not None and record.caption else ""
    if source is None:
        subject = habits.subject(words)
        return _with_target(from_conversation(key, draw_request(config, subject), known or subject), target)
    return _with_target(from_conversation(key, edit_request(config, source, words), known), target)


def _with_target(prompt: PairPrompt, target: Path | None) -> PairPrompt:
    return PairPrompt(prompt.key, prompt.prompt, prompt.answer, prompt.caption, target)
