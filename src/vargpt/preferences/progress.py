"""Progress of pair making on stderr: prompts, yield, rate, time left.

Invariant: it prints and nothing else; nothing of it reaches a file.
"""

from __future__ import annotations

import sys
import time
from datetime import timedelta

_EVERY = {True: 0.5, False: 10.0}
"""Seconds between lines on a terminal, and elsewhere."""


class Progress:
    """A line on stderr now and then: prompts, yield, rate, time left."""

    def __init__(self, total: int, samples: int, first: int, world: int = 1) -> None:
        self.total = -(-total // world)
        self.samples = samples
        self.before = min(self.total, first // world)
        self.done = self.pairs = 0
        self.live = sys.stderr.isatty()
        self.started = self.shown = time.monotonic()
        if 0 < first < total:  # ranks count in strides: a finished one stands beyond the end
            print(f"pairs: going on at prompt {first} of {total}", file=sys.stderr, flush=True)

    def count(self, paired: bool) -> None:
        """One more prompt is done."""
        self.done += 1
        self.pairs += paired
        if time.monotonic() - self.shown >= _EVERY[self.live]:
            self.show()

    def show(self) -> None:
        """Print the line."""
        self.shown = time.monotonic()
        elapsed = max(self.shown - self.started, 1e-9)
        reached = self.before + self.done
        left = timedelta(seconds=int((self.total - reached) * elapsed / max(self.done, 1)))
        text = (
            f"pairs {reached}/{self.total} prompts ({100 * reached // self.total}%), yield "
            f"{self.pairs / max(self.done, 1):.2f} | {self.done * self.samples / elapsed:.1f} pictures/s, ETA {left}"
        )
        print(f"\r{text}" if self.live else text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Print the last line."""
        if self.done:
            self.show()
            if self.live:
                print(file=sys.stderr)
