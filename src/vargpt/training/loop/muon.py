"""Muon for accelerators and for replicas: matrices of one shape are orthogonalised together.

Invariant: a step is that of `torch.optim.Muon` with `match_rms_adamw`, up to rounding. That one launches some thirty
kernels per matrix, which takes a small model on a GPU longer than its backward; grouped it is some thirty per shape.
Ranks that all hold the whole model have the same gradients and would all do the same: each orthogonalises its share of
the matrices, and they send each other the results. For a small model on CPUs this is a third of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vargpt.training import distributed


class GroupedMuon(torch.optim.Muon):
    """`torch.optim.Muon` (the same settings and state) that works on stacks of equal matrices."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step for all matrices that have a gradient."""
        if closure is not None:
            raise ValueError("GroupedMuon takes no closure: compute the gradients before the step")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            directions = [self._directions(parameters, group) for parameters in by_shape.values()]
            distributed.sum_tensors(directions)
            for parameters, stack in zip(by_shape.values(), directions, strict=True):
                lr = group["lr"]
                rate = lr * 0.2 * math.sqrt(max(parameters[0].shape))
                torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
                torch._foreach_add_(parameters, list(stack.to(parameters[0].dtype).unbind()), alpha=-rate)

    def _directions(self, parameters: list[Tensor], group: dict[str, Any]) -> Tensor:
        """Bring the momenta forward; return this rank's share of the directions, zeros in the place of the others."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(gradient)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        momentum = group["momentum"]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum) if group["nesterov"] else buffers
        own = distributed.share(len(parameters))
        stack = torch.zeros(len(parameters), *parameters[0].shape, dtype=torch.bfloat16, device=parameters[0].device)
        if own:
            mine = torch.stack(list(updates)[own.start : own.stop])
            stack[own.start : own.stop] = orthogonalised(
                mine, group["ns_coefficients"], group["ns_steps"], group["eps"]
            )
        return stack


def orthogonalised(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The Newton-Schulz iteration of Muon on a stack of matrices [n, rows, columns], in bfloat16."""
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
