"""The checker: reads a picture back into a scene, from pixels alone, and scores pictures against words.

Invariant: it says what it can see. A blob that no shape fits is counted as unclear and satisfies no fact; a picture
whose background is none of the known ones satisfies no background.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vargpt.data.scenes.edits import Edit
from vargpt.data.scenes.facts import Facts, Verdict, facts_of_scene, judge, share_that_holds
from vargpt.data.scenes.fitting import Fit, deviation, fit_hidden, fit_whole, size_of, texture_of
from vargpt.data.scenes.parser import facts_of
from vargpt.data.scenes.segmentation import Blob, Segmentation, grown, is_thin, segment
from vargpt.data.scenes.shapes import Array
from vargpt.data.scenes.synthesis import best_of, make_patch
from vargpt.data.scenes.world import Scene, Thing

WORK_SIDE = 96
"""Pictures larger than this (shorter side) are reduced to it."""

SMALLEST_SIDE = 24
GOOD_FIT = 0.78
"""A blob is a thing if some shape covers it this well (overlap over union)."""

NEAR_OUTLINE = (0.8, 0.04)
"""Its outline may be off by this many pixels and this share of its radius, on average."""

SURE_FIT, SURE_MARGIN = 0.9, 0.06
"""A fit this good and this much better than the next shape's needs no second look."""


@dataclass(frozen=True)
class _Found:
    """A blob with its best fit, its texture, and how far its outline is from the fit's, in pixels."""

    fit: Fit
    blob: Blob
    texture: str
    off: float

    @property
    def clear(self) -> bool:
        """Whether it is a thing: some shape explains it, to within about a pixel along its outline."""
        return self.fit.quality >= GOOD_FIT and self.off <= NEAR_OUTLINE[0] + NEAR_OUTLINE[1] * self.fit.radius


@dataclass(frozen=True)
class Reading:
    """A picture as the checker sees it.

    Attributes:
        scene: the things that are clear, back to front, on the nearest known background.
        background_known: whether the picture really has that background.
        unclear: blobs that are no known shape.
        fits: quality of each thing's fit, 0 to 1.
        strange: share of pixels that belong to nothing.
    """

    scene: Scene
    background_known: bool
    unclear: int
    fits: tuple[float, ...]
    strange: float

    def judge(self, facts: Facts) -> tuple[Verdict, ...]:
        """Say of every fact whether the picture shows it."""
        verdicts = []
        for verdict in judge(facts, self.scene):
            if verdict.kind == "total":
                verdict = replace(verdict, holds=len(self.scene.things) + self.unclear == facts.total)
            elif verdict.kind == "background":
                verdict = replace(verdict, holds=verdict.holds and self.background_known)
            verdicts.append(verdict)
        return tuple(verdicts)


def read(image: Image.Image | NDArray[np.uint8]) -> Reading:
    """Read a picture (PIL, or uint8 [H, W, 3]) of any size.

    Raises:
        ValueError: for another type or shape, or a side below 24 pixels.
    """
    pixels = _pixels(image)
    height, width = pixels.shape[:2]
    parts = segment(pixels)
    found = _fit_blobs(pixels, parts)
    placed = [item for item in found if item.clear]
    unclear = sum(not item.clear and not is_thin(item.blob.mask) for item in found)
    order = _back_to_front(placed, height, width)
    things = []
    for index in order:
        fit, blob, texture = placed[index].fit, placed[index].blob, placed[index].texture
        x, y = min(max(fit.x / width, 0.0), 1.0), min(max(fit.y / height, 0.0), 1.0)
        things.append(Thing(fit.shape, blob.colour, size_of(fit, min(height, width)), texture, x, y))
    scene = Scene(tuple(things), parts.background, min(max(width / height, 0.2), 5.0))
    return Reading(scene, parts.known, unclear, tuple(placed[index].fit.quality for index in order), parts.strange)


def _pixels(image: Any) -> Array:
    """float32 [H, W, 3] in 0..255, reduced to the working size."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"expected uint8 pixels [H, W, 3], got {image.dtype} {image.shape}")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"expected a PIL image or uint8 pixels [H, W, 3], got {type(image).__name__}")
    image = image.convert("RGB")
    side = min(image.size)
    if side < SMALLEST_SIDE:
        raise ValueError(f"a picture to read must be at least {SMALLEST_SIDE} pixels wide and high, got {image.size}")
    if side > WORK_SIDE:
        scale = WORK_SIDE / side
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float32)


def _fit_blobs(pixels: Array, parts: Segmentation) -> list[_Found]:
    """Fit every blob; where two touch, the one that is whole is in front, and the other may go on behind it."""
    found = []
    wide = [grown(blob.mask, 2) for blob in parts.blobs]
    anything = np.zeros(pixels.shape[:2], dtype=bool)
    for blob in parts.blobs:
        anything |= blob.mask
    for index, blob in enumerate(parts.blobs):
        others = anything & ~blob.mask
        if is_thin(blob.mask) and (grown(others, 2) & blob.mask).sum() > 0.5 * blob.mask.sum():
            continue
        fits, hidden = fit_whole(blob.mask, parts.cover), False
        if fits[0].quality < 0.93 and (others & wide[index]).any():
            touching = np.zeros_like(others)
            for number, other in enumerate(parts.blobs):
                if number != index and (wide[index] & other.mask).any():
                    touching |= other.mask
            behind = fit_hidden(blob.mask, parts.cover, grown(touching))
            if behind[0].quality > fits[0].quality + 0.02:
                fits, hidden = behind, True
        if fits[0].quality >= SURE_FIT and fits[0].quality - fits[1].quality >= SURE_MARGIN:
            fit, texture = fits[0], texture_of(pixels, blob.mask, fits[0], blob.colour)
        else:
            patch = make_patch(pixels, parts.ground, parts.cover, blob.mask, grown(others) & ~blob.mask, hidden)
            fit, texture = best_of(patch, fits, blob.colour, min(blob.mask.shape))
        off = deviation(fit, blob.mask, parts.cover, grown(others) if hidden else None)
        found.append(_Found(fit, blob, texture, off))
    return found


def _back_to_front(placed: list[_Found], height: int, width: int) -> list[int]:
    """Painter's order: of two fits that share pixels, the one whose colour is seen there is in front."""
    inside = [item.fit.inside(height, width) < 0 for item in placed]
    order = list(range(len(placed)))
    for first in range(len(placed)):
        for second in range(first + 1, len(placed)):
            shared = inside[first] & inside[second]
            seen_first = (shared & placed[first].blob.mask).sum()
            seen_second = (shared & placed[second].blob.mask).sum()
            in_front, behind = (first, second) if seen_first > seen_second else (second, first)
            if shared.any() and order.index(in_front) < order.index(behind):
                order.remove(in_front)
                order.insert(order.index(behind) + 1, in_front)
    return order


