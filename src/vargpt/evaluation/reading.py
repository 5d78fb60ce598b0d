"""Pictures read back into scenes, in this process or in several.

Invariant: readings come in the order of the pictures and do not depend on the number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vargpt.data.scenes.checker import Reading, read
from vargpt.data.scenes.words import NUMBERS, Said, join, noun, on_background, phrase

_CHUNK = 8


class SceneReader:
    """Reads pictures with the checker of the small world.

    Args:
        workers: processes; 1 reads in this one. They are started on first use (seconds) and live until `close`.

    Raises:
        ValueError: for fewer than one.
    """

    def __init__(self, workers: int = 1) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, images_nHW3: Tensor) -> list[Reading]:
        """Read pictures, uint8 [n, H, W, 3] on the CPU."""
        pictures: Sequence[NDArray[np.uint8]] = list(images_nHW3.numpy())
        if self.workers == 1 or len(pictures) <= _CHUNK:
            return [read(picture) for picture in pictures]
        if self._pool is None:
            self._pool = _start(self.workers)
        return list(self._pool.map(read, pictures, chunksize=_CHUNK))

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def in_words(reading: Reading) -> str:
    """A reading as a caption: `a small red star and 1 unclear thing on a white background`."""
    counts = Counter(replace(thing, x=0.5, y=0.5) for thing in reading.scene.things)
    seen = [phrase(thing, Said(size=True), count) if count < len(NUMBERS) else f"{count} {noun(thing, Said(), count)}"
            for thing, count in counts.items()]  # fmt: skip
    if reading.unclear:
        seen.append(f"{reading.unclear} unclear thing{'s' if reading.unclear > 1 else ''}")
    ground = on_background(reading.scene.background) if reading.background_known else "on no known background"
    return f"{join(seen) if seen else 'nothing'} {ground}"


def _start(workers: int) -> ProcessPoolExecutor:
    """Fresh processes (a fork would inherit the GPU's context) with one thread each."""
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
        for _ in range(workers):  # one start per waiting call, so that all see the environment as it is now
            pool.submit(os.getpid)
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads
    return pool
