"""Samples made ahead of time, in threads, handed out in order.

Invariant: `get(position)` returns what `make(position)` would have returned, whatever was asked before, however many
workers there are; what `make` raises is raised by the `get` of that position.

Threads, not processes: nothing has to be pickled, caches are shared, and decoding and resizing images, reading files
and the operations of torch run without the interpreter's lock.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Loader(Generic[T]):
    """Makes the next positions while the caller works on this one.

    Positions are expected to count up by one; any other is made as well, and what was made ahead for nothing is
    dropped. Close it, or use it in a `with` block: that waits for what is being made at the moment, and no more.
    """

    def __init__(
        self, make: Callable[[int], T], workers: int = 0, depth: int | None = None, end: int | None = None
    ) -> None:
        """Set up; nothing is made before the first `get`.

        Args:
            make: must be safe to call from several threads.
            workers: threads; 0 makes each position when it is asked for.
            depth: positions to be ahead of the caller; twice the workers by default.
            end: position before which to stop making ahead, or None.

        Raises:
            ValueError: for a negative number of workers, or a depth below 1.
        """
        depth = 2 * workers if depth is None else depth
        if workers < 0 or (workers and depth < 1):
            raise ValueError(f"workers must be at least 0 and depth at least 1, got {workers} and {depth}")
        self._make, self._workers, self._depth, self._end = make, workers, depth, end
        self._futures: dict[int, Future[T]] = {}
        self._tasks: queue.SimpleQueue[tuple[int, Future[T]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def get(self, position: int) -> T:
        """What `make(position)` returns.

        Raises:
            RuntimeError: after `close`.
            Whatever `make` raises.
        """
        if self._closed:
            raise RuntimeError("the loader is closed")
        if not self._workers:
            return self._make(position)
        last = position + self._depth if self._end is None else min(position + self._depth, self._end - 1)
        for old in [known for known in self._futures if not position <= known <= last]:
            self._futures.pop(old).cancel()
        for ahead in (position, *range(position + 1, last + 1)):
            if ahead not in self._futures:
                future: Future[T] = Future()
                self._futures[ahead] = future
                self._tasks.put((ahead, future))
        while len(self._threads) < self._workers:
            thread = threading.Thread(target=self._work, name=f"loader-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return self._futures.pop(position).result()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            position, future = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._make(position))
            except BaseException as error:  # noqa: BLE001 (it is raised in the caller's thread)
                future.set_exception(error)

    def close(self) -> None:
        """Stop making; safe to call twice."""
        self._closed = True
        for future in self._futures.values():
            future.cancel()
        self._futures.clear()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
