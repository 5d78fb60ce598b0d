"""ChatML: a conversation becomes token ids, placeholders expanded, with a mask of what the assistant says.

Invariant: the ids of a training conversation start with exactly the ids of the prompt that precedes its first answer,
so training and generation see the same prefix.

Format (spec 2.2), the system turn only where there is a system text::

    <|im_start|>system\\n{system}<|im_end|>\\n<|im_start|>user\\n{user}<|im_end|>\\n<|im_start|>assistant\\n{answer}<|im_end|>

The system text, the user text with the assistant header, and each answer are tokenized separately.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from vargpt.processing.conversation import Conversation, DrawPart, ImagePart, Message, TextPart
from vargpt.processing.text import SpecialIds, TextEncoder

DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant."

CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- if not loop.first %}{{ '\\n' }}{% endif %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{ message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'image_gen' %}{{ '<|image_gen_start|><|image_gen_pad|><|image_gen_end|>' }}
{%- else %}{{ part['text'] }}{% endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"""
"""The same format for `apply_chat_template`; a default system prompt is not inserted here."""


@dataclass
class Rendered:
    """Token ids of one conversation.

    Attributes:
        ids: token ids, placeholders expanded.
        is_answer: per token, whether the assistant says it (image slots are not words and count as False).
        draw_columns: column of each `<|image_gen_start|>`.
    """

    ids: list[int] = field(default_factory=list)
    is_answer: list[bool] = field(default_factory=list)
    draw_columns: list[int] = field(default_factory=list)

    def add(self, ids: tuple[int, ...] | list[int], answer: bool = False) -> None:
        """Append tokens of one kind."""
        self.ids.extend(ids)
        self.is_answer.extend([answer] * len(ids))


@dataclass(frozen=True)
class ChatFormat:
    """Turns conversations into ids for one tokenizer and one system prompt (None: no system turn by default)."""

    special: SpecialIds
    encoder: TextEncoder
    system_prompt: str | None

    def render(
        self, conversation: Conversation, image_tokens: list[int], draw_slots: int, *, for_generation: bool
    ) -> Rendered:
        """Render a conversation.

        Args:
            image_tokens: placeholder tokens of each image to understand, in order.
            draw_slots: slots of each image to draw.
            for_generation: end with the assistant header after a user turn; a last assistant turn stays open and is
                continued. Otherwise every turn is closed, with no newline after the last one.
        """
        out = Rendered()
        counts = iter(image_tokens)
        system = conversation.system if conversation.system is not None else self.system_prompt
        if system is not None:
            self._open(out, "system", system)
            self._close(out)
        turns = conversation.turns
        for index, turn in enumerate(turns):
            last = index == len(turns) - 1
            if turn.role == "user":
                self._user(out, turn, counts)
            else:
                self._answer(out, turn, draw_slots)
                if last and for_generation:
                    return out
                out.add([self.special.im_end], answer=True)
                if not last:
                    out.add(self.encoder("\n"))
        return out

    def _open(self, out: Rendered, role: str, text: str) -> None:
        out.add([self.special.im_start])
        out.add(self.encoder(f"{role}\n{text}"))

    def _close(self, out: Rendered) -> None:
        out.add([self.special.im_end])
        out.add(self.encoder("\n"))

    def _user(self, out: Rendered, turn: Message, counts: Iterator[int]) -> None:
        text = "user\n"
        out.add([self.special.im_start])
        for part in turn.content:
            if isinstance(part, TextPart):
                text += part.text
            elif isinstance(part, ImagePart):
                out.add(self.encoder(text))
                text = ""
                out.add([self.special.vision_start])
                out.add([self.special.image_pad] * next(counts))
                out.add([self.special.vision_end])
        out.add(self.encoder(text))
        self._close(out)
        self._open(out, "assistant", "")

    def _answer(self, out: Rendered, turn: Message, draw_slots: int) -> None:
        text = ""
        for part in turn.content:
            if isinstance(part, TextPart):
                text += part.text
            elif isinstance(part, DrawPart):
                out.add(self.encoder(text), answer=True)
                text = ""
                out.draw_columns.append(len(out.ids))
                out.add([self.special.image_gen_start], answer=True)
                out.add([self.special.image_gen_pad] * draw_slots)
                out.add([self.special.image_gen_end], answer=True)
        out.add(self.encoder(text), answer=True)
