"""Edit instructions, with the scene that results.

Invariant: an instruction means one thing of the source and one result: whatever it does not name stays as it was.
Source and target belong to the same split, and both are legible.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from vargpt.data.scenes.facts import Facts, Mention
from vargpt.data.scenes.sampler import find_place, random_texture
from vargpt.data.scenes.words import AT_PLACE, Said, full_name, on_background, phrase
from vargpt.data.scenes.world import (
    BACKGROUNDS,
    COLOURS,
    HOLDS_PLACE,
    PLACES,
    SHAPES,
    TEXTURES,
    Scene,
    Split,
    Thing,
    clear_place,
    is_at,
    is_legible,
    split_of,
)

EditKind = Literal["recolour", "add", "remove", "move", "resize", "replace", "background", "restyle"]


@dataclass(frozen=True)
class Edit:
    """A change of a scene.

    Attributes:
        instruction: what to say.
        asked: facts that the target has and the source has not.
        changed: index in the source of the thing that is changed or removed; None where none is.
    """

    kind: EditKind
    instruction: str
    source: Scene
    target: Scene
    asked: Facts
    changed: int | None = None


def make_edit(
    scene: Scene, generator: random.Random, kind: EditKind | None = None, split: Split | None = None
) -> Edit | None:
    """An edit of a scene; None where the scene allows none of this kind.

    Args:
        kind: by chance among those that the scene allows where None.
        split: the split that the result must belong to; the scene's own by default.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind is not None and kind not in _MAKERS:
        raise ValueError(f"unknown edit kind {kind!r}, expected one of {', '.join(_MAKERS)}")
    wanted = split if split is not None else split_of(scene)
    kinds = [kind] if kind is not None else generator.sample(sorted(_MAKERS), len(_MAKERS))
    for name in kinds:
        for _ in range(12):
            edit = _MAKERS[name](scene, generator)
            if edit is not None and _allowed(edit.target, wanted):
                return edit
    return None


def _allowed(target: Scene, wanted: Split) -> bool:
    split = split_of(target)
    return is_legible(target) and (split == wanted or (wanted == "validation" and split == "train"))


def _named(scene: Scene, generator: random.Random) -> tuple[int, str] | None:
    """A thing that can be named, and its name."""
    names = [(index, full_name(scene, index)) for index in range(len(scene.things))]
    known = [(index, name) for index, name in names if name is not None]
    return generator.choice(known) if known else None


def _with(scene: Scene, index: int, thing: Thing) -> Scene:
    return replace(scene, things=(*scene.things[:index], thing, *scene.things[index + 1 :]))


def _recolour(scene: Scene, generator: random.Random) -> Edit | None:
    named = _named(scene, generator)
    if named is None:
        return None
    index, name = named
    thing = scene.things[index]
    colour = generator.choice([other for other in COLOURS if other != thing.colour])
    words = generator.choice(("make the {} {}", "make the {} {}", "paint the {} {}", "color the {} {}"))
    target = _with(scene, index, replace(thing, colour=colour))
    asked = _asked(target, Mention(shape=thing.shape, colour=colour))
    return Edit("recolour", words.format(name, colour), scene, target, asked, index)


def _restyle(scene: Scene, generator: random.Random) -> Edit | None:
    named = _named(scene, generator)
    if named is None:
        return None
    index, name = named
    thing = scene.things[index]
    texture = generator.choice([other for other in TEXTURES if other != thing.texture])
    words = generator.choice(("make the {} {}", "turn the {} {}"))
    target = _with(scene, index, replace(thing, texture=texture))
    asked = _asked(target, Mention(shape=thing.shape, colour=thing.colour, texture=texture))
    return Edit("restyle", words.format(name, texture), scene, target, asked, index)


def _resize(scene: Scene, generator: random.Random) -> Edit | None:
    named = _named(scene, generator)
    if named is None:
        return None
    index, name = named
    thing = scene.things[index]
    sizes = ["large"] if thing.size == "small" else ["small"] if thing.size == "large" else ["small", "large"]
    size = generator.choice(sizes)
    target = _with(scene, index, replace(thing, size=size))
    asked = _asked(target, Mention(shape=thing.shape, colour=thing.colour, size=size))
    return Edit("resize", f"make the {name} {size}", scene, target, asked, index)


