"""Optimisers: the learning rate of a step, which parameters decay, AdamW and Muon.

Invariant: the learning rate is a function of the step alone; nothing that is frozen gets a place in an optimiser.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vargpt.training import distributed
from vargpt.training.loop.muon import GroupedMuon
from vargpt.training.loop.settings import LoopSettings

_MUON_PARTS = (".layers.", ".blocks.", "projector.", ".merger.", ".patch_embed.")
"""Names of the matrices that Muon may take: those in blocks, projectors, the vision merger and a convolutional stem."""

_ADAMW_RATE_BESIDE_MUON = 0.4


def learning_rate_at(step: int, settings: LoopSettings) -> float:
    """Linear warm-up over a fraction `warmup` of the steps, then cosine down to `final_learning_rate` of the peak."""
    warmup_steps = max(1, round(settings.warmup * settings.steps))
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, settings.steps - warmup_steps)
    floor = settings.final_learning_rate
    return settings.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters: weights of products decay, everything else does not.

    A weight of a product has two or more axes, is called `weight`, and no part of its name says `embed`. Hence matrices
    and kernels decay; biases, gains, modulation offsets, unconditional rows and the embeddings of tokens, patches,
    words and levels do not.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            product = parameter.ndim >= 2 and name.rpartition(".")[2] == "weight" and "embed" not in name
            (decayed if product else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def muon_takes(name: str, parameter: Tensor) -> bool:
    """Whether Muon, where it is chosen, has this parameter: a matrix inside a block or a projector."""
    return parameter.ndim == 2 and name.endswith(".weight") and any(part in name for part in _MUON_PARTS)


def build_optimizers(module: nn.Module, settings: LoopSettings) -> list[tuple[torch.optim.Optimizer, float]]:
    """Return optimizers with their share of the learning rate: AdamW, or Muon for matrices and AdamW for the rest.

    Muon (momentum, orthogonalised by Newton-Schulz) takes the matrices inside blocks and projectors, with steps of
    AdamW's size (`match_rms_adamw`); vectors, embeddings, heads and modulations keep AdamW at a lower rate.
    """
    groups = parameter_groups(module, settings.weight_decay)
    matrices: list[nn.Parameter] = []
    if settings.optimizer == "muon":
        matrices = [p for name, p in module.named_parameters() if p.requires_grad and muon_takes(name, p)]
    chosen = {id(p) for p in matrices}
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in chosen]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = []
    if matrices:
        # Sharded matrices stay with PyTorch's own, which knows them.
        several = matrices[0].device.type != "cpu" or distributed.world_size() > 1
        grouped = several and not distributed.is_sharded(module)
        muon = (GroupedMuon if grouped else torch.optim.Muon)(
            matrices, lr=settings.learning_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append((muon, 1.0))
    groups = [group for group in groups if group["params"]]
    if groups:
        adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
        optimizers.append((adamw, _ADAMW_RATE_BESIDE_MUON if matrices else 1.0))
    return optimizers
