"""Conversations: messages made of text, images to understand and images to draw.

Invariant: a `Conversation` that exists is well formed: alternating user and assistant turns after at most one system
turn, images to understand only in user turns, images to draw only in assistant turns.

The parts use the type names of transformers chat messages (`text`, `image`) plus one of ours, `image_gen`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vargpt.processing.images import PreparedImage

UnderstandSource = Path | bytes | Image.Image | PreparedImage
"""A file, an encoded image in memory, a PIL image, or patches that were prepared before."""

DrawSource = Path | bytes | Image.Image | torch.Tensor
"""A file, an encoded image in memory, a PIL image, or pixels [3, H, W] in [-1, 1] of the schedule's size."""

IMAGE_PLACEHOLDER = "<image>"
DRAW_PLACEHOLDER = "<image_gen>"


class _Strict(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", frozen=True)


class TextPart(_Strict):
    """A piece of text."""

    type: Literal["text"] = "text"
    text: str


class ImagePart(_Strict):
    """An image to understand."""

    type: Literal["image"] = "image"
    image: UnderstandSource


class DrawPart(_Strict):
    """An image to draw; `image` is the target, or None where only its place matters (the caller has its bits)."""

    type: Literal["image_gen"] = "image_gen"
    image: DrawSource | None = None


Part = Annotated[TextPart | ImagePart | DrawPart, Field(discriminator="type")]


class Message(_Strict):
    """One turn. `content` may be given as a plain string."""

    role: Literal["system", "user", "assistant"]
    content: tuple[Part, ...]

    @model_validator(mode="before")
    @classmethod
    def _text_shorthand(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("content"), str):
            return {**value, "content": (TextPart(text=value["content"]),)}
        return value

    @model_validator(mode="after")
    def _parts_fit_role(self) -> Self:
        for part in self.content:
            if part.type == "image" and self.role != "user":
                raise ValueError(f"an image to understand belongs in a user message, got it in a {self.role} message")
            if part.type == "image_gen" and self.role != "assistant":
                raise ValueError(f"an image to draw belongs in an assistant message, got it in a {self.role} message")
        return self


class Conversation(_Strict):
    """A list of turns: optionally a system turn, then user and assistant in turn."""

    messages: tuple[Message, ...]

    @model_validator(mode="after")
    def _turns_alternate(self) -> Self:
        turns = self.turns
        if not turns:
            raise ValueError("a conversation needs at least one user message, got none")
        for index, message in enumerate(turns):
            expected = "assistant" if index % 2 else "user"
            if message.role != expected:
                raise ValueError(
                    f"turns must alternate user, assistant, user, ... (a system message may come first only): "
                    f"expected {expected} at turn {index}, got {message.role}"
                )
        return self

    @classmethod
    def parse(cls, messages: Any) -> Conversation:
        """Build a conversation from a list of dicts or messages; a mistake gives one `ValueError` line."""
        if isinstance(messages, Conversation):
            return messages
        if not isinstance(messages, list | tuple):
            raise ValueError(f"messages must be a list of {{role, content}}, got {type(messages).__name__}")
        try:
            return cls(messages=tuple(messages))
        except ValidationError as error:
            raise ValueError(one_line(error)) from error

    @classmethod
    def from_placeholders(cls, messages: list[dict[str, str]], images: list[Any]) -> Conversation:
        """Build a conversation from texts with `<image>` / `<image_gen>` and the images in their order (spec 2.2)."""
        remaining = list(images)
        turns = []
        for message in messages:
            turns.append({"role": message["role"], "content": _split_placeholders(message["content"], remaining)})
        if remaining:
            raise ValueError(f"{len(remaining)} of {len(images)} images have no <image> or <image_gen> in the text")
        return cls.parse(turns)

    @property
    def system(self) -> str | None:
        """Text of the system turn, or None where there is none."""
        first = self.messages[0] if self.messages else None
        if first is None or first.role != "system":
            return None
        return "".join(part.text for part in first.content if isinstance(part, TextPart))

    @property
    def turns(self) -> tuple[Message, ...]:
        """The turns after the system turn."""
        start = 1 if self.messages and self.messages[0].role == "system" else 0
        return self.messages[start:]

    @property
    def drawings(self) -> tuple[DrawPart, ...]:
        """All images to draw, in order."""
        return tuple(part for message in self.turns for part in message.content if isinstance(part, DrawPart))

    def without_prompt(self, negative_prompt: str = "") -> Conversation:
        """Return the prompt-free conversation of the unconditional branch.

        The same system turn, a user turn that is empty (or the negative prompt), and, where this conversation draws,
        an assistant turn with the drawings alone: anything else that was said could repeat the prompt.
        """
        messages = list(self.messages[:1]) if self.system is not None else []
        messages.append(Message(role="user", content=(TextPart(text=negative_prompt),)))
        if self.drawings:
            messages.append(Message(role="assistant", content=self.drawings))
        return Conversation(messages=tuple(messages))


def user(*parts: Any) -> Message:
    """Make a user turn from strings and images to understand."""
    return Message(role="user", content=tuple(_part(item, ImagePart) for item in parts))


def assistant(*parts: Any) -> Message:
    """Make an assistant turn from strings and `DrawPart`s."""
    return Message(role="assistant", content=tuple(_part(item, DrawPart) for item in parts))


def _part(item: Any, image_class: type[ImagePart] | type[DrawPart]) -> Any:
    if isinstance(item, TextPart | ImagePart | DrawPart):
        return item
    if isinstance(item, str):
        return TextPart(text=item)
    return image_class(image=item)


def _split_placeholders(text: str, remaining: list[Any]) -> tuple[Any, ...]:
    """Cut a text at its placeholders, taking images from the front of `remaining`."""
    parts: list[Any] = []
    while text:
        places = [(text.find(mark), mark) for mark in (IMAGE_PLACEHOLDER, DRAW_PLACEHOLDER) if mark in text]
        if not places:
            parts.append(TextPart(text=text))
            break
        start, mark = min(places)
        if start:
            parts.append(TextPart(text=text[:start]))
        if not remaining:
            raise ValueError(f"the text has more placeholders than images: no image is left for {mark}")
        image = remaining.pop(0)
        parts.append(ImagePart(image=image) if mark == IMAGE_PLACEHOLDER else DrawPart(image=image))
        text = text[start + len(mark) :]
    return tuple(parts)


def one_line(error: ValidationError) -> str:
    """Say the first thing a pydantic error found, with its place, in one line."""
    first = error.errors()[0]
    place = ".".join(str(step) for step in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
