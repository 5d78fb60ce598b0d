"""Captions become facts again: the grammar of `words`, read backwards.

Invariant: `facts_of` returns what was said and nothing more, or None where any word is not understood: it never
guesses.
"""

from __future__ import annotations

import re
from dataclasses import replace

from vargpt.data.scenes.facts import Facts, Mention
from vargpt.data.scenes.words import AT_PLACE, NUMBERS, RELATION_WORDS, plural
from vargpt.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES

_ARTICLES = ("a", "an", "the")
_NOUNS: dict[str, str | None] = {
    **{shape: shape for shape in SHAPES},
    **{plural(shape): shape for shape in SHAPES},
    **dict.fromkeys(("thing", "things", "shape", "shapes", "object", "objects")),
}
_COUNTS = {
    **{word: index for index, word in enumerate(NUMBERS) if index},
    **{str(index): index for index in range(1, 6)},
}
_SPELLINGS = {
    "grey": "gray",
    "centre": "center",
    "middle": "center",
    "big": "large",
    "little": "small",
    "spotted": "dotted",
}
_REQUESTS = re.compile(
    r"^(?:please |can you |could you |i want you to |i would like to see |i need |let me see )*"
    r"(?:(?:draw|paint|sketch|create|make|show me|design|generate|depict|render|show) )?"
    r"(?:(?:a|an|the) (?:picture|image|drawing|icon|photo|scene) (?:of|with) )?"
    r"(?:(?:there (?:is|are)|(?:the |this )?(?:picture|image|scene) shows) )?"
)
_PLACES = sorted(((words.split(), place) for place, words in AT_PLACE.items()), key=lambda item: -len(item[0]))
_RELATIONS = sorted(
    ((words.split(), relation) for relation, wordings in RELATION_WORDS.items() for words in wordings),
    key=lambda item: -len(item[0]),
)


class _NotUnderstoodError(Exception):
    """A word that the grammar does not have at this place."""


class _Words:
    """The words of one sentence, with a place to read from."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.at = 0

    @property
    def rest(self) -> list[str]:
        return self.words[self.at :]

    def take(self, *expected: str) -> bool:
        """Step over these words if they come next."""
        if self.words[self.at : self.at + len(expected)] == list(expected):
            self.at += len(expected)
            return True
        return False

    def take_one(self, options: tuple[str, ...] | dict[str, int]) -> str | None:
        """Step over one word if it is among the options."""
        if self.at < len(self.words) and self.words[self.at] in options:
            self.at += 1
            return self.words[self.at - 1]
        return None


def facts_of(prompt: str) -> Facts | None:
    """Read a caption or a drawing request into the facts it asserts; None where it is not of this grammar.

    A list of things is complete: `total` is their number.
    """
    sentences = _sentences(prompt)
    if not sentences:
        return None
    try:
        facts = _first_sentence(_Words(sentences[0]))
        for words in sentences[1:]:
            facts = _relation_sentence(_Words(words), facts)
    except _NotUnderstoodError:
        return None
    return facts


def _sentences(text: str) -> list[list[str]]:
    """Lower-case words of each sentence, commas as words of their own, polite frames taken off."""
    text = " ".join(text.lower().split())
    text = _REQUESTS.sub("", text)
    text = re.sub(r"(, please|, thank you)?[.!?]*$", "", text)
    sentences = []
    for part in re.split(r"[.;!?]+\s*", text):
        words = [_SPELLINGS.get(word, word) for word in re.findall(r"[a-z0-9]+|,|[^\sa-z0-9,]", part)]
        if words:
            sentences.append(words)
    return sentences


def _first_sentence(words: _Words) -> Facts:
    background = _background(words)
    if background is not None:
        words.take(",")
        if not (words.take("there", "is") or words.take("there", "are")):
            raise _NotUnderstoodError
    if words.take("nothing") or words.take("empty"):
        mentions: tuple[Mention, ...] = ()
        relations: tuple[tuple[int, str, int], ...] = ()
    else:
        mentions, relations = _things(words)
    background = background or _background(words)
    if words.rest or (not mentions and background is None):
        raise _NotUnderstoodError
    return Facts(mentions, relations, background, len(mentions))


def _things(words: _Words) -> tuple[tuple[Mention, ...], tuple[tuple[int, str, int], ...]]:
    """`item relation item`, or `item, item and item`."""
    first = _item(words)
    relation = _relation(words)
    if relation is not None:
        second = _item(words)
        if len(first) != 1 or len(second) != 1:
            raise _NotUnderstoodError
        return (first[0], second[0]), ((0, relation, 1),)
    mentions = first
    while words.rest and (words.take(",", "and") or words.take(",") or words.take("and")):
        mentions += _item(words)
    return tuple(mentions), ()


def _item(words: _Words) -> list[Mention]:
    """One phrase with its number and place, as that many equal mentions."""
    number = words.take_one(_COUNTS)
    if number is None and words.take_one(_ARTICLES) is None:
        raise _NotUnderstoodError
    mention = _noun(words)
    for place_words, place in _PLACES:
        if words.take(*place_words):
            mention = replace(mention, place=place)
            break
    return [mention] * (_COUNTS[number] if number is not None else 1)


def _noun(words: _Words) -> Mention:
    """Size, texture and colour in any order, then a shape's name or `thing`."""
    found: dict[str, str] = {}
    while True:
        for name, options in (("size", tuple(SIZES)), ("texture", TEXTURES), ("colour", tuple(COLOURS))):
            word = words.take_one(options)
            if word is not None:
                if name in found:
                    raise _NotUnderstoodError
                found[name] = word
                break
        else:
            break
        words.take("and")
    noun = words.take_one(tuple(_NOUNS))
    if noun is None:
        raise _NotUnderstoodError
    return Mention(_NOUNS[noun], found.get("colour"), found.get("size"), found.get("texture"))


def _relation(words: _Words) -> str | None:
    for relation_words, relation in _RELATIONS:
        if words.take(*relation_words):
            return relation
    return None


def _background(words: _Words) -> str | None:
    """`on a white background`, if it comes next."""
    rest = words.rest
    if (
        len(rest) >= 4
        and rest[0] == "on"
        and rest[1] in _ARTICLES
        and rest[2] in BACKGROUNDS
        and rest[3] == "background"
    ):
        words.at += 4
        return rest[2]
    return None


def _relation_sentence(words: _Words, facts: Facts) -> Facts:
    """`the star is left of the square`, about things that the first sentence named."""
    first = _named(words, facts)
    if not words.take("is"):
        raise _NotUnderstoodError
    relation = _relation(words)
    if relation is None:
        raise _NotUnderstoodError
    second = _named(words, facts)
    if words.rest or first == second:
        raise _NotUnderstoodError
    return replace(facts, relations=(*facts.relations, (first, relation, second)))


def _named(words: _Words, facts: Facts) -> int:
    """The one mention that `the red star` can mean."""
    if not words.take("the"):
        raise _NotUnderstoodError
    wanted = _noun(words)
    meant = [
        index
        for index, mention in enumerate(facts.mentions)
        if all(
            getattr(wanted, name) in (None, getattr(mention, name)) for name in ("shape", "colour", "size", "texture")
        )
    ]
    if len(meant) != 1:
        raise _NotUnderstoodError
    return meant[0]
