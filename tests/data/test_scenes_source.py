"""Scenes as conversations and as preference pairs: pure functions of seed and index."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vargpt.data.scenes.preferences import preference_pair
from vargpt.data.scenes.source import TASKS, SceneTask, scene_example
from vargpt.data.scenes.world import Split, split_of
from vargpt.processing.conversation import DrawPart, ImagePart, TextPart


def _pixels(image: object) -> np.ndarray:
    assert isinstance(image, Image.Image)
    return np.asarray(image)


@pytest.mark.parametrize("task", TASKS)
def test_an_example_is_a_function_of_its_arguments(task: SceneTask) -> None:
    first, again = scene_example(1, 7, task), scene_example(1, 7, task)
    assert first.scene == again.scene and first.prompt == again.prompt
    for one, other in zip(first.conversation.messages, again.conversation.messages, strict=True):
        for part, twin in zip(one.content, other.content, strict=True):
            if isinstance(part, TextPart):
                assert part == twin
            else:
                assert (_pixels(part.image) == _pixels(twin.image)).all()  # type: ignore[union-attr]
    assert len({scene_example(1, index, task).prompt + str(index % 2) for index in range(12)}) > 6
    assert any(scene_example(2, index, task).scene != scene_example(1, index, task).scene for index in range(3))


def test_each_task_has_its_parts() -> None:
    draw = scene_example(0, 0, "draw", height=32, width=48, variety=0.0)
    assert draw.conversation.messages[0].content == (TextPart(text=f"draw {draw.prompt}"),)
    (drawing,) = draw.conversation.drawings
    assert _pixels(drawing.image).shape == (32, 48, 3) and draw.target == draw.scene
    caption = scene_example(0, 0, "caption", variety=0.0)
    assert caption.conversation.messages[1].content == (TextPart(text=caption.prompt),)
    question = scene_example(0, 0, "question")
    assert question.question is not None and question.target is None
    image, text = question.conversation.messages[0].content
    assert isinstance(image, ImagePart) and text == TextPart(text=question.question.text)
    assert question.conversation.messages[1].content == (TextPart(text=question.question.answer),)
    edit = scene_example(0, 0, "edit", variety=0.0)
    assert edit.edit is not None and edit.target == edit.edit.target
    shown, said = edit.conversation.messages[0].content
    assert said == TextPart(text=edit.edit.instruction) and isinstance(shown, ImagePart)
    (answer,) = edit.conversation.messages[1].content
    assert isinstance(answer, DrawPart) and (_pixels(answer.image) != _pixels(shown.image)).any()


@pytest.mark.parametrize("split", ["train", "unseen"])
@pytest.mark.parametrize("task", TASKS)
def test_examples_keep_to_their_split(task: SceneTask, split: Split) -> None:
    for index in range(15):
        example = scene_example(3, index, task, split=split)
        shown = example.target if task == "edit" else example.scene
        assert shown is not None and split_of(shown) == split
        if task == "edit":
            assert split_of(example.scene) == "train"


def test_long_captions_are_sentences() -> None:
    prompts = [scene_example(0, index, "draw", long_captions=1.0).prompt for index in range(10)]
    assert all(prompt.endswith(".") for prompt in prompts)


def test_preference_pairs_are_functions_of_seed_and_index() -> None:
    pair = preference_pair(0, 3)
    assert pair == preference_pair(0, 3) != preference_pair(0, 4)
    assert pair.chosen != pair.rejected
    for index in range(120):
        pair = preference_pair(1, index, kind="two")
        assert "unseen" not in (split_of(pair.chosen), split_of(pair.rejected))


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown task 'paint', expected one of draw, caption, question, edit"):
        scene_example(0, 0, "paint")  # type: ignore[arg-type]


def test_several_questions_about_one_scene_differ_and_begin_with_the_one_alone():
    lengths = []
    for index in range(60):
        alone = scene_example(0, index, "question", height=32, width=32)
        several = scene_example(0, index, "question", height=32, width=32, questions=6)
        assert several.conversation.messages[:2] == alone.conversation.messages
        assert several.question == alone.question and several.prompt == alone.prompt
        asked = [turn.content[-1] for turn in several.conversation.messages[::2]]
        assert all(isinstance(part, TextPart) for part in asked)
        assert len(set(asked)) == len(asked) <= 6
        lengths.append(len(asked))
    assert sum(lengths) / len(lengths) > 5
