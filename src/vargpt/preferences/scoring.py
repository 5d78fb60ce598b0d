"""Scores of many prompts' pictures, here or in other processes.

Invariant: the scores are those of `score_pictures`, prompt by prompt, however many processes work on them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from PIL import Image

from vargpt.inference.pipeline import VargptPipeline
from vargpt.preferences.prompts import PairPrompt
from vargpt.preferences.scorers import Scorer, score_pictures

Work = tuple[PairPrompt, list[Image.Image]]
ScoreAll = Callable[[Sequence[Work]], list[list[float] | None]]


@contextlib.contextmanager
def scoring(scorer: Scorer | None, name: str, pipeline: VargptPipeline | None, workers: int) -> Iterator[ScoreAll]:
    """Yield a function that scores the pictures of many prompts; without a scorer it finds None for each.

    Args:
        name: the scorer's spec, for messages.
        pipeline: handed to the scorer where it works here; other processes have no model.
        workers: processes (forks, which must not touch an accelerator); 0 scores here.
    """
    if scorer is None:
        yield lambda work: [None] * len(work)
    elif not workers:
        yield lambda work: [score_pictures(scorer, name, prompt, images, pipeline) for prompt, images in work]
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            score = partial(_score, scorer, name)
            yield lambda work: list(pool.map(score, work))


def _score(scorer: Scorer, name: str, work: Work) -> list[float]:
    return score_pictures(scorer, name, *work, None)
