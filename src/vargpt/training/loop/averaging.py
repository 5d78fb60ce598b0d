"""Exponential moving average of the trained weights.

Invariant: the averages are float32 and follow from the weights after every step alone, so they resume exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """Averages of parameters; sharded like them.

    The decay of step s (counted from 0) is min(`decay`, (1 + s) / (10 + s)), so that the start is soon forgotten.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = list(parameters), decay
        self.tensors: list[Tensor] = [p.detach().clone().float() for p in self._parameters]
        """In the order of the parameters."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after a step in."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for average, parameter in zip(self.tensors, self._parameters, strict=True):
            average.lerp_(parameter.detach().float(), 1 - decay)

    @torch.no_grad()
    def keep(self) -> None:
        """Make the averages the weights."""
        for average, parameter in zip(self.tensors, self._parameters, strict=True):
            parameter.copy_(average)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averages inside the context, and its own weights again after it."""
        own = [p.detach().clone() for p in self._parameters]
        self.keep()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._parameters, own, strict=True):
                    parameter.copy_(value)
