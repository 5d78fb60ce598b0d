"""What a checkpoint holds, as tensors by name: trained parameters, optimisers' states, averaged weights.

Invariant: `load` after `collect` gives back the same values bitwise, on any number of ranks; a finished stage holds its
parameters alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from vargpt.training.loop.checkpoints import Checkpoint

Named = dict[str, nn.Parameter]


class TrainingState:
    """The tensors of a stage that change: gives them names, and fills them from a checkpoint."""

    def __init__(
        self, parameters: Named, optimizers: list[torch.optim.Optimizer], averages: list[Tensor] | None
    ) -> None:
        self._parameters = parameters
        self._optimizers = optimizers
        self._averages = averages

    def facts(self, finished: bool) -> dict[str, object]:
        """What tells whether a checkpoint fits: the optimisers, and whether it is a stage's end."""
        names = [] if finished else [_kind(optimizer) for optimizer in self._optimizers]
        return {"finished": finished, "optimizers": names, "ema": self._averages is not None and not finished}

    def collect(self, finished: bool) -> dict[str, Tensor]:
        """Return the tensors to save; sharded ones stay sharded, none is copied."""
        state: dict[str, Tensor] = {f"parameters.{name}": p.detach() for name, p in self._parameters.items()}
        if finished:
            return state
        for index, optimizer in enumerate(self._optimizers):
            state |= self._optimizer_tensors(index, optimizer)
        return state | self._average_tensors()

    def _average_tensors(self) -> dict[str, Tensor]:
        names = [f"ema.{name}" for name in self._parameters]
        return dict(zip(names, self._averages, strict=True)) if self._averages is not None else {}

    def _members(self, optimizer: torch.optim.Optimizer) -> Named:
        """The parameters of an optimiser by name."""
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return {name: p for name, p in self._parameters.items() if id(p) in own}

    def _optimizer_tensors(self, index: int, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Moments by parameter; scalars (AdamW's step counts) of all parameters together as one vector."""
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, Tensor] = {}
        members = self._members(optimizer)
        for position, (name, parameter) in enumerate(members.items()):
            for key, value in optimizer.state.get(parameter, {}).items():
                if value.ndim == 0:
                    vector = scalars.setdefault(key, torch.zeros(len(members), dtype=torch.float64))
                    vector[position] = float(value)
                else:
                    tensors[f"optimizer.{index}.{key}.{name}"] = value
        return tensors | {f"optimizer.{index}.{key}": vector for key, vector in scalars.items()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Fill parameters, optimisers and averages from a checkpoint.

        Raises:
            RuntimeError: if it holds other parameters, other shapes or other optimisers' states.
        """
        path, finished = checkpoint.path, bool(checkpoint.facts["finished"])
        if checkpoint.facts != self.facts(finished):
            raise RuntimeError(
                f"{path} holds a checkpoint of {checkpoint.facts}, the recipe says {self.facts(finished)}; "
                f"use another output folder"
            )
        shapes = checkpoint.shapes()
        self._require_same_parameters(path, shapes)
        target = self.collect(finished=True)
        moments: list[dict[str, Tensor]] = []
        if not finished:
            moments = [self._allocate(index, optimizer, shapes) for index, optimizer in enumerate(self._optimizers)]
            for tensors in moments:
                target |= tensors
            target |= self._average_tensors()
        checkpoint.read(target)
        for index, tensors in enumerate(moments):
            self._fill(index, self._optimizers[index], tensors)

    def _require_same_parameters(self, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        prefix = "parameters."
        saved = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        if saved.keys() != self._parameters.keys():
            raise RuntimeError(f"{path} holds a checkpoint of other trainable parameters; use another output folder")
        for name, parameter in self._parameters.items():
            if tuple(parameter.shape) != saved[name]:
                raise RuntimeError(
                    f"{path}: {name} is {saved[name]} in the checkpoint but {tuple(parameter.shape)} in the recipe; "
                    f"use another output folder"
                )

    def _allocate(
        self, index: int, optimizer: torch.optim.Optimizer, shapes: dict[str, tuple[int, ...]]
    ) -> dict[str, Tensor]:
        """Room for an optimiser's tensors as far as the checkpoint has them; a new optimiser has none yet."""
        members = self._members(optimizer)
        tensors: dict[str, Tensor] = {}
        prefix = f"optimizer.{index}."
        for saved, shape in shapes.items():
            if saved.startswith(prefix):
                name = saved.removeprefix(prefix).partition(".")[2]
                if name:
                    tensors[saved] = torch.zeros_like(members[name].detach())
                else:
                    tensors[saved] = torch.zeros(shape, dtype=torch.float64)
        return tensors

    def _fill(self, index: int, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
        """Give the loaded tensors to the optimiser: moments, and the scalars of those parameters that have moments."""
        moments: dict[str, dict[str, Tensor]] = {}
        scalars: dict[str, Tensor] = {}
        for saved, value in tensors.items():
            key, _, name = saved.removeprefix(f"optimizer.{index}.").partition(".")
            if name:
                moments.setdefault(name, {})[key] = value
            else:
                scalars[key] = value
        optimizer.state.clear()
        for position, (name, parameter) in enumerate(self._members(optimizer).items()):
            if name in moments:  # the fused AdamW wants its step count on the parameter's device
                counts = {key: vector[position].to(parameter.device, torch.float32) for key, vector in scalars.items()}
                optimizer.state[parameter] = {**counts, **moments[name]}


def _kind(optimizer: torch.optim.Optimizer) -> str:
    """What a checkpoint is for: both kinds of Muon have the same state."""
    return "Muon" if isinstance(optimizer, torch.optim.Muon) else type(optimizer).__name__
