"""The lmms-eval plugin: requests become conversations, words and losses; the classes unpack them rightly."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from vargpt.commands.common import bundled_model
from vargpt.evaluation.lmms.answers import (
    AnswerSettings,
    Question,
    answers,
    chat_conversation,
    continuation,
    question_seeds,
    simple_conversation,
)
from vargpt.inference.pipeline import VargptPipeline
from vargpt.processing.conversation import Conversation
from vargpt.sampling import Sampling

RED, BLUE = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> VargptPipeline:
    return VargptPipeline.from_pretrained(tiny_model, device="cpu")


def parts(conversation: Conversation) -> list[str]:
    return [getattr(part, "text", "IMAGE") for part in conversation.messages[-1].content]


def test_pictures_stand_where_the_text_marks_them():
    assert parts(simple_conversation("<image> and <image>?", [RED, BLUE])) == ["IMAGE", " and ", "IMAGE", "?"]
    assert parts(simple_conversation("<image>what?", [RED, BLUE])) == ["IMAGE", "IMAGE", "what?"]
    assert parts(simple_conversation("what?", [RED])) == ["IMAGE", "what?"]
    assert parts(simple_conversation("what?", [])) == ["what?"]


def test_chat_messages_keep_their_order(tmp_path: Path):
    RED.save(tmp_path / "red.png")
    messages: list[Any] = [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
        {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "image", "url": RED},
                                     {"type": "text", "text": " two "},
                                     {"type": "image", "url": str(tmp_path / "red.png")}]},
    ]  # fmt: skip
    conversation = chat_conversation(messages)
    assert conversation.system == "be brief" and parts(conversation) == ["one ", "IMAGE", " two ", "IMAGE"]


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_video_and_sound_are_refused(kind: str):
    with pytest.raises(ValueError, match=f"vargpt reads text and pictures, got {kind}"):
        chat_conversation([{"role": "user", "content": [{"type": kind, "url": "x.mp4"}]}])
    with pytest.raises(ValueError, match=r"reads pictures \(PIL images, files\), got dict"):
        simple_conversation("what?", [{"array": [0.0]}])


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({}, AnswerSettings(128, 0.0, 1.0, 0, ())),
        ({"until": "\n\n", "max_new_tokens": 16, "image_aspect_ratio": "pad"}, AnswerSettings(16, until=("\n\n",))),
        ({"max_gen_toks": 8, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "do_sample": True},
         AnswerSettings(8, 0.7, 0.9, 5)),
        ({"temperature": 0.7, "do_sample": False, "top_p": None, "num_beams": 1}, AnswerSettings(128, 0.0)),
        ({"do_sample": True, "until": ["", "."]}, AnswerSettings(128, 1.0, until=(".",))),
    ],
)  # fmt: skip
def test_generation_settings(kwargs: dict[str, Any], expected: AnswerSettings):
    assert AnswerSettings.from_kwargs(kwargs) == expected


def test_settings_that_cannot_be_had():
    with pytest.raises(ValueError, match="num_beams must be 1, got 4"):
        AnswerSettings.from_kwargs({"num_beams": 4})
    with pytest.raises(ValueError, match="until must be a string or a list of strings"):
        AnswerSettings.from_kwargs({"until": 3})


def questions(**settings: Any) -> list[Question]:
    texts: Any = (("what?", [RED]), ("<image> or <image>, which is the red one?", [RED, BLUE]), ("say something", []))
    return [
        Question(simple_conversation(text, visuals), AnswerSettings(max_new_tokens=12, **settings), seed)
        for (text, visuals), seed in zip(texts, (5, 6, 7), strict=True)
    ]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.5}])
def test_a_batch_answers_as_one_by_one(pipeline: VargptPipeline, settings: dict[str, Any]):
    asked = questions(**settings)
    together = answers(pipeline, asked, 3)
    assert together == [answers(pipeline, [question], 1)[0] for question in asked] and len(set(together)) == 3
    assert together == answers(pipeline, asked, 2)


def test_answers_come_in_the_order_of_the_questions(pipeline: VargptPipeline):
    short, long = questions(), questions(temperature=1.5)
    mixed = [short[0], long[0], short[1], long[1]]
    one, two = answers(pipeline, short, 3), answers(pipeline, long, 3)
    assert answers(pipeline, mixed, 2) == [one[0], two[0], one[1], two[1]]


def test_until_cuts_an_answer(pipeline: VargptPipeline):
    asked = questions(temperature=1.5)
    whole = answers(pipeline, asked, 3)
    end = whole[0][3:5]
    cut = answers(pipeline, [Question(q.conversation, AnswerSettings(12, 1.5, until=(end,)), q.seed) for q in asked], 3)
    assert cut == [text.partition(end)[0] for text in whole] and cut[0] == whole[0][: whole[0].index(end)]


def test_seeds_differ_by_name_and_repeat():
    seeds = question_seeds(["mme:0", "mme:1", "mme:0"])
    assert len(set(seeds)) == 3 and question_seeds(["mme:1", "mme:0"]) == [seeds[1], seeds[0]]


def test_a_continuation_is_scored_as_generation_would(pipeline: VargptPipeline):
    """Against the cached path: the same words forced on `generate`, token by token."""
    conversation = simple_conversation("<image> what is this? <image>", [RED, BLUE])
    scored = continuation(pipeline, conversation, "a red fox")
    wanted = pipeline.processor.tokenizer("a red fox", add_special_tokens=False)["input_ids"]
    seen: list[float] = []

    def forced(logits_V: torch.Tensor, sequence: int, step: int) -> int:
        seen.append(float(torch.log_softmax(logits_V.float(), -1)[wanted[step]]))
        return wanted[step]

    settings = Sampling(max_new_tokens=len(wanted), max_images=0)
    list(pipeline.model.generate(pipeline.inputs([conversation]), settings, token_sampler=forced))
    assert scored.tokens == len(wanted) == len(seen) and not scored.greedy
    assert scored.log_probability == pytest.approx(sum(seen), abs=1e-4)
    assert scored.loss == pytest.approx(-sum(seen) / len(seen), abs=1e-4)


def test_the_greedy_answer_is_greedy(repo_root: Path):
    """With trained weights, whose answers are words (and not halves of characters)."""
    folder = bundled_model()
    if folder is None:
        pytest.skip("the bundled model is not in this checkout")
    trained = VargptPipeline.from_pretrained(folder, device="cpu")
    conversation = simple_conversation("what is this?", [repo_root / "examples" / "fox.png"])
    said = answers(trained, [Question(conversation, AnswerSettings())], 1)[0]
    right, wrong = continuation(trained, conversation, said), continuation(trained, conversation, "zebra crossing")
    assert said and right.greedy and not wrong.greedy and right.loss < wrong.loss


def test_no_words_cannot_be_scored(pipeline: VargptPipeline):
    with pytest.raises(ValueError, match="the continuation '' has no tokens"):
        continuation(pipeline, simple_conversation("what?", [RED]), "")


@dataclass
class Request:
    """What the classes use of lmms-eval's `Instance`."""

    args: tuple[Any, ...]


