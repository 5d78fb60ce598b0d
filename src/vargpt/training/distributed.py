"""Several processes train one model: the only file that touches `torch.distributed`.

Invariant: without torchrun every function here is trivial (one rank, nothing is sent), so the code above it is the same
for one process and for many.

Collectives pair up by order. Hence all ranks must call these functions, and run the same modules, in the same order: a
task gives every rank the same number of micro-batches of the same kinds (`max_int` finds the number, rows without a
target fill it up), and the backward of each must pass through the same modules. Sharded parameters exist whole only
inside the forward of the model that was sharded; `full_state` and `load_full_state` take them out and put them in.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers.modeling_layers import GradientCheckpointingLayer

from vargpt.model.blocks import CrossAttention
from vargpt.model.modeling import VargptForConditionalGeneration

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
        if local_rank >= torch.cuda.device_count():
            raise RuntimeError(
                f"process {local_rank} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; "
                f"start torchrun with --nproc_per_node {torch.cuda.device_count()} or less"
            )
        torch.cuda.set_device(device)
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    return device


_LET_GO_S = 0.25
"""How long a process that leaves gives gloo's threads to let go of the tensors of its last message."""


def shutdown() -> None:
    """Leave the other processes; nothing without them.

    A thread of gloo that lets go of a tensor needs the interpreter. Where that is already ending the process aborts
    (pytorch#190489), and DTensor keeps the group, so that destroying it does not end its threads.
    """
    if dist.is_initialized():
        time.sleep(_LET_GO_S)  # not holding the interpreter, which the threads wait for
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


def barrier() -> None:
    """Wait until every process is here."""
    gather_objects(None)


def sum_counts(counts: Mapping[str, float]) -> dict[str, float]:
    """Add numbers by name over all ranks, in the order of ranks (the same result everywhere); names may differ."""
    total: dict[str, float] = {}
    for part in gather_objects(dict(counts)):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def max_int(value: int) -> int:
    """The largest of all ranks' values."""
    return max(gather_objects(value))


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add the gradients of parameters that are not sharded over all ranks; those of sharded ones are added already.

    Where only some ranks have a gradient, the others count as zero.
    """
    if world_size() == 1:
        return
    whole = [p for p in parameters if not isinstance(p, DTensor)]
    if not whole:
        return
    present = [any(flags) for flags in zip(*gather_objects([p.grad is not None for p in whole]), strict=True)]
    whole = [p for p, used in zip(whole, present, strict=True) if used]
    if not whole:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in whole]
    flat = torch.cat([gradient.float().flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for parameter, part in zip(whole, flat.split([p.numel() for p in whole]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)


def sum_tensors(tensors: Sequence[Tensor]) -> None:
    """Add whole tensors over all ranks, in place; they have one type."""
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def clip_gradients(parameters: Iterable[nn.Parameter], maximum: float) -> Tensor:
    """Scale all gradients so that their common norm is `maximum` at most; return the norm before (a plain scalar)."""
    with_gradient = [p for p in parameters if p.grad is not None]
    norms = []
    for kind in (True, False):
        gradients = [p.grad for p in with_gradient if p.grad is not None and isinstance(p.grad, DTensor) == kind]
        if gradients:
            norm = get_total_norm(gradients)
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    if not norms:
        return torch.zeros(())
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    for kind in (True, False):
        clip_grads_with_norm_([p for p in with_gradient if isinstance(p, DTensor) == kind], maximum, norm)
    return norm


def transformer_blocks(module: nn.Module) -> list[GradientCheckpointingLayer]:
    """Blocks of vision tower, language model and decoder: what is sharded, recomputed and compiled as one."""
    return [child for child in module.modules() if isinstance(child, GradientCheckpointingLayer)]


def shard(model: VargptForConditionalGeneration, precision: str = "fp32", device: torch.device | None = None) -> None:
    """Spread the parameters over the ranks (FSDP2): every block is one unit, the rest of the model another.

    Gradients are summed over ranks, not averaged: losses are shares already. The image tokenizer stays whole on every
    rank, since its methods are called outside of any forward; its gradients are added by `sum_gradients`. Every rank
    brings the same whole weights. With `precision="bf16"` on a GPU, parameters are gathered in bfloat16 and gradients
    reduced in float32. Which parameters require a gradient may change later. With one rank nothing happens.
    `device`: where it will be, for a model on the meta device; by default where it is.
    """
    if world_size() > 1:
        # Nothing in the model writes to such a view.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        device = device or next(model.parameters()).device
        _shard_units(model, init_device_mesh(device.type, (world_size(),)), precision)


def _shard_units(model: VargptForConditionalGeneration, mesh: DeviceMesh, precision: str) -> None:
    half = mesh.device_type == "cuda" and precision == "bf16"
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None,
        reduce_dtype=torch.float32 if half else None,
        cast_forward_inputs=False,
    )
    for block in transformer_blocks(model):
        for child in block.modules():
            if isinstance(child, CrossAttention):  # its keys and values are made before its block runs
                fully_shard(child, mesh=mesh, mp_policy=policy)
                register_fsdp_forward_method(child, "keys_values")
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(
        model,
        mesh=mesh,
        mp_policy=policy,
        # Left to itself the root stays whole after a forward without a backward, and goes stale.
        reshard_after_forward=True,
        ignored_params=set(model.image_tokenizer.parameters()),
    )
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)


def shard_like(
    twin: VargptForConditionalGeneration, model: VargptForConditionalGeneration, precision: str = "fp32"
) -> None:
    """Shard a model that was just built on the meta device, with the same modules, and give it another one's values.

    FSDP2 cannot copy what it has sharded, and no rank need ever hold the whole copy.

    Raises:
        ValueError: if the two have different parameters.
    """
    sources = dict(model.named_parameters()) | dict(model.named_buffers())
    if sources.keys() != (dict(twin.named_parameters()) | dict(twin.named_buffers())).keys():
        raise ValueError("a twin is built like the model, adapters included, but its parameters differ")
    shard(twin, precision, next(model.parameters()).device)
    twin.to_empty(device=next(model.parameters()).device)
    with torch.no_grad():
        for name, target in (dict(twin.named_parameters()) | dict(twin.named_buffers())).items():
            target.copy_(sources[name])


def is_sharded(model: nn.Module) -> bool:
    """Whether the ranks hold pieces of the parameters."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be sharded, on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole value, the same on every rank, into a tensor that may be sharded."""
    value = value.to(tensor.device, tensor.dtype)
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(value)


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the whole state on the CPU: on rank 0, and an empty one on the others. All ranks must call it."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        value = whole(tensor)
        if is_main():
            state[name] = value.detach().to("cpu", copy=True)
    return state


