"""Two processes that send each other their last message and end at once: `leaving_ranks.py TIMES`; prints who aborted.

The interpreter is kept busy, both share a core, and the message is many small tensors: all that makes it likely that a
thread of gloo still holds some when the interpreter ends.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from vargpt.training import distributed


def leave(rank: int, store: Path) -> None:
    """Join, say one thing, leave."""
    sys.setswitchinterval(100)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    globals()["keep"] = dist.group.WORLD  # as DTensor does
    dist.all_reduce_coalesced([torch.ones(2) for _ in range(20_000)])
    distributed.shutdown()


def main(times: int) -> None:
    """Fork two processes so many times; they end the way interpreters do, through the end of this file."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    aborted = 0
    for _ in range(times):
        store = Path(tempfile.mkdtemp()) / "store"
        children = []
        for rank in range(2):
            child = os.fork()
            if child == 0:
                leave(rank, store)
                return
            children.append(child)
        aborted += sum(os.waitpid(child, 0)[1] != 0 for child in children)
    print(f"{aborted} of {2 * times} aborted")


if __name__ == "__main__":
    main(int(sys.argv[1]))
