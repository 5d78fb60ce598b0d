"""Plug-ins by name, and what may come out of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vargpt.data.instructions import draw_prompt
from vargpt.preferences.prompts import PairPrompt
from vargpt.preferences.scorers import Context, load_scorer, score_pictures
from vargpt.preferences.self_judge import SelfJudge
from vargpt.preferences.targets import TargetScorer
from vargpt.processing.images import open_image

PROMPT = draw_prompt("fox")
IMAGES = [Image.new("RGB", (8, 8), (level, level, level)) for level in (10, 200, 100)]
PLUGIN = """
from PIL import ImageStat

def level(image):
    return ImageStat.Stat(image.convert("L")).mean[0]

def brightness(prompt, images, context, scale=1.0, note=""):
    return [level(image) * scale for image in images]

class Near:
    def __init__(self, levels):
        self.levels = levels
    def __call__(self, prompt, images, context):
        return [-min(abs(level(image) - wanted) for wanted in self.levels) for image in images]

def told(prompt, images, context):
    return [len(context.key), len(context.caption), context.target.size[0]]

def wrong(prompt, images, context, kind):
    return {"few": [1.0], "nan": [1.0, float("nan"), 2.0], "none": None, "text": ["a", "b", "c"]}[kind]

constant = 3
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plug-in module."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "my_scorers.py").write_text(PLUGIN)
    return folder


def test_a_function_and_a_class_from_the_current_folder(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plugin)
    assert list(load_scorer("my_scorers:brightness")(PROMPT, IMAGES, Context())) == [10, 200, 100]
    halved = load_scorer("my_scorers:brightness?scale=0.5&note=a%20b")
    assert list(halved(PROMPT, IMAGES, Context())) == [5, 100, 50]
    near = load_scorer("my_scorers:Near?levels=12&levels=90")
    assert list(near(PROMPT, IMAGES, Context())) == [-2, -110, -10]


def test_a_scorer_is_told_about_the_prompt(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plugin)
    prompt = PairPrompt("key", PROMPT, caption="a fox", target=Image.new("RGB", (7, 9)))
    assert score_pictures(load_scorer("my_scorers:told"), "told", prompt, IMAGES) == [3.0, 5.0, 7.0]


@pytest.mark.parametrize(
    "kind, message",
    [
        ("few", "scorer 'mine', the key: expected 3 scores, one per picture, got 1"),
        ("nan", "scorer 'mine', the key: the score of picture 1 is nan"),
        ("none", "expected a list of 3 numbers, got None"),
        ("text", r"expected a list of 3 numbers, got \['a', 'b', 'c'\]"),
    ],
)
def test_wrong_scores_are_refused(kind: str, message: str, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plugin)
    scorer = load_scorer(f"my_scorers:wrong?kind={kind}")
    with pytest.raises(ValueError, match=message):
        score_pictures(scorer, "mine", PairPrompt("the key", PROMPT), IMAGES)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("beauty", "expected scenes, targets, self, a URL, or package.module:name"),
        ("no_such_module:score", "cannot import no_such_module"),
        ("my_scorers:nothing", "has no nothing"),
        ("my_scorers:constant", "constant is int, expected a function or a class"),
        ("my_scorers:brightness?scales=2", "arguments do not fit .* it takes scale, note"),
        ("my_scorers:Near", "it takes levels"),
        ("my_scorers:brightness?scale", "arguments read key=value"),
        ("self?caption=false", "no question is left"),
        ("targets?folder=nowhere", "nowhere: no such folder"),
        ("targets?side=0", "side must be at least 1"),
        ("http://", "names no host"),
        ("http://host/score#patience=3", "takes numbers for timeout, retries, wait, batch_size, got patience=3"),
        ("http://host/score#retries=1.5", "retries is a whole number"),
        ("http://host/score#timeout=0", "timeout must be positive"),
        ("http://host/score#timeout=Infinity", "timeout must be positive"),
    ],
)
def test_specs_that_are_none(spec: str, message: str, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plugin)
    with pytest.raises(ValueError, match=message):
        load_scorer(spec)


def test_arguments_of_the_judge_are_read() -> None:
    judge = load_scorer("self?yes=is this {caption}?&yes=is it red?&no=is it empty?&caption=0")
    assert isinstance(judge, SelfJudge)
    assert [(q.text, q.answer, q.others) for q in judge.questions] == [
        ("is this {caption}?", "yes", ("no",)),
        ("is it red?", "yes", ("no",)),
        ("is it empty?", "no", ("yes",)),
    ]


def test_targets_score_likeness(repo_root: Path) -> None:
    folder = repo_root / "examples"
    scorer = load_scorer(f"targets?folder={folder}")
    fox = open_image(folder / "fox.png")
    moved = Image.new("RGB", fox.size, "white")
    moved.paste(fox, (fox.width // 64, 0))
    assert TargetScorer(blur=1.0).distance(moved, fox) < 0.8 * TargetScorer(blur=0.0).distance(moved, fox)
    black, white = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), "white")
    scores = scorer(PROMPT, [fox, fox.resize((64, 64)), moved, white, black], Context("k", " FOX "))
    assert scores[0] == 0
    assert -0.02 < scores[1] <= 0
    assert scores[1] > scores[2] > scores[3] > scores[4] > -1
    assert list(TargetScorer()(PROMPT, [black, white], Context("k", target=white))) == [-1, 0]
    with pytest.raises(ValueError, match="no picture with the caption 'wolf'"):
        scorer(PROMPT, [fox], Context("k", "wolf"))
    with pytest.raises(ValueError, match="k has no target picture"):
        TargetScorer()(PROMPT, [fox], Context("k", "fox"))


def test_the_nearest_of_several_targets_counts(tmp_path: Path) -> None:
    for name, colour in (("a.png", "black"), ("b.png", "white")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / name)
    lines = ['{"file_name": "a.png", "text": "square"}', '{"file_name": "b.png", "text": "square"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    grey = Image.new("RGB", (16, 16), (51, 51, 51))
    scores = TargetScorer(str(tmp_path))(PROMPT, [grey, Image.new("RGB", (8, 8), "white")], Context("k", "square"))
    assert np.allclose(scores, [-0.2, 0.0])
    assert not any(math.isnan(score) for score in scores)
