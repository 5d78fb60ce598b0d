"""Instruction templates: captions and edit pairs become drawing, captioning and editing conversations.

Invariant: all choice comes from the generator passed in. Each task has one canonical form, used in evaluation:

    draw     user "draw {name}"                  assistant [image]
    caption  user [image] "what is this?"        assistant "{name}"
    edit     user [image] "{instruction}"        assistant [image]

`variety` sets how often another form than the canonical one is taken. Other forms come in two families: `short`, a
handful of words, so that a small model can learn from them, and `rich` (`vargpt.data.rich_instructions`), the many
openings, verbs and picture words that the paper describes, with answers that repeat the caption.
"""

from __future__ import annotations

import random
from typing import Any, Literal

from vargpt.data import rich_instructions
from vargpt.processing.conversation import Conversation, DrawPart, ImagePart, Message, assistant, user

CAPTION_QUESTION = "what is this?"

Style = Literal["short", "rich"]
"""The family of wordings that are not canonical."""

_DRAW_VERBS = ("draw", "paint", "sketch", "create", "make", "show me", "design", "generate", "depict", "render")
_DRAW_OPENINGS = ("", "", "please ", "can you ", "I want you to ", "could you ")
_PICTURES = ("a picture of ", "an image of ", "a drawing of ", "an icon of ", "")
_DRAW_WISHES = (
    "I need a picture of {name}",
    "I would like to see {name}",
    "let me see {name}",
    "a picture of {name}, please",
    "what does {name} look like?",
    "{name}",
)
_DRAW_ANSWERS = ("", "", "Here is {name}.", "I drew {name}.", "Here you are.", "{name}:")

_CAPTION_QUESTIONS = (
    "what does this show?",
    "what can you see?",
    "name this picture",
    "describe the image",
    "caption this",
    "which thing is in the picture?",
    "tell me what this is",
)

_EDIT_FRAMES = (
    "please {instruction}",
    "can you {instruction}?",
    "{instruction}, please",
    "take this picture and {instruction}",
    "now {instruction}",
)
_EDIT_ANSWERS = ("", "", "Done.", "Here is the new picture.", "Like this:")


def draw_prompt(name: str) -> Conversation:
    """The canonical drawing request, unanswered."""
    return Conversation(messages=(user(f"draw {name}"),))


def caption_prompt(image: Any) -> Conversation:
    """The canonical question about an image, unanswered."""
    return Conversation(messages=(user(ImagePart(image=image), CAPTION_QUESTION),))


def edit_prompt(source: Any, instruction: str) -> Conversation:
    """The canonical editing request, unanswered."""
    return Conversation(messages=(user(ImagePart(image=source), instruction),))


def canonical_draw(name: str, image: Any = None) -> Conversation:
    """The canonical drawing conversation; the answer is the image and nothing else."""
    return _answered(draw_prompt(name), DrawPart(image=image))


def canonical_caption(image: Any, name: str) -> Conversation:
    """The canonical captioning conversation; the answer is the caption and nothing else."""
    return _answered(caption_prompt(image), name)


def canonical_edit(source: Any, target: Any, instruction: str) -> Conversation:
    """The canonical editing conversation; the answer is the image and nothing else."""
    return _answered(edit_prompt(source, instruction), DrawPart(image=target))


def draw_conversation(
    name: str, image: Any, generator: random.Random, variety: float = 0.3, style: Style = "short"
) -> Conversation:
    """A drawing conversation, worded by the generator.

    Args:
        image: the target (any `DrawSource`), or None where the caller holds its bits.
        variety: chance of another form than the canonical one.
        style: family of the other forms.
    """
    if generator.random() >= variety:
        return canonical_draw(name, image)
    if style == "rich":
        return rich_instructions.draw(name, image, generator)
    if generator.random() < 0.5:
        request = (
            generator.choice(_DRAW_OPENINGS) + generator.choice(_DRAW_VERBS) + " " + generator.choice(_PICTURES) + name
        )
    else:
        request = generator.choice(_DRAW_WISHES).format(name=name)
    answer = generator.choice(_DRAW_ANSWERS).format(name=name)
    return Conversation(messages=(user(request), _drawn(answer, image)))


def caption_conversation(
    image: Any, name: str, generator: random.Random, variety: float = 0.3, style: Style = "short"
) -> Conversation:
    """A captioning conversation, worded by the generator; the answer is always the caption."""
    if generator.random() >= variety:
        return canonical_caption(image, name)
    if style == "rich":
        return rich_instructions.caption(image, name, generator)
    question = generator.choice(_CAPTION_QUESTIONS)
    part = ImagePart(image=image)
    asked = user(part, question) if generator.random() < 0.5 else user(question + " ", part)
    return Conversation(messages=(asked, assistant(name)))


def edit_conversation(
    source: Any,
    target: Any,
    instruction: str,
    generator: random.Random,
    variety: float = 0.3,
    style: Style = "short",
) -> Conversation:
    """An editing conversation, worded by the generator."""
    if generator.random() >= variety:
        return canonical_edit(source, target, instruction)
    if style == "rich":
        return rich_instructions.edit(source, target, instruction, generator)
    request = generator.choice(_EDIT_FRAMES).format(instruction=instruction)
    part = ImagePart(image=source)
    asked = user(part, request) if generator.random() < 0.5 else user(request + " ", part)
    return Conversation(messages=(asked, _drawn(generator.choice(_EDIT_ANSWERS), target)))


def drafted(conversation: Conversation, draft: str) -> Conversation:
    """A conversation whose last turn draws, with a draft in place of the words before its picture."""
    *earlier, last = conversation.messages
    pictures = [part for part in last.content if isinstance(part, DrawPart)]
    return Conversation(messages=(*earlier, assistant(draft, *pictures)))


def template_texts(style: Style = "short") -> list[str]:
    """All fixed wordings, to train a text tokenizer on together with the captions and instructions."""
    if style == "rich":
        return [CAPTION_QUESTION, *rich_instructions.template_texts()]
    draws = [
        f"{opening}{verb} {picture}" for opening in _DRAW_OPENINGS for verb in _DRAW_VERBS for picture in _PICTURES
    ]
    framed = (*_DRAW_WISHES, *_DRAW_ANSWERS, *_EDIT_FRAMES)
    fixed = [text.replace("{name}", "").replace("{instruction}", "") for text in framed]
    texts = [CAPTION_QUESTION, *draws, *fixed, *_CAPTION_QUESTIONS, *_EDIT_ANSWERS]
    return [text for text in texts if text]


def _drawn(answer: str, image: Any) -> Message:
    part = DrawPart(image=image)
    return assistant(answer, part) if answer else assistant(part)


def _answered(prompt: Conversation, answer: str | DrawPart) -> Conversation:
    return Conversation(messages=(*prompt.messages, assistant(answer)))
