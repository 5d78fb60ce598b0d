"""Conversations: they see, say, draw and edit, and the history is what really happened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vargpt.inference.dialogue import Dialogue, Drawn
from vargpt.inference.pipeline import VargptPipeline
from vargpt.processing.conversation import DrawPart, ImagePart


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> VargptPipeline:
    return VargptPipeline.from_pretrained(tiny_model, device="cpu")


def kinds(dialogue: Dialogue) -> list[list[str]]:
    """Part types of every message."""
    return [[part.type for part in message.content] for message in dialogue.messages]


def test_a_drawn_picture_can_be_asked_about_and_edited(pipeline: VargptPipeline) -> None:
    dialogue = Dialogue(pipeline, max_new_tokens=4, seed=3)
    drawn = dialogue.draw("fox")
    assert dialogue.picture is drawn.image
    list(dialogue.say("what is this?"))
    edited = dialogue.edit("make it blue")
    assert dialogue.picture is edited.image
    assert [message.role for message in dialogue.messages] == ["user", "assistant"] * 3
    assert kinds(dialogue)[:3] == [["text"], ["image_gen"], ["image", "text"]]
    assert kinds(dialogue)[4:] == [["image", "text"], ["image_gen"]]
    assert (drawn.number, edited.number, drawn.seed, edited.seed) == (1, 2, 3, 5)


def test_the_first_turn_equals_the_pipeline(pipeline: VargptPipeline) -> None:
    drawn = Dialogue(pipeline, seed=4).draw("fox")
    assert np.array_equal(np.asarray(drawn.image), np.asarray(pipeline.draw("fox", seed=4).images[0]))


def test_the_history_matters_unless_only_the_picture_is_remembered(pipeline: VargptPipeline) -> None:
    def second(memory: str, first: str) -> torch.Tensor:
        dialogue = Dialogue(pipeline, memory=memory, seed=1)  # type: ignore[arg-type]
        dialogue.draw(first)
        return dialogue.draw("snail").bits_Ld

    assert not torch.equal(second("all", "fox"), second("all", "a very red apple"))
    assert torch.equal(second("picture", "fox"), second("picture", "a very red apple"))


def test_a_picture_shown_goes_with_the_next_words_only(pipeline: VargptPipeline) -> None:
    dialogue = Dialogue(pipeline, max_new_tokens=3)
    dialogue.show(Image.new("RGB", (64, 64), "red"))
    list(dialogue.say("what is this?"))
    list(dialogue.say("are you sure?"))
    assert [any(isinstance(part, ImagePart) for part in message.content) for message in dialogue.messages] == [
        True, False, False, False,
    ]  # fmt: skip


def test_a_model_that_decides_to_draw_is_heard(pipeline: VargptPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words, a picture, words again, in one answer; then the talk goes on with the picture in its history."""
    said = iter([40, 41, pipeline.model.config.image_gen_start_token_id, 42, pipeline.model.config.eos_token_id])
    generate = pipeline.model.generate
    monkeypatch.setattr(
        pipeline.model,
        "generate",
        lambda *args, **kwargs: generate(*args, **kwargs, token_sampler=lambda logits, sequence, step: next(said)),
    )
    dialogue = Dialogue(pipeline)
    pieces = list(dialogue.say("show me a fox"))
    assert [isinstance(piece, Drawn) for piece in pieces] == [False, False, True, False]
    assert kinds(dialogue) == [["text"], ["text", "image_gen", "text"]]
    monkeypatch.undo()
    dialogue.edit("make it blue")
    assert sum(isinstance(part, DrawPart) for message in dialogue.messages for part in message.content) == 2


def test_a_turn_broken_off_leaves_no_trace(pipeline: VargptPipeline) -> None:
    dialogue = Dialogue(pipeline, max_new_tokens=8, seed=2)
    stream = dialogue.say("hello")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert dialogue.messages == []
    assert dialogue.seed == 2


def test_reset_forgets(pipeline: VargptPipeline) -> None:
    dialogue = Dialogue(pipeline, system="be kind")
    dialogue.draw("fox")
    dialogue.reset()
    assert [message.role for message in dialogue.messages] == ["system"]
    assert dialogue.picture is None


def test_what_cannot_be_done_is_said(pipeline: VargptPipeline) -> None:
    dialogue = Dialogue(pipeline)
    with pytest.raises(ValueError, match="no picture to change"):
        dialogue.edit("make it blue")
    for act in (dialogue.draw, dialogue.edit, lambda words: list(dialogue.say(words))):
        with pytest.raises(ValueError, match="empty"):
            act(" ")
    with pytest.raises(ValueError, match="memory"):
        Dialogue(pipeline, memory="some")  # type: ignore[arg-type]
