"""The grammar: scenes in English, short and long.

Invariant: every caption is true of its scene, names every thing in it, and is read back by `parser.facts_of` into
facts that hold. Wording comes from the generator passed in; without one it is the canonical one.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from vargpt.data.scenes.world import Scene, Thing, clear_place

NUMBERS = ("no", "one", "two", "three", "four", "five")
AT_PLACE = {
    "top left": "in the top left",
    "top": "at the top",
    "top right": "in the top right",
    "left": "on the left",
    "center": "in the center",
    "right": "on the right",
    "bottom left": "in the bottom left",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right",
}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "in front of": ("in front of", "partly covering"),
    "behind": ("behind", "partly hidden by"),
}
"""Wordings of each relation, the canonical one first."""


@dataclass(frozen=True)
class Said:
    """What a phrase says of a thing beside colour and shape."""

    size: bool = False
    texture: bool = True


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return {"cross": "crosses"}.get(shape, f"{shape}s")


def article(phrase: str) -> str:
    """A phrase with `a` or `an` before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def noun(thing: Thing, said: Said, count: int = 1) -> str:
    """A thing without its article: `small striped red circle`."""
    words = [thing.size] if said.size and thing.size != "medium" else []
    if said.texture and thing.texture != "plain":
        words.append(thing.texture)
    words += [thing.colour, thing.shape if count == 1 else plural(thing.shape)]
    return " ".join(words)


def phrase(thing: Thing, said: Said, count: int = 1) -> str:
    """A thing with its article or number: `an orange star`, `three yellow triangles`."""
    return article(noun(thing, said)) if count == 1 else f"{NUMBERS[count]} {noun(thing, said, count)}"


def on_background(background: str) -> str:
    """`on a white background`."""
    return f"on {article(background)} background"


def join(items: list[str]) -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def short_caption(scene: Scene, generator: random.Random | None = None) -> str:
    """A caption of a handful of words: the prompt to draw the scene with.

    Two different things that stand in a clear relation are told by it. Canonically sizes other than medium and
    textures other than plain are said, the background is not; a generator leaves sizes out at times and adds place or
    background.
    """
    chance = generator.random if generator is not None else None
    background = f" {on_background(scene.background)}" if chance is not None and chance() < 0.25 else ""
    if not scene.things:
        return f"nothing {on_background(scene.background)}"
    said = Said(size=chance is None or chance() < 0.6)
    groups = _groups(scene, said)
    if len(scene.things) == 2 and len(groups) == 2:
        relations = sorted(scene.relations(0, 1))
        if relations and (chance is None or chance() < 0.75):
            return _pair(scene, said, relations, generator) + background
    place = clear_place(scene.things[0])
    if len(scene.things) == 1 and place is not None and chance is not None and chance() < 0.3:
        return f"{phrase(scene.things[0], said)} {AT_PLACE[place]}{background}"
    items = [phrase(scene.things[indices[0]], said, len(indices)) for indices in groups]
    if generator is not None:
        generator.shuffle(items)
    return join(items) + background


def _pair(scene: Scene, said: Said, relations: list[str], generator: random.Random | None) -> str:
    """Two things by a relation: the depth where they overlap, from either thing's side by chance."""
    depth = [relation for relation in relations if relation in ("in front of", "behind")]
    first, second = (1, 0) if (generator.random() < 0.5 if generator is not None else bool(depth)) else (0, 1)
    names = sorted(scene.relations(first, second))
    names = [relation for relation in names if relation in ("in front of", "behind")] or names
    relation = generator.choice(names) if generator is not None else names[0]
    subject, other = (phrase(scene.things[index], said) for index in (first, second))
    return f"{subject} {relation_words(relation, generator)} {other}"


def relation_words(relation: str, generator: random.Random | None) -> str:
    """One wording of a relation, mostly the canonical one."""
    words = RELATION_WORDS[relation]
    return words[1] if generator is not None and generator.random() < 0.25 else words[0]


def _groups(scene: Scene, said: Said) -> list[list[int]]:
    """Indices of the things that one phrase names together."""
    groups: dict[str, list[int]] = {}
    for index, thing in enumerate(scene.things):
        groups.setdefault(noun(thing, said), []).append(index)
    return list(groups.values())


_OPENINGS = (
    "There {be} {things} {background}.",
    "{Background} there {be} {things}.",
    "The picture shows {things} {background}.",
)


def long_caption(scene: Scene, generator: random.Random | None = None) -> str:
    """A caption of full sentences: background, every thing with size, texture and clear place, clear relations."""
    said = Said(size=True)
    background = on_background(scene.background)
    if not scene.things:
        return f"There is nothing {background}."
    groups = _groups(scene, said)
    items = []
    for indices in groups:
        thing = scene.things[indices[0]]
        place = clear_place(thing) if len(indices) == 1 else None
        items.append(phrase(thing, said, len(indices)) + (f" {AT_PLACE[place]}" if place else ""))
    if generator is not None:
        generator.shuffle(items)
    opening = generator.choice(_OPENINGS) if generator is not None else _OPENINGS[0]
    be = "is" if items[0].split()[0] in ("a", "an") else "are"
    text = opening.format(be=be, things=join(items), background=background, Background=background.capitalize())
    return " ".join([text, *_relation_sentences(scene, generator)])


def _relation_sentences(scene: Scene, generator: random.Random | None) -> list[str]:
    """Up to two sentences on pairs of things that can be named apart."""
    pairs = [
        (first, relation, second)
        for first in range(len(scene.things))
        for second in range(len(scene.things))
        if first != second
        for relation in sorted(scene.relations(first, second))
    ]
    told: list[tuple[int, str, int]] = []
    if generator is not None:
        generator.shuffle(pairs)
    for first, relation, second in pairs:
        names = short_name(scene, first), short_name(scene, second)
        fresh = all({first, second} != {a, b} for a, _, b in told)
        if len(told) < 2 and fresh and None not in names:
            told.append((first, relation, second))
    return [
        f"The {short_name(scene, first)} is {relation_words(relation, generator)} the {short_name(scene, second)}."
        for first, relation, second in told
    ]


def short_name(scene: Scene, index: int) -> str | None:
    """The shortest words that mean one thing and no other: shape, or colour and shape, or with its size; else None."""
    thing = scene.things[index]
    shapes = Counter(other.shape for other in scene.things)
    if shapes[thing.shape] == 1:
        return thing.shape
    looks = Counter((other.colour, other.shape) for other in scene.things)
    if looks[thing.colour, thing.shape] == 1:
        return f"{thing.colour} {thing.shape}"
    sized = Counter((other.size, other.colour, other.shape) for other in scene.things)
    if sized[thing.size, thing.colour, thing.shape] == 1 and thing.size != "medium":
        return f"{thing.size} {thing.colour} {thing.shape}"
    return None


def full_name(scene: Scene, index: int) -> str | None:
    """Colour and shape, with the size where it is needed to mean one thing; None where that is not enough."""
    name = short_name(scene, index)
    thing = scene.things[index]
    return f"{thing.colour} {thing.shape}" if name == thing.shape else name
