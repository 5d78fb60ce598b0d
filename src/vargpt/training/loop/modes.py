"""How modules run while a stage trains: in training or evaluation mode, with blocks that recompute or are compiled.

Invariant: a block that recomputes its activations gives bitwise the gradients of one that keeps them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from vargpt.training import distributed
from vargpt.training.loop.settings import LoopSettings


def set_training_mode(module: nn.Module) -> None:
    """Training mode for all that is trained; evaluation mode (no stochastic depth) for modules that are frozen.

    A frozen block whose activations are to be recomputed keeps the flag on itself, not on what is inside: only in
    training mode does it recompute, and a gradient may pass through it.
    """
    module.train()
    for child in module.modules():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            child.eval()
    for block in distributed.transformer_blocks(module):
        block.training = block.training or block.gradient_checkpointing


@contextlib.contextmanager
def block_options(module: nn.Module, stage: str, settings: LoopSettings) -> Iterator[None]:
    """Let transformer blocks recompute their activations and run compiled, as the settings say, inside the context.

    Raises:
        ValueError: if that is asked for a module that has no such blocks.
    """
    blocks: list[GradientCheckpointingLayer] = []
    if settings.activation_checkpointing or settings.compile:
        blocks = distributed.transformer_blocks(module)
        if not blocks:
            raise ValueError(
                f"stage {stage}: activation_checkpointing and compile act on transformer blocks, and "
                f"{type(module).__name__} has none; leave them out"
            )
    for block in blocks:
        if settings.activation_checkpointing:
            block.gradient_checkpointing = True
            block._gradient_checkpointing_func = recompute
        if settings.compile:
            block.compile()
    try:
        yield
    finally:
        for block in blocks:
            block.gradient_checkpointing = False
            block._compiled_call_impl = None


def recompute(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a block's forward without keeping its activations; the backward runs it again.

    Again means with the same random numbers, the same autocast (both by PyTorch) and the same attention kernels: a task
    may have chosen them for the forward alone.
    """
    switches = {
        SDPBackend.MATH: cuda.math_sdp_enabled(),
        SDPBackend.FLASH_ATTENTION: cuda.flash_sdp_enabled(),
        SDPBackend.EFFICIENT_ATTENTION: cuda.mem_efficient_sdp_enabled(),
        SDPBackend.CUDNN_ATTENTION: cuda.cudnn_sdp_enabled(),
    }
    if all(switches.values()):
        return checkpoint(function, *arguments, use_reentrant=False)
    chosen = [backend for backend, enabled in switches.items() if enabled]

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), sdpa_kernel(chosen)

    return checkpoint(function, *arguments, use_reentrant=False, context_fn=contexts)
