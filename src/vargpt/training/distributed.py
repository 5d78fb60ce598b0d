"""Several processes train one model: the only file that touches `torch.distributed`.

Invariant: without torchrun every function here is trivial (one rank, nothing is sent), so the code above it is the same
for one process and for many.

Collectives pair up by order. Hence all ranks must call these functions, and run the same modules, in the same order: a
task gives every rank the same number of micro-batches of the same kinds (`max_int` finds the number, rows without a
target fill it up).
"""

from __future__ import annotations

import os
from typing import TypeVar

import torch
import torch.distributed as dist

ValueT = TypeVar("ValueT")


def setup() -> torch.device:
    """Join the other processes if torchrun started this one; return the device to train on.

    NCCL on GPUs (one per process, by LOCAL_RANK), gloo on CPUs; control messages go over gloo on both. Called again, it
    only returns the device.
    """
    cuda = torch.cuda.is_available()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    return device


def shutdown() -> None:
    """Leave the other processes; nothing without them."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 for the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True on the one process that writes journals and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def share(count: int) -> range:
    """Which of `count` items are this rank's: consecutive ones, shares differ by one at most."""
    return range(count * rank() // world_size(), count * (rank() + 1) // world_size())


def gather_objects(value: ValueT) -> list[ValueT]:
    """Return every rank's value, in the order of ranks, on all ranks."""
    if world_size() == 1:
        return [value]
    values: list[ValueT | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def broadcast_object(value: ValueT) -> ValueT:
    """Return rank 0's value on all ranks."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def sum_counts(counts: dict[str, float]) -> dict[str, float]:
    """Add numbers by name over all ranks, in the order of ranks (the same result everywhere); names may differ."""
    total: dict[str, float] = {}
    for part in gather_objects(counts):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def max_int(value: int) -> int:
    """The largest of all ranks' values."""
    return max(gather_objects(value))
