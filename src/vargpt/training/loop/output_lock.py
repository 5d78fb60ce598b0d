"""One training process (or one group of ranks) at a time in a stage's folder.

Invariant: the lock goes with the process that holds it, however it ends; its children do not inherit it.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vargpt.training import distributed


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold `directory/.lock` (rank 0 does) inside the context.

    Raises:
        RuntimeError: on all ranks, if another process holds it.
    """
    problem, file = None, None
    if distributed.is_main():
        directory.mkdir(parents=True, exist_ok=True)
        file = open(directory / ".lock", "a")  # noqa: SIM115 (held beyond this block)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = f"another process is training in {directory}: wait for it, stop it, or use another output folder"
        except OSError as error:
            problem = f"{directory / '.lock'} cannot be locked ({error.strerror}): use an output folder elsewhere"
    try:
        problem = distributed.broadcast_object(problem)
        if problem is not None:
            raise RuntimeError(problem)
        yield
    finally:
        if file is not None:
            file.close()
