"""Records of a data folder, checked line by line.

Invariant: a record that exists is usable; a line that is not names its file and line number.
Conversations themselves are defined in `vargpt.processing.conversation`.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from vargpt.processing.conversation import Conversation, DrawPart, ImagePart, Message, TextPart, one_line

__all__ = [
    "Conversation",
    "DrawPart",
    "EditRecord",
    "ImagePart",
    "ImageRecord",
    "Message",
    "TextPart",
    "read_jsonl",
]


def _inside(value: str) -> str:
    """Accept a relative path that stays in its folder."""
    path = PurePosixPath(value)
    if not value or path.is_absolute() or ".." in path.parts or "\0" in value:
        raise ValueError(f"must be a file name inside the image folder, got {value!r}")
    return str(path)


def _words(value: str) -> str:
    text = value.strip()
    if not text:
        raise ValueError("must not be empty")
    return text


class ImageRecord(BaseModel):
    """One line of `metadata.jsonl`: an image and its caption. Other columns are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    file_name: str
    text: str

    _check_name = field_validator("file_name")(_inside)
    _check_text = field_validator("text")(_words)


class EditRecord(BaseModel):
    """One line of `edits.jsonl`: the instruction that turns the source image into the target image."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    source: str
    target: str
    instruction: str

    _check_names = field_validator("source", "target")(_inside)
    _check_instruction = field_validator("instruction")(_words)


Record = TypeVar("Record", bound=BaseModel)


def read_jsonl(path: Path, record: type[Record]) -> list[Record]:
    """Read a file of one JSON object per line; blank lines are skipped.

    Raises:
        ValueError: with file, line number and reason, at the first line that is not such a record.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        broken = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{broken}: not UTF-8 text") from error
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not a line of JSON ({error})") from error
        if not isinstance(value, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, got {type(value).__name__}")
        try:
            records.append(record.model_validate(value))
        except ValidationError as error:
            raise ValueError(f"{path}:{number}: {one_line(error)}") from error
    return records
