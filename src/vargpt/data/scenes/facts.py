"""What a caption asserts, and how much of it holds in a scene.

Invariant: only what was said counts. A caption names everything that is in its picture, so `total` is among its facts:
a thing too many is an error, as is one too few.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

from vargpt.data.scenes.world import HOLDS_PLACE, Scene, Thing, clear_place, is_at


@dataclass(frozen=True)
class Mention:
    """A thing as it was said; None is not said."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    texture: str | None = None
    place: str | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether a thing can be meant."""
        return all(self.verdicts(thing).values())

    def verdicts(self, thing: Thing | None) -> dict[str, bool]:
        """What was said -> whether it is true of a thing; everything is false of no thing."""
        found = {}
        for name in ("shape", "colour", "size", "texture"):
            said = getattr(self, name)
            if said is not None:
                found[name] = thing is not None and getattr(thing, name) == said
        if self.place is not None:
            found["place"] = thing is not None and is_at(thing.x, thing.y, self.place, HOLDS_PLACE)
        return found or {"thing": thing is not None}


@dataclass(frozen=True)
class Facts:
    """The facts of a caption.

    Attributes:
        mentions: things, one entry each ("three stars" gives three equal entries).
        relations: (first mention, relation, second mention).
        total: number of things in the picture; None where not asserted.
        absent: things that must not be there.
    """

    mentions: tuple[Mention, ...] = ()
    relations: tuple[tuple[int, str, int], ...] = ()
    background: str | None = None
    total: int | None = None
    absent: tuple[Mention, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """One fact and whether it holds.

    Attributes:
        kind: shape, colour, size, texture, place, thing, relation, background, total or absent.
    """

    kind: str
    said: str
    holds: bool


def facts_of_scene(scene: Scene) -> Facts:
    """Everything that is true of a scene: looks, clear places, clear relations, background, total."""
    mentions = tuple(Mention(t.shape, t.colour, t.size, t.texture, clear_place(t)) for t in scene.things)
    relations = tuple(
        (first, relation, second)
        for first in range(len(mentions))
        for second in range(first + 1, len(mentions))
        for relation in sorted(scene.relations(first, second))
    )
    return Facts(mentions, relations, scene.background, len(mentions))


def judge(facts: Facts, scene: Scene) -> tuple[Verdict, ...]:
    """Say of every fact whether it holds in a scene, with the mentions assigned to things in the best way."""
    verdicts = [*_best_assignment(facts, scene)]
    if facts.background is not None:
        verdicts.append(Verdict("background", facts.background, scene.background == facts.background))
    if facts.total is not None:
        verdicts.append(Verdict("total", str(facts.total), len(scene.things) == facts.total))
    for mention in facts.absent:
        said = " ".join(word for word in (mention.size, mention.texture, mention.colour, mention.shape) if word)
        verdicts.append(Verdict("absent", said, not any(mention.fits(thing) for thing in scene.things)))
    return tuple(verdicts)


def share_that_holds(verdicts: tuple[Verdict, ...]) -> float:
    """Mean over facts, in [0, 1]; 1 where nothing was asserted."""
    return sum(verdict.holds for verdict in verdicts) / len(verdicts) if verdicts else 1.0


def _best_assignment(facts: Facts, scene: Scene) -> list[Verdict]:
    """Verdicts on mentions and relations under the assignment that grants most."""
    count = len(facts.mentions)
    slots: list[int | None] = [*range(len(scene.things))]
    slots += [None] * max(count - len(slots), 0)
    things = (*scene.things, None)
    granted = [
        [sum(mention.verdicts(things[-1 if slot is None else slot]).values()) for slot in slots]
        for mention in facts.mentions
    ]
    best, best_score = tuple(range(count)), -1
    for chosen in permutations(range(len(slots)), count):
        score = sum(granted[index][slot] for index, slot in enumerate(chosen))
        score += sum(
            _related(scene, slots[chosen[a]], relation, slots[chosen[b]]) for a, relation, b in facts.relations
        )
        if score > best_score:
            best, best_score = chosen, score
    verdicts = []
    for mention, slot in zip(facts.mentions, best, strict=True):
        place = slots[slot]
        for kind, holds in mention.verdicts(None if place is None else scene.things[place]).items():
            verdicts.append(Verdict(kind, str(getattr(mention, kind, "thing")), holds))
    for first, relation, second in facts.relations:
        holds = _related(scene, slots[best[first]], relation, slots[best[second]])
        verdicts.append(Verdict("relation", relation, holds))
    return verdicts


def _related(scene: Scene, first: int | None, relation: str, second: int | None) -> bool:
    if first is None or second is None:
        return False
    return relation in scene.loose_relations(first, second)
