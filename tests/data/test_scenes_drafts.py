"""Drafts: what a picture will show, in words, with places."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from vargpt.data.scenes.drafts import CELLS, DRAFT_QUESTION, draft
from vargpt.data.scenes.parser import facts_of
from vargpt.data.scenes.sampler import sample_scene
from vargpt.data.scenes.source import scene_example
from vargpt.data.scenes.world import SIZES, TEXTURES, Scene, Thing
from vargpt.data.sources.scenes import ScenesSource
from vargpt.processing.conversation import DrawPart, TextPart


def test_things_come_in_reading_order_with_column_and_row() -> None:
    things = (Thing("star", "pink", "large", "dotted", 0.55, 0.42), Thing("ring", "blue", x=0.91, y=0.1))
    assert draft(Scene(things, "sand")) == "on a sand background: a blue ring at 9 1, a large dotted pink star at 5 4"
    assert draft(Scene((Thing("ring", "orange", x=1.0, y=1.0),), "white")).endswith("an orange ring at 9 9")
    assert draft(Scene((), "night")) == "on a night background: nothing"


def test_what_another_thing_covers_is_behind() -> None:
    back, front = Thing("cross", "cyan", "large", x=0.4, y=0.5), Thing("ring", "pink", x=0.55, y=0.5)
    assert draft(Scene((back, front))).endswith("a large cyan cross at 4 5 behind, a pink ring at 5 5")
    assert draft(Scene((front, back))).endswith("a large cyan cross at 4 5, a pink ring at 5 5 behind")


def test_what_is_drawn_from_words_comes_in_their_order() -> None:
    striped, plain = Thing("star", "red", "medium", "striped", 0.2, 0.2), Thing("star", "red", x=0.7, y=0.8)
    scene = Scene((striped, plain), "sky")
    assert draft(scene, "a red star below a striped red star") == (
        "on a sky background: a red star at 7 8, a striped red star at 2 2"
    )
    assert draft(scene, "a striped red star and a red star") == draft(scene)
    with pytest.raises(ValueError, match="does not name the 2 things of its scene"):
        draft(scene, "a red star")
    with pytest.raises(ValueError, match="which its scene has not"):
        draft(scene, "a blue star and a red star")


@pytest.mark.parametrize("long_captions", [0.0, 1.0])
def test_every_caption_gives_a_draft_of_the_same_things(long_captions: float) -> None:
    for index in range(150):
        example = scene_example(
            1, index, "draw", height=16, width=16, variety=0.5, drafts=1.0, long_captions=long_captions
        )
        told = read_draft(said(example.conversation)[0])
        facts = facts_of(example.prompt)
        assert sorted(told[1]) == sorted(read_draft(draft(example.scene))[1]) and facts is not None
        for mention, (shape, colour, size, texture, column, row) in zip(facts.mentions, told[1], strict=True):
            thing = Thing(shape, colour, size, texture, (column + 0.5) / CELLS, (row + 0.5) / CELLS)
            assert replace(mention, place=None).fits(thing)


def read_draft(text: str) -> tuple[str, list[tuple[str, str, str, str, int, int]]]:
    background, _, things = text.partition(": ")
    pattern = rf"an? (?:({'|'.join(SIZES)}) )?(?:({'|'.join(TEXTURES)}) )?(\w+) (\w+) at (\d) (\d)(?: behind)?"
    found = []
    for told in things.split(", ") if things != "nothing" else []:
        match = re.fullmatch(pattern, told)
        assert match is not None, told
        size, texture, colour, shape, column, row = match.groups()
        found.append((shape, colour, size or "medium", texture or "plain", int(column), int(row)))
    ground = re.fullmatch(r"on a (\w+) background", background)
    assert ground is not None, background
    return ground[1], found


def test_a_draft_tells_the_whole_scene() -> None:
    for index in range(200):
        scene = sample_scene(f"draft {index}")
        background, told = read_draft(draft(scene))
        cells = [(min(int(t.x * CELLS), 9), min(int(t.y * CELLS), 9)) for t in scene.things]
        there = [(t.shape, t.colour, t.size, t.texture, *cell) for t, cell in zip(scene.things, cells, strict=True)]
        assert background == scene.background
        assert sorted(told) == sorted(there)
        assert [entry[:3:-1] for entry in told] == sorted(entry[:3:-1] for entry in told)


def said(conversation) -> list[str]:
    return [part.text for part in conversation.messages[-1].content if isinstance(part, TextPart)]


def test_examples_with_drafts_say_them_and_are_else_the_same() -> None:
    for task in ("draw", "edit"):
        for index in range(8):
            plain = scene_example(0, index, task, height=32, width=32, variety=0.3)
            drafted = scene_example(0, index, task, height=32, width=32, variety=0.3, drafts=1.0)
            target = drafted.target
            assert target is not None and target == plain.target
            assert said(drafted.conversation) == [draft(target, drafted.prompt if task == "draw" else None)]
            assert drafted.conversation.messages[:-1] == plain.conversation.messages[:-1]
            assert isinstance(drafted.conversation.messages[-1].content[-1], DrawPart)
            assert drafted.conversation.drawings == plain.conversation.drawings
    caption = scene_example(0, 3, "caption", drafts=1.0)
    assert caption.conversation.messages[0].content[-1] == TextPart(text=DRAFT_QUESTION)
    assert said(caption.conversation) == [draft(caption.scene)] == [caption.prompt]


def test_questions_are_asked_after_the_draft_of_their_picture() -> None:
    for index in range(8):
        plain, noted = (scene_example(0, index, "question", questions=2, drafts=share) for share in (0.0, 1.0))
        picture, words = plain.conversation.messages[0].content
        looked, notes, asked, *rest = noted.conversation.messages
        assert looked.content == (picture, TextPart(text=DRAFT_QUESTION)) and asked.content == (words,)
        assert notes.content == (TextPart(text=draft(noted.scene)),)
        assert tuple(rest) == plain.conversation.messages[1:]


def test_the_share_of_drafts_is_the_sources() -> None:
    def share(drafts: float) -> float:
        source = ScenesSource("drafted", 200, 16, drafts=drafts)
        return sum(bool(said(source.validation("draw", index))) for index in range(100)) / 100

    assert share(0.0) == 0.0
    assert 0.3 < share(0.5) < 0.7
    assert share(1.0) == 1.0
