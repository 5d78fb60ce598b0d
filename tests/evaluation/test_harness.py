"""The harness: every example once, in batches, means over those that have a value, files that say everything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vargpt.evaluation.harness import Suite, estimate, run_suite, write_results
from vargpt.evaluation.intervals import Estimate
from vargpt.evaluation.progress import Progress
from vargpt.evaluation.subject import Subject
from vargpt.evaluation.task import Judged, Measure
from vargpt.inference.pipeline import VargptPipeline
from vargpt.processing.conversation import Conversation, user


class Numbers:
    """Examples are numbers; even ones are right."""

    name, title = "numbers", "Numbers"
    measures: Sequence[Measure] = (
        Measure("even", "Even"),
        Measure("size", "Size of the large ones", "number", None),
        Measure("largest", "The largest", "number"),
    )

    def __init__(self, count: int = 7) -> None:
        self.count, self.batches = count, list[list[int]]()

    def examples(self) -> list[int]:
        return list(range(self.count))

    def judge(self, subject: Subject, examples: Sequence[int]) -> list[Judged]:
        del subject
        self.batches.append(list(examples))
        return [
            Judged(f"number {n}", {"even": float(n % 2 == 0), **({"size": float(n)} if n > 3 else {})}, f"{n}?", "ö")
            for n in examples
        ]

    def overall(self, judged: Sequence[Judged]) -> dict[str, Estimate]:
        return {"largest": Estimate(float(len(judged) - 1), 0.0, 9.0, len(judged))}


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Subject:
    return Subject(VargptPipeline.from_pretrained(tiny_model), batch_size=3)


def quiet(title: str, done: int, total: int) -> None:
    """No progress."""


def test_means_are_over_the_examples_that_have_a_value(subject: Subject):
    task = Numbers()
    result = run_suite(Suite("counting", "Counting", [task], conditions={"seed": 5}), subject, {"model": "m"}, quiet)
    assert task.batches == [[0, 1, 2], [3, 4, 5], [6]]
    measures = result.document["measures"]
    assert (measures["even"]["mean"], measures["even"]["n"]) == (pytest.approx(4 / 7), 7)
    assert (measures["size"]["mean"], measures["size"]["n"]) == (5.0, 3)
    assert measures["largest"] == {
        "title": "The largest", "unit": "number", "higher_is_better": True, "task": "numbers", "mean": 6.0, "low": 0.0,
        "high": 9.0, "n": 7,
    }  # fmt: skip
    assert result.document["tasks"]["numbers"]["measures"] == ["even", "size", "largest"]


def test_conditions_hold_what_the_numbers_depend_on(subject: Subject):
    suite = Suite("counting", "Counting", [Numbers()], conditions={"seed": 5})
    conditions = run_suite(suite, subject, {"model": "m"}, quiet).document["conditions"]
    assert conditions["model"] == "m" and conditions["seed"] == 5 and len(conditions["weights"]) == 64
    assert conditions["image_size"] == [64, 64] and conditions["dtype"] == "float32" and conditions["batch_size"] == 3
    assert conditions["device"].startswith("cpu: ") and conditions["sampling"]["guidance_scale"] == 3.0
    assert {"torch", "transformers", "commit"} <= conditions["versions"].keys()


def test_files_say_everything(subject: Subject, tmp_path: Path):
    result = run_suite(Suite("counting", "Counting", [Numbers()]), subject, progress=quiet)
    path = write_results(result, tmp_path / "new" / "folder")
    assert json.loads(path.read_text(encoding="utf-8")) == result.document
    lines = (path.parent / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 7
    assert json.loads(lines[4]) == {
        "task": "numbers", "key": "number 4", "values": {"even": 1.0, "size": 4.0}, "prompt": "4?", "answer": "ö",
        "expected": "",
    }  # fmt: skip


class Wrong(Numbers):
    def __init__(self, judged: list[Judged]) -> None:
        super().__init__(2)
        self._judged = judged

    def judge(self, subject: Subject, examples: Sequence[int]) -> list[Judged]:
        return self._judged


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([Numbers(), Numbers()], "two measures are called 'even'"),
        ([Numbers(0)], "task numbers has no examples"),
        ([Wrong([Judged("a", {"even": 1.0})])], "judged 1 of 2 examples"),
        ([Wrong([Judged("a", {"even": 1.0}), Judged("b", {"odd": 1.0})])], "'odd', which is none of its measures"),
        ([Wrong([Judged("a", {"even": 1.0}), Judged("a", {"even": 1.0})])], "two examples are called 'a'"),
    ],
)
def test_mistakes_of_a_task_are_told(tasks: list[Any], message: str, subject: Subject):
    with pytest.raises(ValueError, match=message):
        run_suite(Suite("wrong", "Wrong", tasks), subject, progress=quiet)


def test_estimates_without_examples_are_none():
    assert estimate(Numbers(), []) == {"largest": Estimate(-1.0, 0.0, 9.0, 0)}


def test_progress_tells_rate_and_end(capsys: pytest.CaptureFixture[str]):
    show = Progress("scenes 1/4")
    for done in (0, 5, 10):
        show("Drawing", done, 10)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("scenes 1/4 Drawing: 10/10 (100%) | ")
    show.shown -= 60
    show("Drawing", 5, 10)
    assert "5/10 (50%)" in (line := capsys.readouterr().err) and "ETA 0:00:" in line


def test_a_subject_refuses_what_does_not_fit(subject: Subject):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Subject(subject.pipeline, batch_size=0)
    request = Conversation(messages=(user("draw a star"),))
    with pytest.raises(ValueError, match="expected one seed for each of 1 or more conversations, got 1 seeds for 2"):
        subject.drawings([request, request], [0])
