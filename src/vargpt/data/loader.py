"""What training needs next, made ahead of it in other processes.

Invariant: what `get(position)` returns does not depend on how many processes there are or what was asked before, as
long as `make` is a function of the position; an error is raised at its own position, as itself.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")


@dataclass(frozen=True)
class _Failure:
    """An error on its way from a process to the caller."""

    error: Exception


class _Positions(Dataset[Any]):
    """`make` as what a `DataLoader` reads from."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make

    def __getitem__(self, position: int) -> Any:
        try:
            return self._make(position)
        except Exception as error:  # noqa: BLE001 (it is raised in the caller's process)
            return _Failure(error)


def _as_it_is(value: Any) -> Any:
    return value


def _leave_stopping_to_the_caller(worker: int) -> None:
    """A stop of the whole process group must not take the next positions away while the caller saves its work."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class Loader(Generic[T]):
    """Hands out `make(position)`, made ahead for consecutive positions.

    The processes are forks (PyTorch's `DataLoader`): they see everything as it was at the first `get`, share tensors
    with the caller, and must not touch an accelerator.

    Args:
        make: a function of the position; tensors that it returns should be few (each takes a file descriptor).
        workers: processes; 0 makes each position when it is asked for.
        depth: positions that each process is ahead of the caller.
        end: position before which to stop making ahead, or None.

    Raises:
        ValueError: for a negative number of workers, or a depth below 1.
    """

    def __init__(self, make: Callable[[int], T], workers: int = 0, depth: int = 2, end: int | None = None) -> None:
        if workers < 0 or depth < 1:
            raise ValueError(f"workers must be at least 0 and depth at least 1, got {workers} and {depth}")
        self._make, self._workers, self._depth = make, workers, depth
        self._end = sys.maxsize if end is None else end
        self._ahead: Iterator[Any] | None = None
        self._next = 0
        self._closed = False

    def get(self, position: int) -> T:
        """What `make(position)` returns; positions in a row are ready, any other one starts anew from there.

        Raises:
            RuntimeError: after `close`.
            Whatever `make` raises.
        """
        if self._closed:
            raise RuntimeError("the loader is closed")
        if not self._workers:
            return self._make(position)
        if self._ahead is None or position != self._next:
            self._ahead = self._start(position)
        self._next = position + 1
        value = next(self._ahead)
        if isinstance(value, _Failure):
            raise value.error
        return value

    def _start(self, position: int) -> Iterator[Any]:
        return iter(
            DataLoader(
                _Positions(self._make),
                batch_size=None,
                sampler=range(position, max(self._end, position + 1)),
                num_workers=self._workers,
                prefetch_factor=self._depth,
                collate_fn=_as_it_is,
                worker_init_fn=_leave_stopping_to_the_caller,
                multiprocessing_context="fork",
                generator=torch.Generator(),  # its seed for the processes must not come from the global stream
            )
        )

    def close(self) -> None:
        """End the processes; safe to call twice."""
        self._closed, self._ahead = True, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
