"""Scorers: plug-ins that say how good pictures are for a prompt; higher is better.

Invariant: whatever a scorer returns, what leaves `score_pictures` is one finite float per picture; anything else has
been refused with one line that names the scorer.

    scenes                          the checker of the small world (`vargpt.preferences.scenes`)
    targets?folder=DIR              likeness to a target picture (`vargpt.preferences.targets`)
    self?yes=is this {caption}?     the model's own understanding (`vargpt.preferences.self_judge`)
    http://host:8000/score          a service (`vargpt.preferences.http`)
    package.module:name?key=value   a function, or a class that is made with the arguments and then called
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

from PIL import Image

from vargpt.inference.pipeline import VargptPipeline
from vargpt.preferences.prompts import PairPrompt
from vargpt.processing.conversation import Conversation

SHORT_NAMES = {
    "scenes": "vargpt.preferences.scenes:score_scene",
    "targets": "vargpt.preferences.targets:TargetScorer",
    "self": "vargpt.preferences.self_judge:SelfJudge",
}


@dataclass(frozen=True)
class Context:
    """What a scorer may know beside the prompt.

    Attributes:
        key: names the prompt.
        caption: what the pictures should show, in words; empty where only the request is known.
        target: the data's own picture, where there is one.
        pipeline: the model that drew the pictures; None where they come from elsewhere.
    """

    key: str = ""
    caption: str = ""
    target: Image.Image | None = None
    pipeline: VargptPipeline | None = None


class Scorer(Protocol):
    """Scores all pictures of one prompt."""

    def __call__(self, prompt: Conversation, images: list[Image.Image], context: Context) -> Sequence[float]:
        """One number per picture, higher for better.

        Raises:
            ValueError, RuntimeError: in one line, where it cannot score.
        """


def load_scorer(spec: str) -> Scorer:
    """Make the scorer that a spec names (see the top of this file).

    Values of arguments are read as JSON where they are (0.5, true), else as text; a key that is repeated gives a list.

    Raises:
        ValueError: for a module or name that is not there, arguments that do not fit, a spec that is none.
    """
    if spec.startswith(("http://", "https://")):
        from vargpt.preferences.http import scorer_from_url

        return scorer_from_url(spec)
    path, _, query = spec.partition("?")
    path = SHORT_NAMES.get(path, path)
    module_name, colon, name = path.partition(":")
    if not colon or not module_name or not name:
        short = ", ".join(SHORT_NAMES)
        raise ValueError(f"scorer {spec!r}: expected {short}, a URL, or package.module:name")
    try:
        with _here_first():
            target = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise ValueError(f"scorer {spec!r}: cannot import {module_name} ({error})") from error
    except AttributeError as error:
        raise ValueError(f"scorer {spec!r}: the module {module_name} has no {name}") from error
    arguments = parse_arguments(spec, query)
    if isinstance(target, type):
        _check_arguments(spec, target, arguments)
        made: Scorer = target(**arguments)
        return made
    if not callable(target):
        raise ValueError(f"scorer {spec!r}: {name} is {type(target).__name__}, expected a function or a class")
    _check_arguments(spec, target, arguments, positional=3)
    function: Callable[..., Sequence[float]] = target
    return partial(function, **arguments)  # which can be sent to other processes


def score_pictures(
    scorer: Scorer, name: str, prompt: PairPrompt, images: list[Image.Image], pipeline: VargptPipeline | None = None
) -> list[float]:
    """Score the pictures of one prompt and check what comes back.

    Raises:
        ValueError: naming the scorer and the prompt, unless there is one finite number per picture.
    """
    context = Context(prompt.key, prompt.caption, prompt.picture(), pipeline)
    return checked_scores(scorer(prompt.prompt, images, context), len(images), f"scorer {name!r}, {prompt.key}")


def checked_scores(scores: Any, count: int, where: str) -> list[float]:
    """One finite float per picture.

    Raises:
        ValueError: for anything else.
    """
    try:
        numbers = [float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: expected a list of {count} numbers, got {_short(scores)}") from error
    if len(numbers) != count:
        raise ValueError(f"{where}: expected {count} scores, one per picture, got {len(numbers)}")
    for index, number in enumerate(numbers):
        if not math.isfinite(number):
            raise ValueError(f"{where}: the score of picture {index} is {number}, expected a finite number")
    return numbers


def parse_arguments(spec: str, query: str) -> dict[str, Any]:
    """The arguments after the question mark of a spec.

    Raises:
        ValueError: for a part without a name or a value.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise ValueError(f"scorer {spec!r}: arguments read key=value&key=value, got {query!r}") from error
    values: dict[str, list[Any]] = {}
    for key, text in pairs:
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        values.setdefault(key, []).append(value)
    return {key: found[0] if len(found) == 1 else found for key, found in values.items()}


def _check_arguments(spec: str, target: Callable[..., Any], arguments: dict[str, Any], positional: int = 0) -> None:
    signature = inspect.signature(target)
    try:
        signature.bind(*[None] * positional, **arguments)
    except TypeError as error:
        names = list(signature.parameters)[positional:]
        takes = f"it takes {', '.join(names)}" if names else "it takes none"
        raise ValueError(f"scorer {spec!r}: the arguments do not fit ({error}); {takes}") from error


@contextlib.contextmanager
def _here_first() -> Iterator[None]:
    """Let modules of the current folder be found, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
