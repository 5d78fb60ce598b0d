"""Progress of an evaluation on stderr: task, examples, rate, time left.

Invariant: it prints and nothing else; nothing of it reaches a file.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta

_EVERY = {True: 0.5, False: 10.0}
"""Seconds between lines on a terminal, and elsewhere."""


class Progress:
    """A line on stderr now and then, and one when a task is finished.

    Args:
        place: goes before the task's title ("scenes 2/5").
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.live = sys.stderr.isatty()
        self.started = self.shown = time.monotonic()

    def __call__(self, title: str, done: int, total: int) -> None:
        """Say how many examples of a task are done."""
        now = time.monotonic()
        if done == 0:
            self.started = self.shown = now
        elapsed = max(now - self.started, 1e-9)
        finished = done == total
        if not finished and now - self.shown < _EVERY[self.live]:
            return
        self.shown = now
        text = f"{self.place} {title}: {done}/{total} ({100 * done // total}%)"
        if done:
            left = timedelta(seconds=int((total - done) * elapsed / done))
            spent = timedelta(seconds=int(elapsed))
            text += f" | {done / elapsed:.2f} examples/s, " + (f"took {spent}" if finished else f"ETA {left}")
        end = "\n" if finished or not self.live else ""
        print(f"\r{text:<100}" if self.live else text, end=end, file=sys.stderr, flush=True)
