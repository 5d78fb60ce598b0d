"""Records of several dialects become conversations.

Invariant: what is returned is a conversation with an answer to learn from, whose images lie inside the images folder;
anything else raises `BrokenRecord` with the reason.

Dialects: ours (`messages` with typed parts), and texts with `<image>` and `<image_gen>` beside a list of images, with
the turns in `messages` (role, content) or in `conversations` (from, value).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from vargpt.data.sources.records import BrokenRecord
from vargpt.processing.conversation import Conversation, DrawPart, ImagePart, TextPart

ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}

Resolve = Callable[[Any], Path | bytes]
"""Turns what a record says of an image into the image; raises `BrokenRecord`."""


def inside(root: Path) -> Resolve:
    """Resolve file names below a folder; names that lead out of it are refused."""

    def resolve(name: Any) -> Path:
        if not isinstance(name, str) or not name or "\0" in name:
            raise BrokenRecord(f"an image must be given by its file name, got {name!r:.80}")
        path = PurePosixPath(name)
        if ".." in path.parts or (path.is_absolute() and not Path(path).is_relative_to(root.absolute())):
            raise BrokenRecord(f"image {name!r} is outside the images folder {root}")
        return root / path

    return resolve


def our_conversation(record: dict[str, Any], resolve: Resolve) -> Conversation:
    """Read `{"messages": [{"role", "content": text or parts}]}`; other columns are ignored."""
    messages = record.get("messages")
    if not isinstance(messages, list):
        raise BrokenRecord('expected a list of {"role", "content"} under "messages"')
    turns = []
    for message in messages:
        if not isinstance(message, dict):
            raise BrokenRecord(f'a message must be {{"role", "content"}}, got {message!r:.80}')
        content = message.get("content")
        parts = [_our_part(part, resolve) for part in content] if isinstance(content, list) else content
        turns.append({**message, "content": parts})
    return with_answer(_parsed(turns))


def _our_part(part: Any, resolve: Resolve) -> Any:
    if isinstance(part, dict) and part.get("type") in ("image", "image_gen"):
        return {**part, "image": resolve(part.get("image"))}
    return part


def turns_of(record: dict[str, Any]) -> list[dict[str, str]]:
    """The turns of `messages` (role, content) or `conversations` (from, value) as role and content."""
    turns = record.get("messages", record.get("conversations"))
    if not isinstance(turns, list) or not turns:
        raise BrokenRecord('expected a list of turns under "messages" (role, content) or "conversations" (from, value)')
    return [turn_of(turn) for turn in turns]


def turn_of(turn: Any) -> dict[str, str]:
    """One turn, of either spelling, as role and content."""
    found = turn if isinstance(turn, dict) else {}
    role, text = found.get("role", found.get("from")), found.get("content", found.get("value"))
    if not isinstance(role, str) or not isinstance(text, str):
        raise BrokenRecord(f"a turn must be {{role, content}} or {{from, value}} with strings, got {turn!r:.80}")
    if role not in ROLES:
        raise BrokenRecord(f"unknown role {role!r}, expected one of {', '.join(ROLES)}")
    return {"role": ROLES[role], "content": text}


def images_of(record: dict[str, Any], resolve: Resolve) -> list[Path | bytes]:
    """The images listed in `images`, or in `image` (one or several); none where neither is there."""
    images = record.get("images", record.get("image"))
    if images is None:
        return []
    return [resolve(image) for image in (images if isinstance(images, list | tuple) else [images])]


def placeholder_conversation(turns: list[dict[str, str]], images: list[Path | bytes]) -> Conversation:
    """Put images in the places of `<image>` and `<image_gen>`, in their order; their numbers must agree."""
    try:
        return Conversation.from_placeholders(turns, list(images))
    except ValueError as error:
        raise BrokenRecord(str(error)) from error


def with_answer(conversation: Conversation) -> Conversation:
    """Check that the assistant says or draws something, and that every image to draw is given."""
    for message in conversation.turns:
        for part in message.content:
            if isinstance(part, DrawPart) and part.image is None:
                raise BrokenRecord("an image to draw is not given, so there is nothing to learn from")
    answers = (part for message in conversation.turns if message.role == "assistant" for part in message.content)
    if not any(isinstance(part, DrawPart) or (isinstance(part, TextPart) and part.text) for part in answers):
        raise BrokenRecord("the assistant says nothing, so there is nothing to learn from")
    return conversation


def images_in(conversation: Conversation) -> list[ImagePart | DrawPart]:
    """All images of a conversation, in order."""
    return [part for message in conversation.turns for part in message.content if not isinstance(part, TextPart)]


def _parsed(turns: list[Any]) -> Conversation:
    try:
        return Conversation.parse(turns)
    except ValueError as error:
        raise BrokenRecord(str(error)) from error
