"""The wide family of wordings: requests of many openings, verbs and picture words, answers that repeat what was asked.

Invariant: all choice comes from the generator passed in; a caption or instruction stands in the request, and again in
the answer, letter by letter (but for the full stop at its end).

This is the variety of instruction that the paper trains on (VARGPT-v1.1, figures 8 to 11), in words of our own:

    Could you sketch a colourful painting of {caption}?   ->   Here is a painting of {caption}. [image]
    [image] Rework this photo: {instruction}.             ->   I have reworked it as you asked: {instruction}. [image]
"""

from __future__ import annotations

import random
from typing import Any

from vargpt.processing.conversation import Conversation, DrawPart, ImagePart, assistant, user

_VERBS = ("draw", "paint", "sketch", "create", "make", "design", "produce", "compose", "render", "generate", "prepare")
_DONE = ("drawn", "painted", "sketched", "created", "made", "designed", "produced", "composed", "rendered", "generated")
_NOUNS = ("picture", "image", "drawing", "painting", "photo", "illustration", "scene", "sketch", "artwork", "figure")
_LOOKS = ("", "", "", "detailed ", "colourful ", "carefully made ", "new ", "simple ", "finished ", "artistic ")

_ASKED_TO_ACT = (
    "{Verb} {picture} of {name}.",
    "Please {verb} {picture} of {name}.",
    "Can you {verb} {picture} of {name}?",
    "Could you {verb} {picture} of {name}?",
    "Would you {verb} {picture} of {name}, please?",
    "I would like you to {verb} {picture} of {name}.",
    "Your task: {verb} {picture} of {name}.",
    "Let us {verb} {picture} of {name}.",
)
_ASKED_FOR = (
    "I need {picture} of {name}.",
    "I want to see {picture} of {name}.",
    "I would love {picture} of {name}.",
    "Give me {picture} of {name}.",
    "Show me {picture} of {name}.",
    "May I have {picture} of {name}?",
    "What I am looking for is {picture} of {name}.",
    "How would {picture} of {name} look?",
)
_DRAWN = (
    "Here is {picture} of {name}.",
    "I have {done} {picture} of {name}.",
    "This {noun} shows {name}.",
    "In this {noun} you see {name}.",
    "As you asked, {picture} of {name}.",
    "Your {noun} of {name} is ready.",
)

_QUESTIONS = (
    "What does this {noun} show?",
    "What can be seen in this {noun}?",
    "Describe this {noun}.",
    "Please describe the {noun} in a few words.",
    "Write a caption for this {noun}.",
    "Which words fit this {noun}?",
    "Tell me what is in the {noun}.",
    "Can you say what this {noun} is of?",
)

_EDIT_VERBS = ("Change", "Rework", "Edit", "Alter", "Redo", "Adjust", "Modify", "Transform")
_EDIT_DONE = ("changed", "reworked", "edited", "altered", "redone", "adjusted", "modified", "transformed")
_EDITS = (
    ("{Verb} this {noun} ", ": {instruction}."),
    ("", " {Verb} this {noun}: {instruction}."),
    ("Here is my {noun}: ", " {Verb} it like this: {instruction}."),
    ("Start from this {noun} ", " and do the following: {instruction}."),
    ("What I want done to this {noun} ", " is this: {instruction}."),
    ("Take the {noun} ", " and {verb} it: {instruction}."),
    ("Can you {verb} this {noun} ", " in this way: {instruction}?"),
    ("My wish for the {noun} ", " is: {instruction}."),
)
_EDITED = (
    "I have {done} it as you asked: {instruction}.",
    "Here is the {done} {noun}: {instruction}.",
    "This is the {noun} after the change: {instruction}.",
    "The result of your wish ({instruction}) is this {noun}.",
    "The {noun}, {done}: {instruction}.",
)


def draw(name: str, image: Any, generator: random.Random) -> Conversation:
    """A drawing request and an answer that repeats what is drawn."""
    words = {"name": _inner(name), **_words(generator)}
    frames = _ASKED_TO_ACT if generator.random() < 0.5 else _ASKED_FOR
    request = generator.choice(frames).format(**words)
    words |= {"picture": _picture(words["noun"], generator)}
    answer = generator.choice(_DRAWN).format(**words)
    return Conversation(messages=(user(request), assistant(answer, DrawPart(image=image))))


def caption(image: Any, name: str, generator: random.Random) -> Conversation:
    """A question about an image; the answer is the caption and nothing else."""
    question = generator.choice(_QUESTIONS).format(noun=generator.choice(_NOUNS))
    part = ImagePart(image=image)
    asked = user(part, question) if generator.random() < 0.5 else user(question + " ", part)
    return Conversation(messages=(asked, assistant(name)))


def edit(source: Any, target: Any, instruction: str, generator: random.Random) -> Conversation:
    """An editing request with the image somewhere in it, and an answer that repeats the instruction."""
    number = generator.randrange(len(_EDIT_VERBS))
    verb, done = _EDIT_VERBS[number], _EDIT_DONE[number]
    words = {"instruction": _inner(instruction), "noun": generator.choice(_NOUNS), "done": done}
    words |= {"Verb": verb, "verb": verb.lower()}
    before, after = (text.format(**words) for text in generator.choice(_EDITS))
    part = ImagePart(image=source)
    asked = user(before, part, after) if before else user(part, after)
    answer = generator.choice(_EDITED).format(**words)
    return Conversation(messages=(asked, assistant(answer, DrawPart(image=target))))


def template_texts() -> list[str]:
    """All fixed wordings, each word in each of its places at least once."""
    frames = [
        *_ASKED_TO_ACT,
        *_ASKED_FOR,
        *_DRAWN,
        *_QUESTIONS,
        *_EDITED,
        *(before + after for before, after in _EDITS),
    ]
    verbs = [*_VERBS, *(verb.lower() for verb in _EDIT_VERBS)]
    fields = {
        "{Verb}": [verb.capitalize() for verb in verbs],
        "{verb}": verbs,
        "{done}": [*_DONE, *_EDIT_DONE],
        "{noun}": list(_NOUNS),
        "{picture}": [_article(look + noun) for look in _LOOKS for noun in _NOUNS],
        "{name}": [""],
        "{instruction}": [""],
    }
    texts = []
    for turn in range(max(len(words) for words in fields.values())):
        for text in frames:
            for field, words in fields.items():
                text = text.replace(field, words[turn % len(words)])
            texts.append(text)
    return list(dict.fromkeys(texts))


def _words(generator: random.Random) -> dict[str, str]:
    verb, noun = generator.choice(_VERBS), generator.choice(_NOUNS)
    picture = _picture(noun, generator)
    return {"verb": verb, "Verb": verb.capitalize(), "done": generator.choice(_DONE), "noun": noun, "picture": picture}


def _picture(noun: str, generator: random.Random) -> str:
    return _article(generator.choice(_LOOKS) + noun)


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _inner(text: str) -> str:
    """A text as part of a sentence: without the full stop at its end."""
    return text.strip().removesuffix(".") or text
