"""Better and worse pictures of a prompt: made by the renderer, or picked from a model's own by the checker.

Invariant: in every pair the chosen picture shows more of what the prompt asserts than the rejected one, by the same
facts that the checker scores.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from vargpt.data.scenes.checker import score
from vargpt.data.scenes.edits import make_edit
from vargpt.data.scenes.facts import Facts, judge, share_that_holds
from vargpt.data.scenes.parser import facts_of
from vargpt.data.scenes.render import render_image
from vargpt.data.scenes.sampler import Kind, sample_scene
from vargpt.data.scenes.words import short_caption
from vargpt.data.scenes.world import Scene, Split, is_legible, split_of

_ATTEMPTS = 200


@dataclass(frozen=True)
class PreferencePair:
    """A prompt, a scene that it describes and one that it does not.

    Attributes:
        margin: share of the prompt's facts that the rejected scene breaks, in (0, 1].
    """

    prompt: str
    chosen: Scene
    rejected: Scene
    margin: float

    def images(self, height: int, width: int) -> tuple[Image.Image, Image.Image]:
        """Both scenes drawn: chosen, rejected."""
        return render_image(self.chosen, height, width), render_image(self.rejected, height, width)


def preference_pair(
    seed: int | str, index: int, *, split: Split = "train", kind: Kind | None = None, aspect: float = 1.0
) -> PreferencePair:
    """Make one pair: a scene, its caption, and the scene with something that was said made wrong.

    What goes wrong is one of: a colour, shape, size or texture, a thing missing or too many, two things that change
    places (a relation turned round) or colours (attributes bound wrongly), the background.
    """
    generator = random.Random(f"scene preference {seed} {index} {split}")
    for _ in range(_ATTEMPTS):
        scene = sample_scene(generator, split, kind, aspect)
        prompt = short_caption(scene, generator)
        facts = facts_of(prompt)
        assert facts is not None
        rejected = spoil(scene, facts, generator)
        if rejected is not None:
            return PreferencePair(prompt, scene, rejected, 1.0 - share_that_holds(judge(facts, rejected)))
    raise RuntimeError(f"no pair for seed {seed}, index {index} in {_ATTEMPTS} attempts")


def spoil(scene: Scene, facts: Facts, generator: random.Random) -> Scene | None:
    """A legible scene near this one in which some of the facts fail; None where a few tries found none."""
    for _ in range(12):
        wrong: Scene | None
        if len(scene.things) == 2 and generator.random() < 0.5:
            wrong = _exchanged(scene, generator)
        else:
            edit = make_edit(scene, generator)
            wrong = edit.target if edit is not None else None
        if wrong is None or not is_legible(wrong) or split_of(wrong) not in ("train", split_of(scene)):
            continue
        if share_that_holds(judge(facts, wrong)) < 1.0:
            return wrong
    return None


def _exchanged(scene: Scene, generator: random.Random) -> Scene:
    """Two things with their places or their colours exchanged."""
    first, second = scene.things
    if generator.random() < 0.5:
        things = (replace(first, colour=second.colour), replace(second, colour=first.colour))
    else:
        things = (replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y))
    return replace(scene, things=things)


def pick_pair(prompt: str | Facts, images: Sequence[Any], minimum_margin: float = 0.2) -> tuple[int, int] | None:
    """Indices of the best and the worst of a model's pictures; None where their scores are nearer than the margin.

    Raises:
        ValueError: for a prompt that the grammar does not have.
    """
    scores = [score(image, prompt) for image in images]
    best, worst = max(range(len(scores)), key=scores.__getitem__), min(range(len(scores)), key=scores.__getitem__)
    return (best, worst) if scores[best] - scores[worst] >= minimum_margin else None
