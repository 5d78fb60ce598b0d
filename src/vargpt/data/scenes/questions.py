"""Questions about a scene, with their answers.

Invariant: a question has one right answer that follows from the scene. Where its presupposition fails ("what color is
the star?" with no star, or two) it is not asked. Yes and no are equally likely: the answer is chosen before the
question. A question about a train scene names no combination that is held out.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vargpt.data.scenes.words import NUMBERS, article, plural, short_name
from vargpt.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_PAIRS,
    HELD_OUT_RELATIONS,
    INVERSE,
    SHAPES,
    SIZES,
    Scene,
    clear_place,
    is_held_out,
)

QuestionKind = Literal[
    "existence", "colour", "shape", "count", "relation", "comparison", "size", "texture", "place", "background", "side"
]
ALL_KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)
QUESTION_KINDS: tuple[QuestionKind, ...] = tuple(kind for kind in ALL_KINDS if kind != "side")
"""What is asked where no kinds are named, and by the evaluation. "Which is further left?" is there to teach: a model
that can tell learns from it to answer "is the star left of the ring?", which alone it does not (docs/log.md)."""


@dataclass(frozen=True)
class Question:
    """A question and the one right answer.

    Attributes:
        choices: all answers a question of this form can have; a wrong one is any other of them.
    """

    kind: QuestionKind
    text: str
    answer: str
    choices: tuple[str, ...]


_YES_NO = ("yes", "no")


def ask(scene: Scene, generator: random.Random, kind: QuestionKind | None = None) -> Question | None:
    """One question about a scene; None where the scene allows none of this kind.

    Args:
        kind: by chance among those that the scene allows where None (existence and count always are).

    Raises:
        ValueError: for an unknown kind.
    """
    if kind is None:
        return ask_one_of(scene, generator, QUESTION_KINDS)
    if kind not in _MAKERS:
        raise ValueError(f"unknown question kind {kind!r}, expected one of {', '.join(_MAKERS)}")
    return _MAKERS[kind](scene, generator)


def ask_one_of(scene: Scene, generator: random.Random, kinds: Sequence[QuestionKind]) -> Question:
    """One question of these kinds; of another where the scene allows none of them."""
    for several in (list(kinds), list(QUESTION_KINDS)):
        generator.shuffle(several)
        for kind in several:
            question = _MAKERS[kind](scene, generator)
            if question is not None:
                return question
    raise RuntimeError("every scene allows a question about its background")


def ask_several(
    scene: Scene, generator: random.Random, number: int, kinds: Sequence[QuestionKind] = QUESTION_KINDS
) -> list[Question]:
    """Up to `number` different questions about a scene, at least one; the first is the one of `ask_one_of`."""
    found: dict[str, Question] = {}
    for _ in range(2 * number - 1):  # a scene of one thing allows few
        question = ask_one_of(scene, generator, kinds)
        found.setdefault(question.text, question)
        if len(found) == number:
            break
    return list(found.values())


def _existence(scene: Scene, generator: random.Random) -> Question | None:
    """Is there a red circle? A no is hard: one attribute of a thing that is there is changed, where there is one."""
    there = {(thing.colour, thing.shape) for thing in scene.things}
    if there and generator.random() < 0.5:
        colour, shape = generator.choice(sorted(there))
    else:
        absent = [pair for pair in _absent(scene, there) if is_held_out(scene) or pair not in HELD_OUT_PAIRS]
        if there and generator.random() < 0.7:
            absent = [pair for pair in absent if any((pair[0] == c) != (pair[1] == s) for c, s in there)] or absent
        colour, shape = generator.choice(absent)
    answer = "yes" if (colour, shape) in there else "no"
    words = generator.choice(("is there {}?", "is there {} in the picture?", "can you see {}?"))
    return Question("existence", words.format(article(f"{colour} {shape}")), answer, _YES_NO)


def _absent(scene: Scene, there: set[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in there]


def _colour(scene: Scene, generator: random.Random) -> Question | None:
    """What color is the star? Asked where all stars have one colour."""
    colours: dict[str, set[str]] = {}
    for thing in scene.things:
        colours.setdefault(thing.shape, set()).add(thing.colour)
    shapes = sorted(shape for shape, found in colours.items() if len(found) == 1)
    if not shapes:
        return None
    shape = generator.choice(shapes)
    alone = sum(thing.shape == shape for thing in scene.things) == 1
    text = f"what color {f'is the {shape}' if alone else f'are the {plural(shape)}'}?"
    return Question("colour", text, min(colours[shape]), tuple(COLOURS))


def _shape(scene: Scene, generator: random.Random) -> Question | None:
    """What shape is the red thing? Asked where one thing alone has that colour."""
    counts = Counter(thing.colour for thing in scene.things)
    alone = [thing for thing in scene.things if counts[thing.colour] == 1]
    if not alone:
        return None
    thing = generator.choice(alone)
    words = generator.choice(("what shape is the {} thing?", "what is the {} thing?"))
    return Question("shape", words.format(thing.colour), thing.shape, SHAPES)


def _count(scene: Scene, generator: random.Random) -> Question | None:
    """How many stars are there? Of a shape, of a colour, of both, or of all things; none at times."""
    form = generator.random()
    if form < 0.2:
        return Question("count", "how many things are there?", str(len(scene.things)), _NUMERALS)
    there = bool(scene.things) and generator.random() < 0.8
    thing = generator.choice(scene.things) if there else None
    shape = thing.shape if thing is not None else generator.choice(SHAPES)
    colour = thing.colour if thing is not None else generator.choice(tuple(COLOURS))
    if form < 0.6:
        what, number = plural(shape), sum(other.shape == shape for other in scene.things)
    elif form < 0.8 or ((colour, shape) in HELD_OUT_PAIRS and not is_held_out(scene)):
        what, number = f"{colour} things", sum(other.colour == colour for other in scene.things)
    else:
        what = f"{colour} {plural(shape)}"
        number = sum((other.colour, other.shape) == (colour, shape) for other in scene.things)
    return Question("count", f"how many {what} are there?", str(number), _NUMERALS)


_NUMERALS = tuple(str(number) for number in range(len(NUMBERS)))


def _named_relations(scene: Scene) -> list[tuple[int, str, int]]:
    """All clear relations of two things that can be named shortly: (first, relation, second)."""
    return [
        (first, relation, second)
        for first in range(len(scene.things))
        for second in range(len(scene.things))
        if first != second and short_name(scene, first) and short_name(scene, second)
        for relation in sorted(scene.relations(first, second))
    ]


def _relation(scene: Scene, generator: random.Random) -> Question | None:
    """Is the star left of the square? The no is its opposite."""
    pairs = _named_relations(scene)
    if not pairs:
        return None
    first, relation, second = generator.choice(pairs)
    answer = generator.choice(_YES_NO)
    asked = relation if answer == "yes" else INVERSE[relation]
    thing, other = scene.things[first], scene.things[second]
    denied = {(thing.colour, thing.shape, INVERSE[relation]), (other.colour, other.shape, relation)}
    if denied & HELD_OUT_RELATIONS and not is_held_out(scene):
        return None  # nor with a yes, or there would be more of those
    text = f"is the {short_name(scene, first)} {asked} the {short_name(scene, second)}?"
    return Question("relation", text, answer, _YES_NO)


_FURTHER = {"left of": "further left", "right of": "further right", "above": "higher", "below": "lower"}


def _side(scene: Scene, generator: random.Random) -> Question | None:
    """Which is further left, the star or the square?"""
    found = [pair for pair in _named_relations(scene) if pair[1] in _FURTHER]
    if not found:
        return None
    first, relation, second = generator.choice(found)
    names = [f"the {short_name(scene, first)}", f"the {short_name(scene, second)}"]
    return _which(_FURTHER[relation], names, names[0], "side", generator)


def _comparison(scene: Scene, generator: random.Random) -> Question | None:
    """More circles than squares? Which is larger?"""
    counts = Counter(thing.shape for thing in scene.things)
    numbers = [(a, b) for a in sorted(counts) for b in sorted(counts) if counts[a] > counts[b]]
    sizes = [
        (first, second)
        for first in range(len(scene.things))
        for second in range(len(scene.things))
        if scene.things[first].radius > scene.things[second].radius
        and short_name(scene, first)
        and short_name(scene, second)
    ]
    if numbers and (not sizes or generator.random() < 0.5):
        more, fewer = generator.choice(numbers)
        answer = generator.choice(_YES_NO)
        first_shape, second_shape = (more, fewer) if answer == "yes" else (fewer, more)
        text = f"are there more {plural(first_shape)} than {plural(second_shape)}?"
        return Question("comparison", text, answer, _YES_NO)
    if not sizes:
        return None
    larger, smaller = generator.choice(sizes)
    names = [f"the {short_name(scene, larger)}", f"the {short_name(scene, smaller)}"]
    word = generator.choice(("larger", "smaller"))
    return _which(word, names, names[0] if word == "larger" else names[1], "comparison", generator)


def _which(word: str, names: list[str], answer: str, kind: QuestionKind, generator: random.Random) -> Question:
    told = list(names)
    generator.shuffle(told)
    return Question(kind, f"which is {word}, {told[0]} or {told[1]}?", answer, tuple(sorted(names)))


def _size(scene: Scene, generator: random.Random) -> Question | None:
    """Is the star small or large? Asked of things that are one or the other."""
    named = [(index, short_name(scene, index)) for index, t in enumerate(scene.things) if t.size != "medium"]
    known = [(index, name) for index, name in named if name is not None and name.split()[0] not in SIZES]
    if not known:
        return None
    index, name = generator.choice(known)
    return Question("size", f"is the {name} small or large?", scene.things[index].size, ("small", "large"))


def _texture(scene: Scene, generator: random.Random) -> Question | None:
    """Is the star plain, striped or dotted?"""
    named = [(index, short_name(scene, index)) for index in range(len(scene.things))]
    known = [(index, name) for index, name in named if name is not None and scene.things[index].size != "small"]
    if not known:
        return None
    index, name = generator.choice(known)
    text = f"is the {name} plain, striped or dotted?"
    return Question("texture", text, scene.things[index].texture, ("plain", "striped", "dotted"))


def _place(scene: Scene, generator: random.Random) -> Question | None:
    """Where is the star?"""
    named = [(clear_place(thing), short_name(scene, index)) for index, thing in enumerate(scene.things)]
    known = [(place, name) for place, name in named if place is not None and name is not None]
    if not known:
        return None
    place, name = generator.choice(known)
    choices = tuple(f"{row} {column}".strip() for row in ("top", "", "bottom") for column in ("left", "", "right"))
    return Question("place", f"where is the {name}?", place, tuple(choice or "center" for choice in choices))


def _background(scene: Scene, generator: random.Random) -> Question | None:
    """What is the background?"""
    return Question("background", "what is the background?", scene.background, BACKGROUNDS)


_MAKERS: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "existence": _existence,
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "relation": _relation,
    "comparison": _comparison,
    "size": _size,
    "texture": _texture,
    "place": _place,
    "background": _background,
    "side": _side,
}
