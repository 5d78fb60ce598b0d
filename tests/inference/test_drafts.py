"""Saying first what a picture will show: words, then the picture that follows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vargpt.evaluation.subject import Subject
from vargpt.inference.dialogue import Dialogue
from vargpt.inference.drafting import write_drafts
from vargpt.inference.pipeline import VargptPipeline
from vargpt.inference.requests import draw_request, edit_request
from vargpt.preferences.sample import ModelPainter
from vargpt.processing.conversation import Conversation, TextPart


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> VargptPipeline:
    return VargptPipeline.from_pretrained(tiny_model, device="cpu")


@pytest.fixture
def drafting(pipeline: VargptPipeline) -> VargptPipeline:
    """The same model with the habit."""
    return VargptPipeline(pipeline.model, pipeline.processor, replace(pipeline.habits, draft=True))


def pixels(pictures) -> list[np.ndarray]:
    return [np.asarray(image) for image in pictures.images]


def test_a_given_draft_is_what_the_answer_begins_with(pipeline: VargptPipeline) -> None:
    plain = pipeline.draw("a cat", seed=3)
    told = pipeline.draw("a cat", seed=3, draft=" on a sand background: a cat at 5 4 ")
    assert (plain.drafts, told.drafts) == ([], ["on a sand background: a cat at 5 4"])
    assert not np.array_equal(pixels(plain)[0], pixels(told)[0])
    request = draw_request(pipeline.model.config, "a cat")
    request = Conversation.parse([*request.messages, {"role": "assistant", "content": told.drafts[0]}])
    subject = Subject(pipeline, pipeline.sampling)
    assert np.array_equal(subject.drawings([request], [3])[0].numpy(), pixels(told)[0])


def test_a_model_that_drafts_does_so_for_every_seed_and_whatever_the_batch(drafting: VargptPipeline) -> None:
    prompts, seeds = ["a cat", "a dog"], [4, 5]
    together = drafting.draw(prompts, seed=seeds, num_images_per_prompt=2, batch_size=3)
    assert len(together.drafts) == 4 and together.drafts[0] != together.drafts[1]
    for index, (prompt, seed) in enumerate((prompt, seed) for prompt in prompts for seed in seeds):
        alone = drafting.draw(prompt, seed=seed)
        assert alone.drafts == [together.drafts[index]]
        assert np.array_equal(pixels(alone)[0], pixels(together)[index])
        given = drafting.draw(prompt, seed=seed, draft=together.drafts[index])
        assert np.array_equal(pixels(given)[0], pixels(together)[index])
    at_once = drafting.draw("a cat", seed=4, draft=False)
    assert at_once.drafts == [] and not np.array_equal(pixels(at_once)[0], pixels(together)[0])


def test_drafts_are_sampled_and_end_where_the_picture_starts(drafting: VargptPipeline) -> None:
    request = draw_request(drafting.model.config, "a cat")
    start, head = drafting.model.config.image_gen_start_token_id, drafting.model.lm_head
    before = head.weight.detach().clone()
    drafts = write_drafts(drafting, [request] * 3, [0, 1, 2], batch_size=2)
    assert len(set(drafts)) == 3
    with torch.no_grad():
        head.weight[start] = 0
        head.weight *= 1e-3  # every word as likely as the image start: most drafts end before the limit
    try:
        short = write_drafts(drafting, [request] * 24, list(range(24)), batch_size=24)
    finally:
        with torch.no_grad():
            head.weight.copy_(before)
    words = [len(drafting.processor.tokenizer(text).input_ids) for text in short]
    assert min(words) < 150


def test_evaluation_and_benchmarks_draw_as_the_pipeline_does(drafting: VargptPipeline) -> None:
    expected = drafting.draw("a cat", seed=[7, 8], num_images_per_prompt=2)
    request = draw_request(drafting.model.config, "a cat")
    drawn = Subject(drafting).drawings([request, request], [7, 8])
    silent = VargptPipeline(drafting.model, drafting.processor, replace(drafting.habits, draft=False))
    assert np.array_equal(Subject(silent, drafts=True).drawings([request, request], [7, 8]), drawn)
    assert np.array_equal(
        Subject(drafting, drafts=False).drawings([request], [7]), Subject(silent).drawings([request], [7])
    )
    assert not np.array_equal(Subject(silent).drawings([request], [7])[0], drawn[0])
    painted = ModelPainter(drafting, drafts=True).draw([request], [[7, 8]])
    for index, picture in enumerate(pixels(expected)):
        assert np.array_equal(drawn[index].numpy(), picture)
        assert np.array_equal(np.asarray(painted[0][index].image), picture)
    assert not np.array_equal(
        np.asarray(ModelPainter(drafting).draw([request], [[7]])[0][0].image), pixels(expected)[0]
    )
    assert ModelPainter(drafting, drafts=True).describe()["drafts"] is True
    assert "drafts" not in ModelPainter(drafting).describe()


def test_a_dialogue_remembers_its_drafts(drafting: VargptPipeline) -> None:
    dialogue = Dialogue(drafting, seed=7, memory="all")
    picture = dialogue.draw("a cat")
    expected = drafting.draw("a cat", seed=7)
    assert np.array_equal(np.asarray(picture.image), pixels(expected)[0])
    answer = dialogue.messages[-1]
    assert answer.role == "assistant" and answer.content[0] == TextPart(text=expected.drafts[0])
    dialogue.edit("make it blue")
    assert [message.role for message in dialogue.messages] == ["user", "assistant"] * 2


@pytest.mark.parametrize(("prompts", "draft"), [(["a cat", "a dog"], "at 5 4"), ("a cat", "  ")])
def test_a_given_draft_is_for_one_prompt_and_says_something(pipeline: VargptPipeline, prompts, draft) -> None:
    with pytest.raises(ValueError, match="a given draft is for one prompt and not empty"):
        pipeline.draw(prompts, draft=draft)


def test_the_draft_of_an_edit_is_the_likeliest_and_that_of_a_drawing_is_not(drafting: VargptPipeline) -> None:
    picture = Image.new("RGB", (64, 64), "red")
    requests = [
        edit_request(drafting.model.config, picture, "make it blue"),
        draw_request(drafting.model.config, "cat"),
    ]
    first, second = (write_drafts(drafting, requests * 2, [seed, seed, seed, seed]) for seed in (0, 1))
    assert first[0] == first[2] == second[0] == second[2]
    assert first[1] == first[3] != second[1]
    edited = drafting.edit(picture, "make it blue", seed=1)
    dialogue = Dialogue(drafting, seed=1)
    dialogue.show(picture)
    assert edited.drafts == [first[0]]
    assert np.array_equal(np.asarray(dialogue.edit("make it blue").image), pixels(edited)[0])
