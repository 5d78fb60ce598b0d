"""Scorer: the checker of the small world, which reads a picture back into a scene.

Invariant: the score is the share of asserted facts that the picture shows, in [0, 1]; with `quality` it gains at most
that much for clear shapes on a clean ground, which breaks the frequent ties.

    scenes                  a drawing is held against the words of its prompt
    scenes?quality=0.1      an edit (a prompt with a picture) against all that is seen in its target picture
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from vargpt.data.scenes.checker import Reading, read
from vargpt.data.scenes.facts import Facts, facts_of_scene, share_that_holds
from vargpt.data.scenes.parser import facts_of
from vargpt.preferences.prompts import PairPrompt
from vargpt.preferences.scorers import Context
from vargpt.processing.conversation import Conversation, ImagePart


def score_scene(
    prompt: Conversation, images: list[Image.Image], context: Context, quality: float = 0.0
) -> Sequence[float]:
    """Score pictures by the facts that they show.

    Raises:
        ValueError: for a drawing prompt that the grammar of scenes does not have, or an edit without a target picture.
    """
    facts = _wanted(prompt, context)
    readings = [read(image) for image in images]
    return [share_that_holds(reading.judge(facts)) + quality * clearness(reading) for reading in readings]


def clearness(reading: Reading) -> float:
    """How well the shapes fit, times the share of pixels that belong to something, in [0, 1]."""
    fits = (*reading.fits, *[0.0] * reading.unclear)
    return (sum(fits) / len(fits) if fits else 1.0) * (1.0 - reading.strange)


def _wanted(prompt: Conversation, context: Context) -> Facts:
    if any(isinstance(part, ImagePart) for part in prompt.messages[-1].content):
        if context.target is None:
            raise ValueError(f"scorer scenes: {context.key} is an edit without a target picture to compare with")
        return facts_of_scene(read(context.target).scene)
    words = PairPrompt(context.key, prompt, caption=context.caption).words
    facts = facts_of(words)
    if facts is None:
        raise ValueError(
            f"scorer scenes: {context.key}: {words!r} is not of the scenes grammar; expected e.g. 'a red star left of "
            "a blue ring'"
        )
    return facts
