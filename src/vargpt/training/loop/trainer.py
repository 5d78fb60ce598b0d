"""The training loop: it knows no loss, no data and no model, only steps.

Invariant: step s sees batch(s) and generator states that are functions of (seed, stage, s, rank, micro-batch) alone, so
a run that was killed and resumed ends with bitwise the same weights as an unbroken one on the same CPU.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vargpt.training import distributed
from vargpt.training.loop.averaging import MovingAverage
from vargpt.training.loop.checkpoints import find_latest, keep_only, save_checkpoint
from vargpt.training.loop.journal import Journal, plot_curves
from vargpt.training.loop.modes import block_options, set_training_mode
from vargpt.training.loop.optim import build_optimizers, learning_rate_at
from vargpt.training.loop.output_lock import locked
from vargpt.training.loop.progress import Progress
from vargpt.training.loop.settings import LoopSettings
from vargpt.training.loop.stopping import StopRequest, TimeLimitReached
from vargpt.training.loop.trackers import Tracker, open_trackers
from vargpt.training.loop.training_state import TrainingState
from vargpt.training.steps import stream_seed

__all__ = [
    "Evaluator",
    "Hook",
    "LoopSettings",
    "StopRequest",
    "Task",
    "TimeLimitReached",
    "Trainer",
    "set_training_mode",
]

Hook = Callable[[int, Mapping[str, float]], str | None]
"""Looks at every entry of the journal (step, metrics) and may return a line to print, such as a warning."""

Evaluator = Callable[[], dict[str, float]]
"""Gives validation metrics of the module as it stands (in evaluation mode, averaged weights in place)."""

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
        """Return the denominators of this rank's batch (valid targets, images, ...); the loop adds them over ranks.

        `tokens` and `flops` (those of the products of forward and backward), where given, are shown as rates.
        """
        ...

    def loss(self, micro: MicroT, counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a micro-batch's share of the step's loss and of its scalar metrics.

        Numerators divided by the step's `counts` (of all ranks), so that shares add up over micro-batches and ranks.
        """
        ...

    def evaluate(self) -> dict[str, float]:
        """Return validation metrics, the same on all ranks; every rank calls it."""
        ...


