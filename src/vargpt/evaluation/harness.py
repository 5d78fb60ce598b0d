"""Runs a suite on a model: tasks in turn, examples in batches, means with intervals, files.

Invariant: the numbers do not depend on the batch size (up to the order of float sums); everything they do depend on is
in the document's `conditions`.

    results.json    {"suite", "title", "measures": {name: {"title", "unit", "higher_is_better", "task", "mean", "low",
                    "high", "n"}}, "tasks": {name: {"title", "measures", "examples", "seconds"}}, "conditions": {...}}
    examples.jsonl  {"task", "key", "values", "prompt", "answer", "expected"} for every example, in order
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vargpt.evaluation.intervals import Estimate, bootstrap
from vargpt.evaluation.progress import Progress
from vargpt.evaluation.subject import Subject
from vargpt.evaluation.task import Judged, Measure, Task
from vargpt.inference.pictures import write_atomically
from vargpt.preferences.origin import origin
from vargpt.preferences.sample import model_fingerprint

RESULTS, EXAMPLES = "results.json", "examples.jsonl"


@dataclass(frozen=True)
class Suite:
    """Tasks that make one report.

    Attributes:
        headline: names of the measures that a reader wants first.
        conditions: what decides the examples beside the model ("seed", sizes, the data's fingerprint), JSON values.
        footnotes: sentences for the reader of the report.
    """

    name: str
    title: str
    tasks: Sequence[Task]
    headline: tuple[str, ...] = ()
    conditions: Mapping[str, Any] = field(default_factory=dict)
    footnotes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SuiteResult:
    """A suite's outcome: the document of `results.json`, and what was judged, by task, with its pictures."""

    suite: Suite
    document: dict[str, Any]
    judged: dict[str, list[Judged]] = field(repr=False)


def run_suite(
    suite: Suite,
    subject: Subject,
    conditions: Mapping[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> SuiteResult:
    """Measure a model.

    Args:
        conditions: further entries of the document's conditions (how the model is called, where it lies).
        progress: called with a task's title, examples done and all of them; a line on stderr now and then by default.

    Raises:
        ValueError: for two measures of one name, a task without examples, values of measures that are not announced.
    """
    _check_names(suite.tasks)
    began = time.monotonic()
    measures: dict[str, dict[str, Any]] = {}
    tasks: dict[str, dict[str, Any]] = {}
    judged: dict[str, list[Judged]] = {}
    for number, task in enumerate(suite.tasks, 1):
        start = time.monotonic()
        show = progress or Progress(f"{suite.name} {number}/{len(suite.tasks)}")
        judged[task.name] = _judge_all(task, subject, show)
        estimates = estimate(task, judged[task.name])
        for measure in task.measures:
            if measure.name in estimates:
                measures[measure.name] = _entry(measure, task.name, estimates[measure.name])
        tasks[task.name] = {
            "title": task.title,
            "measures": [measure.name for measure in task.measures if measure.name in estimates],
            "examples": len(judged[task.name]),
            "seconds": round(time.monotonic() - start, 1),
        }
    document = {
        "suite": suite.name,
        "title": suite.title,
        "measures": measures,
        "tasks": tasks,
        "conditions": {
            **(conditions or {}),
            **describe(subject),
            **suite.conditions,
            "seconds": round(time.monotonic() - began, 1),
        },
    }
    return SuiteResult(suite, document, judged)


def estimate(task: Task, judged: Sequence[Judged]) -> dict[str, Estimate]:
    """Means of a task's measures over the examples that have them, and what the task makes of all examples together.

    Raises:
        ValueError: for values of a measure that the task does not announce.
    """
    values: dict[str, list[float]] = {}
    for example in judged:
        for name, value in example.values.items():
            values.setdefault(name, []).append(value)
    found = {name: bootstrap(list_of_values) for name, list_of_values in values.items()}
    found |= task.overall(judged)
    unknown = sorted(set(found) - {measure.name for measure in task.measures})
    if unknown:
        raise ValueError(f"task {task.name} gave values of {unknown[0]!r}, which is none of its measures")
    return found


def describe(subject: Subject) -> dict[str, Any]:
    """What the numbers depend on, as far as the model and the machine go."""
    pipeline, sampling = subject.pipeline, subject.sampling
    device = subject.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    height, width = subject.schedule.image_size
    return {
        "weights": model_fingerprint(pipeline.model),
        "parameters": pipeline.num_parameters,
        "sampling": {
            "guidance_scale": sampling.guidance_scale,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        },
        "drafts": subject.drafts,
        "image_size": [height, width],
        "scales": subject.schedule.num_scales,
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "batch_size": subject.batch_size,
        "workers": subject.workers,
        "versions": origin(),
    }


def write_results(result: SuiteResult, directory: Path) -> Path:
    """Write `examples.jsonl` and then `results.json`, each at once; return the latter."""
    lines = [
        json.dumps(
            {
                "task": task,
                "key": example.key,
                "values": dict(example.values),
                "prompt": example.prompt,
                "answer": example.answer,
                "expected": example.expected,
            },
            ensure_ascii=False,
        )
        for task, examples in result.judged.items()
        for example in examples
    ]
    write_atomically(directory / EXAMPLES, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
    path = directory / RESULTS
    write_atomically(path, (json.dumps(result.document, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def take(items: Sequence[Any], limit: int | None) -> list[Any]:
    """At most `limit` items, evenly spread over the list (all of them when None)."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def _judge_all(task: Task, subject: Subject, show: Callable[[str, int, int], None]) -> list[Judged]:
    examples = list(task.examples())
    if not examples:
        raise ValueError(f"task {task.name} has no examples")
    done: list[Judged] = []
    show(task.title, 0, len(examples))
    for start in range(0, len(examples), subject.batch_size):
        batch = examples[start : start + subject.batch_size]
        judged = task.judge(subject, batch)
        if len(judged) != len(batch):
            raise ValueError(f"task {task.name} judged {len(judged)} of {len(batch)} examples")
        done += judged
        show(task.title, len(done), len(examples))
    twice = [key for key, count in Counter(example.key for example in done).items() if count > 1]
    if twice:
        raise ValueError(f"task {task.name}: two examples are called {twice[0]!r}; comparisons need names")
    return done


def _check_names(tasks: Sequence[Task]) -> None:
    seen: set[str] = set()
    for task in tasks:
        for measure in task.measures:
            if measure.name in seen:
                raise ValueError(f"two measures are called {measure.name!r}; the second is of task {task.name}")
            seen.add(measure.name)


def _entry(measure: Measure, task: str, value: Estimate) -> dict[str, Any]:
    return {
        "title": measure.title,
        "unit": measure.unit,
        "higher_is_better": measure.higher_is_better,
        "task": task,
        **value.as_dict(),
    }


def _processor() -> str:
    """The CPU's name where the system tells it, else its kind."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
