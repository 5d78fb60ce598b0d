"""The wish to stop: by the clock or by a signal.

Invariant: a first signal never ends the process by itself; the loop sees it after the step and saves before it ends.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TimeLimitReached(Exception):
    """The run was asked to stop (time limit, SIGTERM or Ctrl-C) and has saved a checkpoint."""


class StopRequest:
    """A wish to stop, by the clock or by a signal: the loop saves a checkpoint before it ends.

    Args:
        time_limit: seconds from now; None for no limit.
    """

    def __init__(self, time_limit: float | None = None) -> None:
        self._deadline = None if time_limit is None else time.monotonic() + time_limit
        self.signal: str | None = None
        """Name of the signal that came, or None."""

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listen to SIGTERM and SIGINT; a second Ctrl-C ends at once. Only the main thread can listen."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.signal is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal = signal.Signals(number).name
            print(f"{self.signal}: saving a checkpoint after this step", file=sys.stderr, flush=True)

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def reason(self) -> str | None:
        """Why to stop, or None."""
        if self.signal is not None:
            return self.signal
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "the time limit"
        return None
