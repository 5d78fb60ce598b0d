"""Scores made by other processes."""

from __future__ import annotations

import pytest

from vargpt.data.instructions import draw_prompt
from vargpt.data.scenes.source import scene_example
from vargpt.preferences.prompts import PairPrompt
from vargpt.preferences.scorers import load_scorer
from vargpt.preferences.scoring import scoring


@pytest.mark.parametrize("spec", ["scenes", "scenes?quality=0.1"])
def test_other_processes_find_the_same_scores(spec: str):
    examples = [scene_example(0, index, "draw", height=48, width=48, kind="single") for index in range(3)]
    images = [example.conversation.drawings[0].image for example in examples]
    work = [(PairPrompt(example.prompt, draw_prompt(example.prompt)), images) for example in examples]
    found = []
    for workers in (0, 2):
        with scoring(load_scorer(spec), spec, None, workers) as score_all:
            found.append(score_all(work))  # type: ignore[arg-type]
    assert found[0] == found[1]
    for number, scores in enumerate(found[0]):
        assert scores is not None and max(scores) == scores[number] >= 1.0
