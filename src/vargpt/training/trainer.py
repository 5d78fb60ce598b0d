"""The training loop: it knows no loss, no data and no model, only steps.

Invariant: step s sees batch(s) and generator states that are functions of (seed, stage, s, rank, micro-batch) alone, so
a run that was killed and resumed ends with bitwise the same weights as an unbroken one on the same CPU.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vargpt.training import distributed
from vargpt.training.checkpoints import load_latest, save_checkpoint
from vargpt.training.journal import Journal, plot_curves
from vargpt.training.optim import build_optimizers, learning_rate_at
from vargpt.training.settings import LoopSettings
from vargpt.training.steps import stream_seed
from vargpt.training.stopping import StopRequest, TimeLimitReached

__all__ = ["LoopSettings", "StopRequest", "Task", "TimeLimitReached", "Trainer", "set_training_mode"]

MicroT = TypeVar("MicroT")


class Task(Protocol[MicroT]):
    """What a stage trains: the module, its batches and its loss.

    A step's batch is cut into micro-batches, each of which fits in memory with its gradients' graph.
    """

    @property
    def module(self) -> nn.Module:
        """What is trained: the parameters that require a gradient."""
        ...

    def batch(self, step: int) -> list[MicroT]:
        """Return this rank's micro-batches of a step; a pure function of (step, rank, world size).

        All ranks return the same number, and run the same modules for each (see `vargpt.training.distributed`).
        """
        ...

    def counts(self, batch: list[MicroT]) -> dict[str, float]:
        """Return the denominators of this rank's batch (valid targets, images, ...); the loop adds them over ranks."""
        ...

    def loss(self, micro: MicroT, counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a micro-batch's share of the step's loss and of its scalar metrics.

        Numerators divided by the step's `counts` (of all ranks), so that shares add up over micro-batches and ranks.
        """
        ...

    def evaluate(self) -> dict[str, float]:
        """Return validation metrics, the same on all ranks; every rank calls it."""
        ...


def set_training_mode(module: nn.Module) -> None:
    """Training mode for all that is trained; evaluation mode (no stochastic depth) for modules that are frozen."""
    module.train()
    for child in module.modules():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            child.eval()


class Trainer(Generic[MicroT]):
    """Runs one stage of `settings.steps` optimiser steps in `directory`, going on where a killed run stopped."""

    def __init__(self, name: str, task: Task[MicroT], settings: LoopSettings, directory: Path) -> None:
        self._name, self._task, self._settings, self._directory = name, task, settings, directory
        self._parameters = [p for p in task.module.parameters() if p.requires_grad]
        if not self._parameters:
            raise ValueError(f"stage {name} trains nothing: no parameter of {type(task.module).__name__} is trainable")
        self._device = self._parameters[0].device
        self._optimizers = build_optimizers(task.module, settings)

    def run(self, stop: StopRequest | None = None) -> None:
        """Train to the end of the stage, or at least one step where `stop` asks for an end.

        Raises:
            TimeLimitReached: after a checkpoint was saved because of `stop`; not at the end of the stage.
            RuntimeError: if the loss or a gradient is not finite, or a checkpoint cannot be written.
        """
        stop = stop or StopRequest()
        step = self.restore()
        end = self._settings.last_step
        journal = Journal(self._directory, self._name, end, step)
        last_save = time.monotonic()
        while step < end:
            metrics = self._step(step)
            step += 1
            done = step == end
            if step % self._settings.log_every == 0 or done:
                journal.record(step, self._values(step, metrics), self._settings.batch_size)
            if step % self._settings.evaluate_every == 0 or done:
                self._evaluate(journal, step)
            reason = stop.reason
            if done or reason or time.monotonic() - last_save >= self._settings.checkpoint_every:
                self._save(step)
                last_save = time.monotonic()
            if reason and not done:
                raise TimeLimitReached(f"{self._name}: stopped by {reason} after step {step}; run again to go on")

    def _step(self, step: int) -> dict[str, Tensor]:
        """One optimiser step; return this rank's share of loss and metrics, and the norm of all gradients."""
        settings = self._settings
        batch = self._task.batch(step)
        counts = distributed.sum_counts(self._task.counts(batch))
        total: dict[str, Tensor] = {}
        for index, micro in enumerate(batch):
            # Stochastic depth is the only user of the global stream.
            torch.manual_seed(stream_seed(settings.seed, self._name, step, f"forward {distributed.rank()} {index}"))
            with torch.autocast(self._device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                loss, metrics = self._task.loss(micro, counts)
            if loss.requires_grad:  # text alone does not pass through a trained decoder
                loss.backward()
            for name, value in {"loss": loss, **metrics}.items():
                total[name] = total[name] + value.detach() if name in total else value.detach()
        for optimizer, factor in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * learning_rate_at(step, settings)
        norm = nn.utils.clip_grad_norm_(self._parameters, settings.grad_clip)
        self._require_finite(step + 1, total["loss"], norm)
        for optimizer, _ in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {**total, "grad_norm": norm}

    def _require_finite(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Stop before the weights are touched: a checkpoint never holds what a broken step made."""
        if not math.isfinite(float(loss + norm)):
            raise RuntimeError(
                f"{self._name}: the loss is {float(loss):g} and the gradient norm {float(norm):g} at step {step}; "
                f"weights and checkpoints are untouched. Lower learning_rate (now {self._settings.learning_rate:g}) "
                f"or look at the data of this step"
            )

    def _values(self, step: int, metrics: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(value) for name, value in metrics.items()}
        return {**values, "learning_rate": learning_rate_at(step - 1, self._settings)}

    def _evaluate(self, journal: Journal, step: int) -> None:
        self._task.module.eval()
        with torch.no_grad():
            values = self._task.evaluate()
        set_training_mode(self._task.module)
        if values:
            journal.record(step, {f"validation/{name}": value for name, value in values.items()}, 1)
        plot_curves(self._directory)

    def _save(self, step: int) -> None:
        trainable = {name: p.detach() for name, p in self._task.module.named_parameters() if p.requires_grad}
        states = [optimizer.state_dict() for optimizer, _ in self._optimizers]
        save_checkpoint(self._directory, step, {"parameters": trainable, "optimizer": states})

    def restore(self) -> int:
        """Load the newest checkpoint of the stage, if any, into the module; return the step it stands at."""
        set_training_mode(self._task.module)
        saved = load_latest(self._directory)
        if saved is None:
            return 0
        own = {name: p for name, p in self._task.module.named_parameters() if p.requires_grad}
        if set(own) != set(saved["parameters"]):
            raise RuntimeError(
                f"{self._directory} holds a checkpoint of other trainable parameters; use another output folder"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                if parameter.shape != saved["parameters"][name].shape:
                    raise RuntimeError(
                        f"{self._directory}: {name} is {tuple(saved['parameters'][name].shape)} in the checkpoint but "
                        f"{tuple(parameter.shape)} in the recipe; use another output folder"
                    )
                parameter.copy_(saved["parameters"][name])
        states = saved["optimizer"] if isinstance(saved["optimizer"], list) else [saved["optimizer"]]
        if len(states) != len(self._optimizers):
            raise RuntimeError(f"{self._directory} holds a checkpoint of another optimizer; use another output folder")
        for (optimizer, _), state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        step = int(saved["step"])
        print(f"{self._name}: going on from step {step}", file=sys.stderr)
        return step