def _replace(scene: Scene, generator: random.Random) -> Edit | None:
    named = _named(scene, generator)
    if named is None:
        return None
    index, name = named
    thing = scene.things[index]
    shape = generator.choice([other for other in SHAPES if other != thing.shape])
    colour = thing.colour if generator.random() < 0.4 else generator.choice(tuple(COLOURS))
    target = _with(scene, index, replace(thing, shape=shape, colour=colour, texture="plain"))
    words = generator.choice(("replace the {} with {}", "turn the {} into {}"))
    instruction = words.format(name, phrase(replace(thing, shape=shape, colour=colour, texture="plain"), Said()))
    return Edit("replace", instruction, scene, target, _asked(target, Mention(shape=shape, colour=colour)), index)


def _remove(scene: Scene, generator: random.Random) -> Edit | None:
    named = _named(scene, generator)
    if named is None:
        return None
    index, name = named
    look = _look(scene.things[index])
    if len(scene.things) < 2 or sum(look.fits(thing) for thing in scene.things) > 1:
        return None
    target = replace(scene, things=(*scene.things[:index], *scene.things[index + 1 :]))
    asked = Facts(total=len(target.things), absent=(look,))
    words = generator.choice(("remove the {}", "remove the {}", "delete the {}", "take away the {}"))
    return Edit("remove", words.format(name), scene, target, asked, index)


def _add(scene: Scene, generator: random.Random) -> Edit | None:
    if len(scene.things) >= 4:
        return None
    size = generator.choice(("small", "medium", "large") if len(scene.things) < 2 else ("small", "medium"))
    thing = Thing(generator.choice(SHAPES), generator.choice(tuple(COLOURS)), size, random_texture(generator, size))
    if any((other.shape, other.colour) == (thing.shape, thing.colour) for other in scene.things):
        return None
    place = generator.choice([name for row in PLACES for name in row])
    target = find_place(scene, thing, generator, place)
    if target is None or clear_place(target.things[-1]) != place:
        return None
    words = generator.choice(("add {} {}", "add {} {}", "put {} {}"))
    instruction = words.format(phrase(thing, Said(size=True)), AT_PLACE[place])
    mention = Mention(thing.shape, thing.colour, thing.size, thing.texture, place)
    return Edit("add", instruction, scene, target, Facts((mention,), (), None, len(target.things)))


def _move(scene: Scene, generator: random.Random) -> Edit | None:
    named = _named(scene, generator)
    if named is None:
        return None
    index, name = named
    thing = scene.things[index]
    places = [place for row in PLACES for place in row]
    place = generator.choice([other for other in places if not is_at(thing.x, thing.y, other, HOLDS_PLACE)])
    target = find_place(scene, thing, generator, place, index)
    if target is None or clear_place(target.things[index]) != place:
        return None
    if abs(target.things[index].x - thing.x) + abs(target.things[index].y - thing.y) < 0.25:
        return None
    words = generator.choice(("move the {} to the {}", "put the {} {}"))
    instruction = words.format(name, place if words.startswith("move") else AT_PLACE[place])
    mention = Mention(shape=thing.shape, colour=thing.colour, place=place)
    return Edit("move", instruction, scene, target, _asked(target, mention), index)


def _background(scene: Scene, generator: random.Random) -> Edit | None:
    background = generator.choice([other for other in BACKGROUNDS if other != scene.background])
    words = generator.choice(("change the background to {0}", "put it {1}", "make the background {0}"))
    instruction = words.format(background, on_background(background))
    return Edit("background", instruction, scene, replace(scene, background=background), Facts(background=background))


def _look(thing: Thing) -> Mention:
    return Mention(shape=thing.shape, colour=thing.colour)


def _asked(target: Scene, mention: Mention) -> Facts:
    """The changed thing as it must be, and that nothing came or went."""
    return Facts((mention,), (), None, len(target.things))


_MAKERS: dict[str, Callable[[Scene, random.Random], Edit | None]] = {
    "recolour": _recolour,
    "add": _add,
    "remove": _remove,
    "move": _move,
    "resize": _resize,
    "replace": _replace,
    "background": _background,
    "restyle": _restyle,
}