def load_full_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a whole state, the same on every rank, into a model that may be sharded.

    Raises:
        ValueError: if names or shapes differ.
    """
    own = model.state_dict()
    if own.keys() != state.keys():
        different = sorted(own.keys() ^ state.keys())
        raise ValueError(f"the state does not fit the model: {len(different)} names differ, such as {different[0]}")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(
                    f"{name} is {tuple(state[name].shape)} in the state, {tuple(tensor.shape)} in the model"
                )
            fill(tensor, state[name])


def write_state(directory: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors, sharded ones by all ranks together, into an empty folder as a distributed checkpoint.

    Raises:
        OSError: if it cannot be written (on all ranks alike).
    """
    with _dcp_calls():
        dcp.save(dict(state), storage_writer=dcp.FileSystemWriter(directory), no_dist=world_size() == 1)


def read_state(directory: Path, state: Mapping[str, Tensor]) -> None:
    """Fill tensors, however they are sharded, from a distributed checkpoint of any number of ranks."""
    with _dcp_calls():
        dcp.load(dict(state), storage_reader=dcp.FileSystemReader(directory), no_dist=world_size() == 1)


@contextlib.contextmanager
def _dcp_calls() -> Iterator[None]:
    """Raise what users can do something about, if a rank failed of that; without a log record for every tensor."""
    logger = logging.getLogger("c10d-NullHandler-dcp_logger")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*assuming the intent is to (save|load) in a single process")
            yield
    except CheckpointException as error:
        raise next(filter(None, (_system_error(cause) for cause, _ in error.failures.values())), error) from error
    finally:
        logger.setLevel(level)


def state_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a distributed checkpoint."""
    metadata = dcp.FileSystemReader(directory).read_metadata().state_dict_metadata
    return {name: tuple(entry.size) for name, entry in metadata.items() if isinstance(entry, TensorStorageMetadata)}


def _system_error(error: BaseException | None) -> OSError | None:
    """The system's error behind a failure; torch's writer of tensors swallows what the file said."""
    if error is None or isinstance(error, OSError):
        return error
    if isinstance(error, RuntimeError) and ("inline_container" in str(error) or "StreamWriter" in str(error)):
        return _system_error(error.__context__) or OSError(errno.EIO, "the file took no more bytes; is the disk full?")
    return None
