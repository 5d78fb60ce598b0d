"""Notes: a model looks up what a question about a picture is about before it answers (docs/scenes.md).

Asked "what color is the star?", a small reader has to find a shape among all that it sees, what is asked of it, and the
answer in one step. Told to look first, it writes down "star red" and then has the answer before its eyes. The notes
stand before the question as a turn of their own, as they did in training (`vargpt.data.scenes.glances`).

Invariant: notes depend on their picture and question alone (words are greedy), and a question for a picture's caption,
which needs none, is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vargpt.data.instructions import CAPTION_QUESTION, CAPTION_QUESTIONS
from vargpt.data.scenes.drafts import DRAFT_QUESTION
from vargpt.data.scenes.glances import LOOK
from vargpt.model.events import Finished
from vargpt.processing.conversation import Conversation, ImagePart, TextPart, assistant, user

if TYPE_CHECKING:
    from vargpt.inference.pipeline import VargptPipeline

_TOLD_TO_LOOK = LOOK.partition("{")[0]
_LONGEST = 96
"""Tokens of notes; those about five things take about 40."""


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
    text = words.text.strip().casefold()
    return text not in {DRAFT_QUESTION, CAPTION_QUESTION, *CAPTION_QUESTIONS} and not text.startswith(_TOLD_TO_LOOK)


def _look(conversation: Conversation) -> Conversation:
    """The same conversation, with a look at what its question is about in the place of that question."""
    *earlier, last = conversation.messages
    picture, words = last.content
    assert isinstance(words, TextPart)
    return Conversation(messages=(*earlier, user(picture, LOOK.format(question=words.text.strip()))))


def _noted(conversation: Conversation, notes: str) -> Conversation:
    if not notes:
        return conversation
    question = conversation.messages[-1].content[1]
    return Conversation(messages=(*_look(conversation).messages, assistant(notes), user(question)))


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
