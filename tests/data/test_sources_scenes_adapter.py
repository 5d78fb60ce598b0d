"""Generated scenes as a source."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace

import pytest

from vargpt.data.scenes.source import scene_example
from vargpt.data.scenes.world import Split, split_of
from vargpt.data.sources.open import open_source
from vargpt.data.sources.scenes import ScenesSource
from vargpt.processing.conversation import Conversation


def test_scenes_open_without_files_and_repeat_themselves():
    settings = SimpleNamespace(
        format="scenes",
        path=".",
        images=None,
        on_error="stop",
        count=50,
        kinds=None,
        questions=None,
        question_kinds=None,
        long_captions=None,
        drafts=None,
        inventories=None,
    )
    source = open_source("world", settings, side=32)
    assert source.tasks == {"draw", "caption", "question", "edit"}
    assert [source.count(task) for task in ("draw", "edit", "chat")] == [50, 50, 0]
    for task in ("draw", "caption", "question", "edit"):
        sample = source.sample(task, 7, random.Random(1), 0.5)
        assert sample.key == f"{task} 7"
        assert sample.conversation == scene_example(0, 7, task, height=32, width=32, variety=0.5).conversation
    with pytest.raises(ValueError, match="has 50 samples for 'draw', got index 50"):
        source.sample("draw", 50, random.Random(0), 0.0)
    with pytest.raises(ValueError, match="count must be at least 1, got -1"):
        open_source("world", SimpleNamespace(**{**vars(settings), "count": -1}))


def test_scenes_of_some_kinds_only():
    settings = SimpleNamespace(
        format="scenes",
        path=".",
        images=None,
        on_error="stop",
        count=200,
        kinds=["count", "single"],
        questions=None,
        question_kinds=None,
        long_captions=None,
        drafts=None,
        inventories=None,
    )
    source = open_source("easy", settings, side=32)
    drawn = [source.sample("draw", index, random.Random(0), 0.0).conversation for index in range(100)]
    alike = [scene_example(0, index, "draw", height=32, width=32, kind=kind, variety=0.0).conversation
             for index in range(100) for kind in ("single", "count")]  # fmt: skip
    which = [alike.index(conversation) % 2 for conversation in drawn]
    assert 0.25 < sum(which) / len(which) < 0.55  # 22 single ones to 15 counts
    assert drawn[3] == source.sample("draw", 3, random.Random(0), 0.0).conversation
    seen = ScenesSource("easy", 40, 32, kinds=["single"]).validation("draw", 3)
    single = scene_example(0, 3, "draw", height=32, width=32, split="validation", kind="single", variety=0.0)
    assert seen == single.conversation
    for wrong in (["singel"], [], ["two", "two"], ["empty"]):
        with pytest.raises(ValueError, match="kinds must be different ones of single, two, count, groups"):
            open_source("easy", SimpleNamespace(**{**vars(settings), "kinds": wrong}))
    with pytest.raises(ValueError, match="kinds is for scenes only, got it with folder"):
        open_source("easy", SimpleNamespace(**{**vars(settings), "format": "folder", "count": None}))


def test_what_validation_shows_is_in_no_sample():
    source = ScenesSource("world", 40, 32)
    for index in range(12):
        conversation = source.validation("draw", index)
        scene = scene_example(0, index, "draw", height=32, width=32, split="validation", variety=0.0)
        assert conversation == scene.conversation and split_of(scene.scene) == "validation"
    trained = [scene_example(0, index, "draw", height=32, width=32, split="train").scene for index in range(40)]
    assert {split_of(scene) for scene in trained} == {"train"}


def test_questions_and_long_captions_are_settings_of_the_source():
    settings = SimpleNamespace(
        format="scenes", path=".", images=None, on_error="stop", count=50, kinds=["two"], questions=4,
        question_kinds=None, long_captions=1.0, drafts=None, inventories=None,
    )  # fmt: skip
    source = open_source("told", settings, side=32)
    asked = source.sample("question", 3, random.Random(0), 0.0).conversation
    expected = scene_example(0, 3, "question", height=32, width=32, kind="two", variety=0.0, questions=4)
    assert asked == expected.conversation and len(asked.messages) == 8
    made_by_split: dict[Split, Conversation] = {
        "train": source.sample("caption", 3, random.Random(0), 0.0).conversation,
        "validation": ScenesSource("told", 50, 32, kinds=["two"], long_captions=1.0).validation("caption", 3),
    }
    for split, made in made_by_split.items():
        long = scene_example(
            0, 3, "caption", height=32, width=32, split=split, kind="two", variety=0.0, long_captions=1.0
        )
        assert made == long.conversation and long.prompt.endswith(".")
    wrong = {"questions": 4, "question_kinds": ["colour"], "long_captions": 1.0, "drafts": 1.0, "inventories": 1.0}
    none = dict.fromkeys(["count", "kinds", *wrong])
    for setting, value in wrong.items():
        with pytest.raises(ValueError, match=f"{setting} is for scenes only, got it with tar"):
            open_source("told", SimpleNamespace(**{**vars(settings), **none, "format": "tar", setting: value}))


def test_drafts_are_a_setting_of_the_source():
    settings = SimpleNamespace(
        format="scenes", path=".", images=None, on_error="stop", count=50, kinds=["two"], questions=None,
        question_kinds=None, long_captions=None, drafts=1.0, inventories=None,
    )  # fmt: skip
    source = open_source("drafted", settings, side=32)
    for task in ("draw", "caption", "edit"):
        expected = scene_example(0, 3, task, height=32, width=32, kind="two", variety=0.0, drafts=1.0)
        assert source.sample(task, 3, random.Random(0), 0.0).conversation == expected.conversation


def test_a_source_asks_about_what_it_is_told_to():
    source = ScenesSource("finding", 200, 16, kinds=["two", "single"], question_kinds=["place", "colour"])
    for made in (lambda i: source.sample("question", i, random.Random(0), 0.0).conversation,
                 lambda i: source.validation("question", i)):  # fmt: skip
        words = [str(made(index).messages[0].content[1]) for index in range(200)]
        about = Counter("place" if "where" in text else "colour" if "color" in text else "else" for text in words)
        assert min(about["place"], about["colour"]) > 60 and about["else"] < 10, about  # two red stars allow neither
    for wrong in ([], ["taste"], ["colour", "colour"]):
        with pytest.raises(ValueError, match=r"source 'finding': question_kinds must be different ones of existence, "):
            ScenesSource("finding", 200, 16, question_kinds=wrong)