def score(image: Image.Image | NDArray[np.uint8], wanted: str | Scene | Facts) -> float:
    """Share of the asserted facts that a picture shows, in [0, 1].

    Args:
        wanted: a caption or drawing request of the grammar, a scene (all of it is asserted), or facts.

    Raises:
        ValueError: for words that the grammar does not have; ask `facts_of` first where that can happen.
    """
    return share_that_holds(verdicts(image, wanted))


def verdicts(image: Image.Image | NDArray[np.uint8], wanted: str | Scene | Facts) -> tuple[Verdict, ...]:
    """Every asserted fact with whether the picture shows it; arguments and errors as of `score`."""
    return read(image).judge(asserted(wanted))


def asserted(wanted: str | Scene | Facts) -> Facts:
    """Facts of a caption, of a scene, or as they are.

    Raises:
        ValueError: for words that the grammar does not have.
    """
    if isinstance(wanted, Facts):
        return wanted
    if isinstance(wanted, Scene):
        return facts_of_scene(wanted)
    facts = facts_of(wanted)
    if facts is None:
        raise ValueError(
            f"not a caption of the scenes grammar: {wanted!r}; expected e.g. 'a red star left of a blue ring'"
        )
    return facts


@dataclass(frozen=True)
class EditScore:
    """How well a picture answers an edit.

    Attributes:
        asked: whether the change that was asked for is there.
        kept: share of everything else (looks and places of the other things, background) that is as it was, in [0, 1].
    """

    asked: bool
    kept: float

    @property
    def right(self) -> bool:
        """Whether the change was made and nothing else."""
        return self.asked and self.kept == 1.0


def score_edit(image: Image.Image | NDArray[np.uint8], edit: Edit) -> EditScore:
    """Judge the picture that a model made of an edit; things are told apart by where and what they should be."""
    return judge_edit(read(image), edit)


def judge_edit(reading: Reading, edit: Edit) -> EditScore:
    """Judge what was read from that picture."""
    expected = edit.target.things
    subject = len(expected) - 1 if edit.kind == "add" else edit.changed
    free = _changed_attributes(edit)
    seen: list[Thing | None] = [*reading.scene.things]
    seen += [None] * max(len(expected) - len(seen), 0)
    best: tuple[list[bool], list[bool]] = ([], [])
    best_count = -1
    for chosen in permutations(seen, len(expected)):
        kept = [
            holds
            for index, (thing, found) in enumerate(zip(expected, chosen, strict=True))
            for name, holds in _as_expected(thing, found, edit.target.aspect).items()
            if not (index == subject and name in free)
        ]
        asked = [holds for mention in edit.asked.mentions for holds in mention.verdicts(chosen[subject or 0]).values()]
        if sum(kept) + sum(asked) > best_count:
            best, best_count = (asked, kept), sum(kept) + sum(asked)
    asked, kept = best
    asked += [verdict.holds for verdict in reading.judge(replace(edit.asked, mentions=()))]
    if edit.kind != "background":
        kept.append(reading.background_known and reading.scene.background == edit.target.background)
    return EditScore(all(asked), sum(kept) / len(kept) if kept else 1.0)


def _changed_attributes(edit: Edit) -> tuple[str, ...]:
    """What of the thing that the edit is about need not be as it was."""
    if edit.kind == "add":
        return _ATTRIBUTES
    if edit.changed is None or edit.kind == "remove":
        return ()
    before, after = edit.source.things[edit.changed], edit.target.things[edit.changed]
    changed = [name for name in _ATTRIBUTES if name != "place" and getattr(before, name) != getattr(after, name)]
    if (before.x, before.y) != (after.x, after.y):
        changed.append("place")
    if edit.kind == "replace":
        changed += ["size", "texture"]
    return tuple(changed)


_ATTRIBUTES = ("shape", "colour", "size", "texture", "place")
_STAYED = 0.08
"""A thing has kept its place if it moved by no more than this, in shorter sides."""


def _as_expected(thing: Thing, found: Thing | None, aspect: float) -> dict[str, bool]:
    if found is None:
        return dict.fromkeys(_ATTRIBUTES, False)
    verdicts = {name: getattr(found, name) == getattr(thing, name) for name in _ATTRIBUTES if name != "place"}
    across, down = (found.x - thing.x) * max(aspect, 1.0), (found.y - thing.y) * max(1.0 / aspect, 1.0)
    return {**verdicts, "place": max(abs(across), abs(down)) <= _STAYED}
