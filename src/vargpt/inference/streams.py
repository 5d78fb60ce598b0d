"""Between events and people: tokens to text, drawn bits back into prompts, requests into batches.

Invariant: text comes out as whole characters, and joining the pieces gives exactly what the tokens say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vargpt.image_tokenizer import ImageTokenizer
from vargpt.inputs import ModelInputs
from vargpt.processing.conversation import Conversation, ImagePart, Message
from vargpt.scales import ScaleSchedule

_UNFINISHED = "\ufffd"


class TextStream:
    """Turns token ids into pieces of text as soon as they form whole characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._said = 0

    def add(self, token_id: int) -> str:
        """Take one more token; return the text that is certain now (often one word, sometimes nothing)."""
        self._ids.append(token_id)
        text = self._text()
        return "" if text.endswith(_UNFINISHED) else self._rest(text)

    def close(self) -> str:
        """Return what was held back."""
        return self._rest(self._text())

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _rest(self, text: str) -> str:
        piece, self._said = text[self._said :], len(text)
        return piece


def with_drawings(
    inputs: ModelInputs, drawn: Sequence[Tensor], tokenizer: ImageTokenizer, schedule: ScaleSchedule
) -> ModelInputs:
    """Give a prompt the bits [L, d] of the pictures drawn earlier in its conversations, in their order."""
    if not drawn:
        return inputs
    bits_ILd = torch.stack(list(drawn))
    canvas: Tensor | None = None
    following = []
    for scale_index in range(schedule.num_scales):
        canvas, next_input = tokenizer.advance(canvas, bits_ILd[:, schedule.slice(scale_index)], scale_index, schedule)
        if next_input is not None:
            following.append(next_input)
    empty = bits_ILd.new_zeros(len(bits_ILd), 0, bits_ILd.shape[-1], dtype=torch.float32)
    return dataclasses.replace(inputs, labels_ILd=bits_ILd, next_inputs_IMd=torch.cat([empty, *following], dim=1))


def parse_messages(messages: Any) -> Conversation:
    """Build a conversation from chat messages whose content may list strings and pictures as they are.

    Raises:
        ValueError: in one line, saying which message is wrong.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list | tuple):
        return Conversation.parse(messages)
    return Conversation.parse([_parse_message(message) for message in messages])


def _parse_message(message: Any) -> Any:
    if isinstance(message, Message) or not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    parts: list[Any] = []
    for item in message["content"]:
        if isinstance(item, str):
            parts.append({"type": "text", "text": item})
        elif isinstance(item, Image.Image):
            parts.append(ImagePart(image=item))
        else:
            parts.append(item)
    return {**message, "content": tuple(parts)}


@dataclass(frozen=True)
class Group:
    """Pictures drawn in one batch: which prompts, and the seeds of the pictures of each of them."""

    prompts: list[int]
    seeds: list[int]
    first_copy: int


def group_requests(num_prompts: int, seeds: Sequence[int], batch_size: int) -> Iterator[Group]:
    """Split prompts x seeds into batches of at most `batch_size` pictures; every prompt is drawn with every seed."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if len(seeds) >= batch_size:
        for prompt in range(num_prompts):
            for first in range(0, len(seeds), batch_size):
                yield Group([prompt], list(seeds[first : first + batch_size]), first)
        return
    step = batch_size // len(seeds)
    for first in range(0, num_prompts, step):
        yield Group(list(range(first, min(first + step, num_prompts))), list(seeds), 0)
