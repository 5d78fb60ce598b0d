"""Notes: a model writes down what is where in a picture before it answers a question about it (docs/scenes.md).

Asked "what color is the star?", a small reader has to find a shape among all that it sees; what it writes down first it
can look up. The notes stand before the question as a turn of their own, as they did in training.

Invariant: notes depend on their picture alone (words are greedy), and a question for a picture's caption, which needs
none, is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vargpt.data.instructions import CAPTION_QUESTION, CAPTION_QUESTIONS
from vargpt.data.scenes.drafts import DRAFT_QUESTION
from vargpt.model.events import Finished
from vargpt.processing.conversation import Conversation, ImagePart, TextPart, assistant, user

if TYPE_CHECKING:
    from vargpt.inference.pipeline import VargptPipeline

_LONGEST = 192
"""Tokens of notes; a scene of five things takes about 100."""


def with_notes(
    pipeline: VargptPipeline, conversations: Sequence[Conversation], batch_size: int = 8
) -> list[Conversation]:
    """Let the model write notes before every question that comes with a picture; other conversations stay."""
    found = list(conversations)
    wanted = [index for index, conversation in enumerate(found) if asks_about_a_picture(conversation)]
    for start in range(0, len(wanted), batch_size):
        batch = wanted[start : start + batch_size]
        for index, notes in zip(batch, _write(pipeline, [_look(found[index]) for index in batch]), strict=True):
            found[index] = _noted(found[index], notes)
    return found


def asks_about_a_picture(conversation: Conversation) -> bool:
    """Whether a conversation ends in one picture with a question that notes can help to answer."""
    last = conversation.messages[-1]
    if last.role != "user" or len(last.content) != 2:
        return False
    picture, words = last.content
    if not (isinstance(picture, ImagePart) and isinstance(words, TextPart)):
        return False
    return words.text.strip().casefold() not in {DRAFT_QUESTION, CAPTION_QUESTION, *CAPTION_QUESTIONS}


def _look(conversation: Conversation) -> Conversation:
    """The same conversation with the question for notes in the place of its own."""
    *earlier, last = conversation.messages
    return Conversation(messages=(*earlier, user(last.content[0], DRAFT_QUESTION)))


def _noted(conversation: Conversation, notes: str) -> Conversation:
    *earlier, last = conversation.messages
    opening = (user(last.content[0], DRAFT_QUESTION), assistant(notes))
    return Conversation(messages=(*earlier, *opening, user(*last.content[1:]))) if notes else conversation


def _write(pipeline: VargptPipeline, conversations: list[Conversation]) -> list[str]:
    settings = replace(
        pipeline.sampling, max_new_tokens=_LONGEST, max_images=0, images_per_prompt=1, seeds=[0] * len(conversations),
        guidance_scale=1.0, force_image=False, stop_after_image=False, text_temperature=0.0,
    )  # fmt: skip
    said = [""] * len(conversations)
    for event in pipeline.model.generate(pipeline.inputs(conversations), settings):
        if isinstance(event, Finished):
            said[event.sequence] = pipeline.processor.tokenizer.decode(event.token_ids, skip_special_tokens=True)
    return [words.strip() for words in said]