@pytest.fixture
def classes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Our module on the interface of `lmms_eval.api.model.lmms`: rank, world size and the documents of tasks."""

    class Base:
        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}

    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = Base  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "vargpt.evaluation.lmms.models.vargpt", raising=False)
    yield importlib.import_module("vargpt.evaluation.lmms.models.vargpt")
    sys.modules.pop("vargpt.evaluation.lmms.models.vargpt", None)


def test_the_classes_unpack_requests(classes: Any, tiny_model: Path, pipeline: VargptPipeline):
    documents: Any = {"mme": {"test": [{"q": "what?", "im": RED, "answer": "fox"}, {"q": "why?", "im": BLUE}]}}
    simple, chat = (
        kind(str(tiny_model), device="cpu", batch_size="2") for kind in (classes.Vargpt, classes.VargptChat)
    )
    simple.task_dict = chat.task_dict = documents
    assert (simple.is_simple, chat.is_simple, chat.device.type) == (True, False, "cpu")
    kwargs = {"max_new_tokens": 6, "until": ["\n\n"]}

    def visual(document: Any) -> list[Any]:
        return [document["im"]]

    def messages(document: Any) -> list[Any]:
        parts = [{"type": "image", "url": document["im"]}, {"type": "text", "text": document["q"]}]
        return [{"role": "user", "content": parts}]

    asked = [Question(simple_conversation(d["q"], [d["im"]]), AnswerSettings(6, until=("\n\n",)))
             for d in documents["mme"]["test"]]  # fmt: skip
    expected = answers(pipeline, asked, 2)
    older = [Request((d["q"], kwargs, visual, i, "mme", "test")) for i, d in enumerate(documents["mme"]["test"])]
    newer = [Request(("", messages, kwargs, i, "mme", "test")) for i in range(2)]
    assert simple.generate_until(older) == chat.generate_until(newer) == expected
    scored = continuation(pipeline, asked[0].conversation, "fox")
    for target in ("fox", lambda document: document["answer"]):
        found = simple.loglikelihood([Request(("what?", target, visual, 0, "mme", "test"))])
        assert found == [(pytest.approx(scored.loss), False)]
    with pytest.raises(NotImplementedError, match="multi-round"):
        chat.generate_until_multi_round([])
    with pytest.raises(ValueError, match="batch_size must be a whole number from 1 on, got 'auto'"):
        classes.Vargpt(str(tiny_model), batch_size="auto")


def test_the_entry_point_leads_to_the_manifest(repo_root: Path):
    """Without lmms-eval it says what is missing, in one line."""
    points = tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]["entry-points"]["lmms_eval.models"]
    module, _, name = points["vargpt"].partition(":")
    manifest = getattr(importlib.import_module(module), name)
    if importlib.util.find_spec("lmms_eval") is None:
        with pytest.raises(RuntimeError, match=r"pip install 'lmms-eval>=0.7'"):
            manifest()
        with pytest.raises(ImportError, match=r"for lmms-eval, which is not here"):
            importlib.import_module("vargpt.evaluation.lmms.models.vargpt")
    else:
        assert manifest().model_id == "vargpt"