class Trainer(Generic[MicroT]):
    """Runs one stage of `settings.steps` optimiser steps in `directory`, going on where a killed run stopped.

    Args:
        hooks: look at what is logged (on rank 0).
        evaluators: more validation metrics than the task's own; all ranks call them.

    Raises:
        ValueError: if nothing is trainable.
    """

    def __init__(
        self,
        name: str,
        task: Task[MicroT],
        settings: LoopSettings,
        directory: Path,
        hooks: Sequence[Hook] = (),
        evaluators: Sequence[Evaluator] = (),
    ) -> None:
        self._name, self._task, self._settings, self._directory = name, task, settings, directory
        self._hooks, self._evaluators = hooks, evaluators
        named = {key: p for key, p in task.module.named_parameters() if p.requires_grad}
        self._parameters = list(named.values())
        if not self._parameters:
            raise ValueError(f"stage {name} trains nothing: no parameter of {type(task.module).__name__} is trainable")
        self._device = self._parameters[0].device
        self._optimizers = build_optimizers(task.module, settings)
        self._average = None if settings.ema is None else MovingAverage(self._parameters, settings.ema)
        averages = None if self._average is None else self._average.tensors
        self._state = TrainingState(named, [optimizer for optimizer, _ in self._optimizers], averages)

    def run(self, stop: StopRequest | None = None) -> None:
        """Train to the end of the stage, or at least one step where `stop` asks for an end.

        Raises:
            TimeLimitReached: after a checkpoint was saved because of `stop`; not at the end of the stage.
            RuntimeError: if the loss or a gradient is not finite, a checkpoint cannot be written, or another process
                trains in the same folder.
        """
        with locked(self._directory), block_options(self._task.module, self._name, self._settings):
            step = self.restore()
            if step < self._settings.last_step:
                self._train(step, stop or StopRequest())

    def _train(self, step: int, stop: StopRequest) -> None:
        record = _Record(self._directory, self._name, self._settings, self._device, step, self._hooks)
        last_save, end = time.monotonic(), self._settings.last_step
        try:
            while step < end:
                shares, norm, counts = self._step(step)
                step += 1
                done = step == end
                record.count(counts)
                if step % self._settings.log_every == 0 or done:
                    record.training(step, self._values(step, shares, norm))
                if done and self._average is not None:
                    self._average.keep()
                if step % self._settings.evaluate_every == 0 or done:
                    record.validation(step, self._evaluate(done))
                reason, time_to_save = self._agree(stop, last_save)
                if done or reason or time_to_save:
                    record.flush()
                    self._save(step, done)
                    last_save = time.monotonic()
                if reason and not done:
                    raise TimeLimitReached(f"{self._name}: stopped by {reason} after step {step}; run again to go on")
        finally:
            record.close()

    def _step(self, step: int) -> tuple[dict[str, Tensor], float, dict[str, float]]:
        """One optimiser step; return this rank's shares of loss and metrics, the gradients' norm and the counts."""
        settings = self._settings
        batch = self._task.batch(step)
        counts = distributed.sum_counts(self._task.counts(batch))
        total: dict[str, Tensor] = {}
        for index, micro in enumerate(batch):
            # Stochastic depth is the only user of the global stream.
            torch.manual_seed(stream_seed(settings.seed, self._name, step, f"forward {distributed.rank()} {index}"))
            with self._autocast():
                loss, metrics = self._task.loss(micro, counts)
            if loss.requires_grad:  # text alone does not pass through a trained decoder
                loss.backward()
            for name, value in {"loss": loss, **metrics}.items():
                total[name] = total[name] + value.detach() if name in total else value.detach()
        distributed.sum_gradients(self._parameters)
        norm = float(distributed.clip_gradients(self._parameters, settings.grad_clip))
        loss_sum = distributed.sum_counts({"loss": float(total["loss"]) if batch else 0.0})["loss"]
        self._require_finite(step + 1, loss_sum, norm)
        for optimizer, factor in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * learning_rate_at(step, settings)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(step)
        return total, norm, counts

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._settings.precision == "bf16")

    def _require_finite(self, step: int, loss: float, norm: float) -> None:
        """Stop before the weights are touched, all ranks alike: a checkpoint never holds what a broken step made."""
        if not math.isfinite(loss + norm):
            raise RuntimeError(
                f"{self._name}: the loss is {loss:g} and the gradient norm {norm:g} at step {step}; "
                f"weights and checkpoints are untouched. Lower learning_rate (now {self._settings.learning_rate:g}) "
                f"or look at the data of this step"
            )

    def _values(self, step: int, shares: dict[str, Tensor], norm: float) -> dict[str, float]:
        """Add up the shares of all ranks."""
        values = distributed.sum_counts({name: float(value) for name, value in shares.items()})
        return {**values, "grad_norm": norm, "learning_rate": learning_rate_at(step - 1, self._settings)}

    def _agree(self, stop: StopRequest, last_save: float) -> tuple[str | None, bool]:
        """Why to stop (every rank stops if one is asked to), and whether it is time to save (by rank 0's clock)."""
        late = time.monotonic() - last_save >= self._settings.checkpoint_every
        wishes = distributed.gather_objects((stop.reason, late))
        return next((reason for reason, _ in wishes if reason), None), wishes[0][1]

    def _evaluate(self, done: bool) -> dict[str, float]:
        """Validation metrics of the averaged weights, where there are any."""
        swap = self._average is not None and not done
        with contextlib.ExitStack() as stack:
            if swap and self._average is not None:
                stack.enter_context(self._average.in_place())
            self._task.module.eval()
            with torch.no_grad(), self._autocast():
                values = self._task.evaluate()
                for evaluator in self._evaluators:
                    values = {**values, **evaluator()}
        set_training_mode(self._task.module)
        return distributed.broadcast_object(values)

    def _save(self, step: int, done: bool) -> None:
        """Save a checkpoint; that of a finished stage holds no optimiser state and replaces all before it."""
        path = save_checkpoint(self._directory, step, self._state.collect(done), self._state.facts(done))
        if done:
            keep_only(path)

    def restore(self) -> int:
        """Load the newest checkpoint of the stage, if any, into the module; return the step it stands at.

        Raises:
            RuntimeError: if none of the checkpoints can be read, or they are of another recipe.
        """
        set_training_mode(self._task.module)
        saved = find_latest(self._directory)
        if saved is None:
            return 0
        end = self._settings.last_step
        if saved.step > end or (saved.facts["finished"] and saved.step != end):
            state = "was finished at" if saved.facts["finished"] else "stands at"
            raise RuntimeError(
                f"{self._directory}: this stage {state} step {saved.step} and should now end at {end}; "
                f"use another output folder, or restore the recipe"
            )
        self._state.load(saved)
        if distributed.is_main():
            print(f"{self._name}: going on from step {saved.step}", file=sys.stderr)
        return saved.step


class _Record:
    """What rank 0 tells about a stage: journal, progress line, trackers, curves, hooks; nothing on other ranks."""

    def __init__(
        self, directory: Path, name: str, settings: LoopSettings, device: torch.device, step: int, hooks: Sequence[Hook]
    ) -> None:
        self._directory, self._batch_size, self._hooks = directory, settings.batch_size, hooks
        self._journal: Journal | None = None
        self._trackers: list[Tracker] = []
        if distributed.is_main():
            self._journal = Journal(directory, step)
            self._progress = Progress(name, settings.last_step, step, distributed.world_size(), device)
            self._trackers = open_trackers(settings.trackers, directory, name, step)

    def count(self, counts: Mapping[str, float]) -> None:
        """Count a step's work."""
        if self._journal is not None:
            self._progress.count(self._batch_size, counts)

    def training(self, step: int, values: dict[str, float]) -> None:
        """Record metrics of a training step."""
        if self._journal is not None:
            self._add(step, values, self._progress.rates())

    def validation(self, step: int, values: dict[str, float]) -> None:
        """Record validation metrics and draw the curves."""
        if self._journal is not None:
            if values:
                self._add(step, {f"validation/{name}": value for name, value in values.items()}, {})
            plot_curves(self._directory)

    def _add(self, step: int, values: dict[str, float], rates: dict[str, float]) -> None:
        assert self._journal is not None
        self._journal.record(step, values)
        self._progress.show(step, values, rates)
        for tracker in self._trackers:
            tracker.log(step, {**values, **{f"speed/{name}": value for name, value in rates.items()}})
        for hook in self._hooks:
            line = hook(step, values)
            if line is not None:
                print(line, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Have everything on the disk."""
        if self._journal is not None:
            self._journal.flush()

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()
