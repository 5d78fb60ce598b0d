"""Notes: what is where, written down before a question about a picture is answered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from vargpt.data.instructions import CAPTION_QUESTION, CAPTION_QUESTIONS
from vargpt.data.scenes.drafts import DRAFT_QUESTION
from vargpt.evaluation.subject import Subject
from vargpt.inference.dialogue import Dialogue
from vargpt.inference.habits import read_habits
from vargpt.inference.looking import asks_about_a_picture, with_notes
from vargpt.inference.pipeline import VargptPipeline
from vargpt.processing.conversation import Conversation, ImagePart, TextPart, assistant, user

QUESTION = "what color is the star?"
RED, BLUE = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")


@pytest.fixture
def noting(tiny_model: Path) -> VargptPipeline:
    """An untrained model with the habit."""
    pipeline = VargptPipeline.from_pretrained(tiny_model)
    return VargptPipeline(pipeline.model, pipeline.processor, replace(pipeline.habits, notes=True))


def about(picture: Image.Image, words: str) -> Conversation:
    return Conversation(messages=(user(ImagePart(image=picture), words),))


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        (about(RED, QUESTION), True),
        (about(RED, f" {CAPTION_QUESTION.capitalize()}"), False),
        (about(RED, CAPTION_QUESTIONS[0]), False),
        (about(RED, DRAFT_QUESTION), False),
        (Conversation(messages=(user(QUESTION),)), False),
        (Conversation(messages=(user(ImagePart(image=RED), ImagePart(image=BLUE), QUESTION),)), False),
        (Conversation(messages=(*about(RED, QUESTION).messages, assistant("red"))), False),
        (Conversation(messages=(*about(RED, QUESTION).messages, assistant("red"), user("and now?"))), False),
    ],
)
def test_only_questions_that_come_with_a_picture_want_notes(conversation: Conversation, expected: bool) -> None:
    assert asks_about_a_picture(conversation) is expected


def test_notes_stand_before_the_question_and_depend_on_their_picture_alone(noting: VargptPipeline) -> None:
    asked = [about(RED, QUESTION), about(RED, CAPTION_QUESTION), about(BLUE, QUESTION), about(RED, "is there a ring?")]
    noted = with_notes(noting, asked, batch_size=2)
    assert noted[1] == asked[1]
    looked, notes, question = noted[0].messages
    assert looked == about(RED, DRAFT_QUESTION).messages[0] and question == user(QUESTION)
    assert notes == assistant("".join(noting.chat(about(RED, DRAFT_QUESTION), max_new_tokens=192)).strip())
    assert noted[3].messages[:2] == noted[0].messages[:2]
    assert noted[2].messages[1] != noted[0].messages[1], "an untrained model sees the same in two pictures"
    assert with_notes(noting, asked[2:3]) == noted[2:3]


def test_chat_dialogue_and_evaluation_write_notes_where_that_is_the_habit(noting: VargptPipeline) -> None:
    silent = VargptPipeline(noting.model, noting.processor, replace(noting.habits, notes=False))
    (noted,) = with_notes(noting, [about(BLUE, QUESTION)])
    expected, plain = ("".join(silent.chat(each, max_new_tokens=9)) for each in (noted, about(BLUE, QUESTION)))
    assert expected != plain
    assert "".join(noting.chat(about(BLUE, QUESTION), max_new_tokens=9)) == expected
    assert "".join(noting.chat(about(BLUE, QUESTION), max_new_tokens=9, notes=False)) == plain
    assert "".join(silent.chat(about(BLUE, QUESTION), max_new_tokens=9, notes=True)) == expected
    for subject, answer in (
        (Subject(noting), expected), (Subject(silent), plain),
        (Subject(noting, drafts=False), plain), (Subject(silent, drafts=True), expected),
    ):  # fmt: skip
        with subject:
            assert subject.answers([about(BLUE, QUESTION)], 9) == [answer]
    for pipeline, answer in ((noting, expected), (silent, plain)):
        dialogue = Dialogue(pipeline, max_new_tokens=9, temperature=0.0)
        dialogue.show(BLUE)
        assert "".join(map(str, dialogue.say(QUESTION))) == answer
        assert dialogue.messages[-2].content[-1] == TextPart(text=QUESTION)


def test_notes_are_a_habit_of_the_models_folder(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"notes": true}')
    assert read_habits(tmp_path).notes and not read_habits(tmp_path).draft
    (tmp_path / "generation_config.json").write_text('{"notes": "often"}')
    with pytest.raises(ValueError, match=r"bare_names, draft, notes true or false, got .*notes: often"):
        read_habits(tmp_path)
