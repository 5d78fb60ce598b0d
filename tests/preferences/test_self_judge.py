"""The model as judge of its own pictures: log-probabilities against a plain computation, one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from vargpt.commands.common import bundled_model
from vargpt.data.instructions import canonical_caption, draw_prompt
from vargpt.inference.pipeline import VargptPipeline
from vargpt.preferences.prompts import PairPrompt
from vargpt.preferences.scorers import Context, load_scorer, score_pictures
from vargpt.preferences.self_judge import Question, SelfJudge, answer_logps
from vargpt.processing.conversation import Conversation, assistant, user
from vargpt.processing.images import open_image

PROMPT = draw_prompt("red heart")


@pytest.fixture(scope="module")
def pictures(repo_root: Path) -> list[Image.Image]:
    return [open_image(repo_root / "examples" / f"{name}.png") for name in ("red-heart", "fox", "snail")]


def plain_logps(pipeline: VargptPipeline, image: Image.Image, question: str, answer: str) -> torch.Tensor:
    """Log-probabilities of the answer's tokens and the end of turn, word by word from prompts."""
    inputs = pipeline.processor.prompt([Conversation(messages=(user(image, question),))]).inputs
    closed = Conversation(messages=(user(image, question), assistant(answer)))
    ids = pipeline.processor.encode(closed, training=True).ids
    start = inputs.input_ids_BT.shape[1]
    end = pipeline.processor.special.im_end
    wanted = [int(token) for token in ids[start:]]
    wanted = wanted[: wanted.index(end) + 1]
    row = pipeline.processor.prompt([closed]).inputs
    with torch.no_grad():
        logits = pipeline.model(row).text_logits_BTV[0]
    logps = torch.log_softmax(logits.float(), -1)
    return torch.stack([logps[start - 1 + index, token] for index, token in enumerate(wanted)])


def test_answers_have_their_own_log_probability(pipeline: VargptPipeline, pictures: list[Image.Image]) -> None:
    rows = [("what is this?", "red heart"), ("is it a long way to the next question?", "no"), ("?", "a b c d e")]
    conversations = [
        Conversation(messages=(user(image, question), assistant(answer)))
        for image, (question, answer) in zip(pictures, rows, strict=True)
    ]
    together = answer_logps(pipeline, conversations, 16)
    for batch_size in (1, 2):
        for got, expected in zip(answer_logps(pipeline, conversations, batch_size), together, strict=True):
            assert got == pytest.approx(expected, abs=1e-4)
    for image, (question, answer), (total, tokens) in zip(pictures, rows, together, strict=True):
        plain = plain_logps(pipeline, image, question, answer)
        assert tokens == len(plain) >= 2
        assert total == pytest.approx(float(plain.sum()), abs=1e-4)


def test_scores_are_the_mean_over_questions(pipeline: VargptPipeline, pictures: list[Image.Image]) -> None:
    judge = SelfJudge(yes="is this {caption}?", no=["is it {caption}s?"], batch_size=4)
    context = Context("k", "red heart", pipeline=pipeline)
    for image, score in zip(pictures, judge(PROMPT, pictures, context), strict=True):
        caption = plain_logps(pipeline, image, "what is this?", "red heart").mean()
        parts = [caption]
        for question, right, wrong in (("is this red heart?", "yes", "no"), ("is it red hearts?", "no", "yes")):
            both = torch.stack([plain_logps(pipeline, image, question, answer).sum() for answer in (right, wrong)])
            parts.append(both[0] - both.logsumexp(0))
        assert score == pytest.approx(float(torch.stack(parts).mean()), abs=1e-4)
    alone = SelfJudge(caption=False, questions=[Question("what is this?", "red heart")])
    assert list(alone(PROMPT, pictures, context)) == pytest.approx(list(SelfJudge()(PROMPT, pictures, context)))


def test_it_needs_a_model_and_a_caption(pipeline: VargptPipeline, pictures: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="needs the model that drew"):
        SelfJudge()(PROMPT, pictures, Context("k", "fox"))
    with pytest.raises(ValueError, match="k has no caption, which 'what is this\\?' needs"):
        SelfJudge()(PROMPT, pictures, Context("k", pipeline=pipeline))
    assert len(SelfJudge(caption=False, yes="is it red?")(PROMPT, pictures, Context("k", pipeline=pipeline))) == 3


def test_a_trained_model_knows_its_pictures(pictures: list[Image.Image]) -> None:
    folder = bundled_model()
    if folder is None:
        pytest.skip("the bundled model is not in this checkout")
    trained = VargptPipeline.from_pretrained(folder, device="cpu")
    (total, _), *_ = answer_logps(trained, [canonical_caption(pictures[1], "fox")], 1)
    assert total == pytest.approx(float(plain_logps(trained, pictures[1], "what is this?", "fox").sum()), abs=1e-4)
    for number, name in enumerate(("red heart", "fox", "snail")):
        prompt = PairPrompt(name, draw_prompt(name), caption=name)
        scores = score_pictures(load_scorer("self"), "self", prompt, pictures, trained)
        assert max(range(3), key=scores.__getitem__) == number
