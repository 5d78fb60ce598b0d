"""Instruction templates: canonical forms, variety, and chance only from the generator."""

from __future__ import annotations

import random

from PIL import Image

from vargpt.data import instructions
from vargpt.processing.conversation import Conversation, DrawPart, ImagePart, TextPart

PICTURE = Image.new("RGB", (4, 4))


def said(conversation: Conversation) -> list[str]:
    return [
        "".join(part.text if isinstance(part, TextPart) else f"[{part.type}]" for part in turn.content)
        for turn in conversation.turns
    ]


def test_canonical_forms():
    assert said(instructions.canonical_draw("red heart")) == ["draw red heart", "[image_gen]"]
    assert said(instructions.canonical_caption(PICTURE, "red heart")) == ["[image]what is this?", "red heart"]
    assert said(instructions.canonical_edit(PICTURE, None, "make it blue")) == ["[image]make it blue", "[image_gen]"]


def test_prompts_are_the_canonical_forms_without_answer():
    assert instructions.draw_prompt("x").messages == instructions.canonical_draw("x").messages[:1]
    assert instructions.caption_prompt(PICTURE).messages == instructions.canonical_caption(PICTURE, "x").messages[:1]
    assert (
        instructions.edit_prompt(PICTURE, "x").messages == instructions.canonical_edit(PICTURE, None, "x").messages[:1]
    )


def test_the_generator_decides_everything():
    def sample(seed: int) -> list[list[str]]:
        generator = random.Random(seed)
        drawn = [said(instructions.draw_conversation("cat", None, generator, 0.8)) for _ in range(20)]
        return drawn + [said(instructions.edit_conversation(PICTURE, None, "go", generator, 0.8)) for _ in range(20)]

    assert sample(1) == sample(1) != sample(2)


def test_variety_sets_how_often_the_canonical_form_is_left():
    canonical = said(instructions.canonical_draw("cat"))
    for variety, low, high in ((0.0, 0, 0), (0.3, 200, 400), (1.0, 950, 1000)):
        generator = random.Random(0)
        drawn = [said(instructions.draw_conversation("cat", None, generator, variety)) for _ in range(1000)]
        assert low <= sum(words != canonical for words in drawn) <= high


def test_every_wording_names_what_is_asked_and_is_short():
    generator = random.Random(3)
    for _ in range(500):
        draw = instructions.draw_conversation("zebra {0} %s", None, generator, 1.0)
        request, answer = said(draw)
        assert "zebra {0} %s" in request and answer.endswith("[image_gen]") and len(request.split()) <= 13
        caption = instructions.caption_conversation(PICTURE, "zebra", generator, 1.0)
        assert said(caption)[1] == "zebra" and any(isinstance(part, ImagePart) for part in caption.turns[0].content)
        edit = instructions.edit_conversation(PICTURE, None, "make it blue", generator, 1.0)
        assert "make it blue" in said(edit)[0] and len(edit.drawings) == 1


def test_targets_are_carried():
    generator = random.Random(0)
    assert instructions.draw_conversation("cat", PICTURE, generator, 1.0).drawings == (DrawPart(image=PICTURE),)
    assert instructions.edit_conversation(PICTURE, PICTURE, "x", generator).drawings[0].image is PICTURE
