"""Glances: what of a picture a question is about, looked up before it is answered."""

from __future__ import annotations

import random
from typing import get_args

import pytest

from vargpt.data.scenes.glances import LOOK, glance
from vargpt.data.scenes.questions import Question, QuestionKind, ask
from vargpt.data.scenes.sampler import sample_scene
from vargpt.data.scenes.source import scene_example
from vargpt.data.scenes.world import COLOURS, Scene, Thing
from vargpt.data.sources.scenes import ScenesSource
from vargpt.processing.conversation import ImagePart, TextPart

SCENE = Scene(
    (
        Thing("star", "red", "small", "plain", 0.55, 0.13),
        Thing("cross", "pink", "medium", "striped", 0.82, 0.45),
        Thing("cross", "cyan", "large", "dotted", 0.22, 0.31),
    ),
    "sand",
)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("colour", "what color is the star?", "star red"),
        ("count", "how many crosses are there?", "cross cyan, cross pink"),
        ("count", "how many rings are there?", "nothing"),
        ("count", "how many things are there?", "cross cyan, cross pink, star red"),
        ("shape", "what is the pink thing?", "cross pink"),
        ("existence", "is there a pink star?", "star red"),
        ("relation", "is the star left of the pink cross?", "star red at 5 1, cross cyan at 2 3, cross pink at 8 4"),
        ("comparison", "is the star larger?", "star red small"),
        ("comparison", "are there more stars than crosses?", "star red, cross cyan, cross pink"),
        ("size", "is the star small or large?", "star red small"),
        ("texture", "is the cyan cross plain, striped or dotted?", "cross cyan dotted, cross pink striped"),
        ("place", "where is the star?", "star red at 5 1"),
        ("background", "what is the background?", "sand background"),
    ],
)  # fmt: skip
def test_a_glance_names_what_the_question_names_and_what_it_needs(kind: QuestionKind, text: str, expected: str) -> None:
    assert glance(SCENE, Question(kind, text, "", ())) == expected


def test_the_answer_follows_from_the_glance() -> None:
    """For every kind whose answer is a word: it is in the glance, or the number of things there."""
    seen = set()
    for index in range(400):
        generator = random.Random(index)
        scene = sample_scene(generator, "train")
        for kind in get_args(QuestionKind):
            question = ask(scene, generator, kind)
            if question is None:
                continue
            told = glance(scene, question)
            things = [] if told == "nothing" else told.split(", ")
            if kind in ("colour", "shape", "texture", "size", "background"):
                assert question.answer in told.split(" ") or question.answer in told.replace(",", "").split(), (
                    told,
                    question,
                )
                seen.add(kind)
            elif kind == "count":
                words = [word for word in question.text.split() if word in COLOURS]
                assert str(sum(not words or words[0] in thing.split() for thing in things)) == question.answer
                seen.add(kind)
            elif kind == "existence":
                colour = next(word for word in question.text.split() if word in COLOURS)
                assert any(colour in thing.split() for thing in things) == (question.answer == "yes")
                seen.add(kind)
    assert len(seen) == 7


def test_every_question_of_a_source_with_glances_follows_a_look() -> None:
    source = ScenesSource("glanced", 100, 16, questions=3, glances=1.0)
    for index in range(20):
        messages = source.sample("question", index, random.Random(0), 0.0).conversation.messages
        assert len(messages) % 4 == 0
        for number in range(0, len(messages), 4):
            look, told, asked, answer = messages[number : number + 4]
            assert isinstance(look.content[0], ImagePart) == (number == 0) and len(asked.content) == 1
            assert isinstance(asked.content[0], TextPart) and isinstance(told.content[0], TextPart)
            assert look.content[-1] == TextPart(text=LOOK.format(question=asked.content[0].text))
            assert answer.role == "assistant"
    plain = scene_example(0, 5, "question", height=16, width=16, questions=3).conversation.messages
    looked = scene_example(0, 5, "question", height=16, width=16, questions=3, glances=1.0).conversation.messages
    assert looked[2].content == plain[0].content[1:] and looked[3::4] == plain[1::2]
