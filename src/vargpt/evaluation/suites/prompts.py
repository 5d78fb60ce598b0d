"""Drawing prompts for GenEval's skills, in the words of the scenes grammar, and what each skill is judged by.

Invariant: a prompt is a function of (seed, group, index), worded as the short captions of training are: it names every
thing with its colour and leaves the background open. Prompts of the six skills name no held-out combination; those of
`unseen` name one each.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from vargpt.data.scenes.facts import Facts
from vargpt.data.scenes.parser import facts_of
from vargpt.data.scenes.sampler import sample_scene
from vargpt.data.scenes.words import Said, long_caption, phrase, short_caption
from vargpt.data.scenes.world import (
    COLOURS,
    HELD_OUT_PAIRS,
    HELD_OUT_RELATIONS,
    INVERSE,
    SHAPES,
    Thing,
)

SKILLS = {
    "single-object": "single object",
    "two-objects": "two objects",
    "counting": "counting",
    "colours": "colours",
    "position": "position",
    "attribute-binding": "attribute binding",
}
"""GenEval's skills (arXiv 2310.11513, table 1): name in measures -> what people read."""

GROUPS = {
    **SKILLS,
    "unseen": "unseen combinations",
    "captions": "captions of any scene",
    "long-captions": "long captions",
}
_SIDES = ("left of", "right of", "above", "below")
_KNOWN = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in HELD_OUT_PAIRS)
_SAID = Said()
Pair = tuple[str, str]


@dataclass(frozen=True)
class DrawPrompt:
    """A prompt.

    Attributes:
        facts: all that it asserts.
        judged: what decides right or wrong: all of it, but the colours where the skill is not about them.
    """

    key: str
    group: str
    prompt: str
    facts: Facts
    judged: Facts


def draw_prompt(seed: int, group: str, index: int, aspect: float = 1.0) -> DrawPrompt:
    """Make one prompt.

    Args:
        aspect: width / height of the pictures it is for.

    Raises:
        ValueError: for an unknown group.
    """
    if group not in _MAKERS:
        raise ValueError(f"unknown group {group!r}, expected one of {', '.join(_MAKERS)}")
    generator = random.Random(f"evaluation {seed} draw {group} {index}")
    prompt = _MAKERS[group](seed, index, generator, aspect)
    facts = facts_of(prompt)
    assert facts is not None
    judged = facts
    if group in ("single-object", "two-objects"):
        judged = replace(facts, mentions=tuple(replace(mention, colour=None) for mention in facts.mentions))
    return DrawPrompt(f"{group} {index}", group, prompt, facts, judged)


def is_unseen_prompt(facts: Facts) -> bool:
    """Whether facts name a combination that training never sees."""
    looks = [(mention.colour, mention.shape) for mention in facts.mentions]
    return any(look in HELD_OUT_PAIRS for look in looks) or any(
        (*looks[first], relation) in HELD_OUT_RELATIONS or (*looks[second], INVERSE[relation]) in HELD_OUT_RELATIONS
        for first, relation, second in facts.relations
    )


def _name(pair: Pair, count: int = 1) -> str:
    return phrase(Thing(pair[1], pair[0]), _SAID, count)


def _other(pair: Pair, generator: random.Random) -> Pair:
    """A thing that shares neither colour nor shape."""
    return generator.choice([other for other in _KNOWN if other[0] != pair[0] and other[1] != pair[1]])


def _single(seed: int, index: int, generator: random.Random, aspect: float) -> str:
    """Every colour and shape that training knows in turn."""
    del generator, aspect
    order = list(_KNOWN)
    random.Random(f"evaluation {seed} order single-object {index // len(order)}").shuffle(order)
    return _name(order[index % len(order)])


def _colours(seed: int, index: int, generator: random.Random, aspect: float) -> str:
    """As `_single` in another order."""
    del generator, aspect
    order = list(_KNOWN)
    random.Random(f"evaluation {seed} order colours {index // len(order)}").shuffle(order)
    return _name(order[index % len(order)])


def _two(seed: int, index: int, generator: random.Random, aspect: float) -> str:
    del seed, index, aspect
    first = generator.choice(_KNOWN)
    return f"{_name(first)} and {_name(_other(first, generator))}"


def _counting(seed: int, index: int, generator: random.Random, aspect: float) -> str:
    """Two, three, four and five in turn."""
    del seed, aspect
    return _name(generator.choice(_KNOWN), 2 + index % 4)


def _position(seed: int, index: int, generator: random.Random, aspect: float) -> str:
    """The four sides in turn."""
    del seed, aspect
    relation = _SIDES[index % 4]
    while True:
        first = generator.choice(_KNOWN)
        second = _other(first, generator)
        if not _is_held_out(first, relation, second):
            return f"{_name(first)} {relation} {_name(second)}"


def _unseen(seed: int, index: int, generator: random.Random, aspect: float) -> str:
    """In turn: a held-out colour and shape alone, beside another thing, several times, and a held-out relation."""
    del seed, aspect
    pair = generator.choice(sorted(HELD_OUT_PAIRS))
    if index % 4 == 0:
        return _name(pair)
    if index % 4 == 1:
        names = [_name(pair), _name(_other(pair, generator))]
        generator.shuffle(names)
        return " and ".join(names)
    if index % 4 == 2:
        return _name(pair, generator.randint(2, 4))
    while True:
        relation = generator.choice(_SIDES)
        first = generator.choice(_KNOWN)
        second = _other(first, generator)
        if _is_held_out(first, relation, second):
            return f"{_name(first)} {relation} {_name(second)}"


def _caption(seed: int, index: int, generator: random.Random, aspect: float) -> str:
    del seed, index
    return short_caption(sample_scene(generator, "validation", aspect=aspect))


def _long_caption(seed: int, index: int, generator: random.Random, aspect: float) -> str:
    del seed, index
    return long_caption(sample_scene(generator, "validation", aspect=aspect))


def _is_held_out(first: Pair, relation: str, second: Pair) -> bool:
    return (*first, relation) in HELD_OUT_RELATIONS or (*second, INVERSE[relation]) in HELD_OUT_RELATIONS


_MAKERS: dict[str, Callable[[int, int, random.Random, float], str]] = {
    "single-object": _single,
    "two-objects": _two,
    "counting": _counting,
    "colours": _colours,
    "position": _position,
    "attribute-binding": _two,
    "unseen": _unseen,
    "captions": _caption,
    "long-captions": _long_caption,
}
