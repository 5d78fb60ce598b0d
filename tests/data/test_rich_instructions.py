"""The wide family of wordings: variety, repeated captions, and the narrow family left as it was."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vargpt.data.instructions import (
    canonical_draw,
    caption_conversation,
    draw_conversation,
    edit_conversation,
    template_texts,
)
from vargpt.processing.conversation import Conversation, DrawPart, ImagePart, TextPart

IMAGE, OTHER = b"image", b"other"


def written(conversation: Conversation) -> list[str]:
    marks = {"image": "[image]", "image_gen": "[drawn]"}
    return [
        "".join(part.text if isinstance(part, TextPart) else marks[part.type] for part in turn.content)
        for turn in conversation.turns
    ]


def test_wordings_are_frozen():
    """A change of these changes the words of a run that resumes."""
    draw = draw_conversation("a red fox.", IMAGE, random.Random(0), 1.0, "rich")
    caption = caption_conversation(IMAGE, "a red fox.", random.Random(1), 1.0, "rich")
    edit = edit_conversation(IMAGE, OTHER, "make it blue", random.Random(2), 1.0, "rich")
    assert [written(draw), written(caption), written(edit)] == FROZEN
    parts = [part for turn in edit.turns for part in turn.content]
    assert [p.image for p in parts if isinstance(p, ImagePart)] == [IMAGE]
    assert [p.image for p in parts if isinstance(p, DrawPart)] == [OTHER]


def test_there_are_thousands_of_requests():
    found = {tuple(written(draw_conversation("x", IMAGE, random.Random(n), 1.0, "rich"))) for n in range(3000)}
    requests, answers = ({pair[side] for pair in found} for side in (0, 1))
    assert len(requests) > 1500 and len(answers) > 400
    edits = {written(edit_conversation(IMAGE, OTHER, "x", random.Random(n), 1.0, "rich"))[0] for n in range(3000)}
    assert len(edits) > 200


@given(name=st.text(min_size=1, max_size=30), seed=st.integers(0, 10**6))
def test_the_caption_is_repeated_letter_by_letter(name: str, seed: int):
    inner = name.strip().removesuffix(".") or name
    drawn = written(draw_conversation(name, IMAGE, random.Random(seed), 1.0, "rich"))
    edited = written(edit_conversation(IMAGE, OTHER, name, random.Random(seed), 1.0, "rich"))
    assert all(inner in text for text in (*drawn, *edited))
    assert drawn[1].endswith("[drawn]") and edited[1].endswith("[drawn]") and "[image]" in edited[0]
    assert written(caption_conversation(IMAGE, name, random.Random(seed), 1.0, "rich"))[1] == name


def test_variety_decides_before_the_family():
    assert draw_conversation("x", IMAGE, random.Random(0), 0.0, "rich") == canonical_draw("x", IMAGE)
    for seed in range(20):
        short = draw_conversation("x", IMAGE, random.Random(seed), 0.5, "short")
        rich = draw_conversation("x", IMAGE, random.Random(seed), 0.5, "rich")
        canonical = canonical_draw("x", IMAGE)
        assert (rich == canonical) == (random.Random(seed).random() >= 0.5)
        assert short == draw_conversation("x", IMAGE, random.Random(seed), 0.5)


@pytest.mark.parametrize("style", ["short", "rich"])
def test_template_texts_hold_every_word_that_is_used(style: str):
    known = set(" ".join(template_texts(style)).replace(":", " ").replace(".", " ").replace("?", " ").split())  # type: ignore[arg-type]
    for seed in range(300):
        generator = random.Random(seed)
        made = [
            draw_conversation("NAME", IMAGE, generator, 1.0, style),  # type: ignore[arg-type]
            caption_conversation(IMAGE, "NAME", generator, 1.0, style),  # type: ignore[arg-type]
            edit_conversation(IMAGE, OTHER, "NAME", generator, 1.0, style),  # type: ignore[arg-type]
        ]
        for conversation in made:
            text = " ".join(written(conversation))
            for mark in ("[image]", "[drawn]", "NAME", ":", ".", "?", ",", "(", ")"):
                text = text.replace(mark, " ")
            assert set(text.split()) <= {word.strip(",()") for word in known}, text


FROZEN = [
    ["Would you produce a colourful picture of a red fox, please?", "This picture shows a red fox.[drawn]"],
    ["[image]What can be seen in this photo?", "a red fox."],
    ["[image] Change this image: make it blue.", "This is the image after the change: make it blue.[drawn]"],
]
