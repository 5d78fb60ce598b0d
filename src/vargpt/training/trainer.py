"""The training loop: it knows no loss, no data and no model, only steps.

Invariant: step s sees batch(s) and a generator state that is a function of (seed, s) alone, so a run that was
killed and resumed ends with bitwise the same weights as an unbroken one on the same CPU.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vargpt.training.checkpoints import load_latest, save_checkpoint
from vargpt.training.journal import Journal, plot_curves

BatchT = TypeVar("BatchT")

_MUON_PARTS = (".layers.", ".blocks.", "projector.", ".merger.")
"""Names of the matrices that Muon may take: those inside blocks, projectors and the vision merger."""

_ADAMW_RATE_BESIDE_MUON = 0.4


class Task(Protocol[BatchT]):
    """What a stage trains: the module, its batches and its loss."""

    @property
    def module(self) -> nn.Module:
        """What is trained: the parameters that require a gradient."""
        ...

    def batch(self, step: int) -> BatchT:
        """Return the batch of a step; a pure function of the step."""
        ...

    def loss(self, batch: BatchT) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and scalar metrics."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Return validation metrics."""
        ...


@dataclass(frozen=True)
class LoopSettings:
    """Hyper-parameters of one stage; `log_every` and `evaluate_every` in steps, `checkpoint_every` in seconds.

    The learning rate is scheduled over `steps`. `stop_at` ends the stage before that, at a rate that is still high,
    where a following stage goes on with the same weights.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.02
    final_learning_rate: float = 0.02
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    precision: str = "bf16"
    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: float = 120.0
    stop_at: int | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    micro_batch_size: int = 12
    micro_batch_tokens: int | None = None
    ema: float | None = None
    activation_checkpointing: bool = False
    compile: bool = False
    seed: int = 0

    @property
    def last_step(self) -> int:
        """The step at which the stage is finished."""
        return self.steps if self.stop_at is None else min(self.stop_at, self.steps)


class TimeLimitReached(Exception):
    """The run was asked to stop (time limit, SIGTERM or Ctrl-C) and has saved a checkpoint."""


class StopRequest:
    """A wish to stop, by the clock or by a signal: the loop saves a checkpoint before it ends.

    Args:
        time_limit: seconds from now; None for no limit.
    """

    def __init__(self, time_limit: float | None = None) -> None:
        self._deadline = None if time_limit is None else time.monotonic() + time_limit
        self.signal: str | None = None
        """Name of the signal that came, or None."""

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listen to SIGTERM and SIGINT; a second Ctrl-C ends at once. Only the main thread can listen."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.signal is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal = signal.Signals(number).name
            print(f"{self.signal}: saving a checkpoint after this step", file=sys.stderr, flush=True)

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def reason(self) -> str | None:
        """Why to stop, or None."""
        if self.signal is not None:
            return self.signal
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "the time limit"
        return None


def learning_rate_at(step: int, settings: LoopSettings) -> float:
    """Linear warm-up over a fraction `warmup` of the steps, then cosine down to `final_learning_rate` of the peak."""
    warmup_steps = max(1, round(settings.warmup * settings.steps))
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, settings.steps - warmup_steps)
    floor = settings.final_learning_rate
    return settings.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters: those of two or more axes decay, but for all whose name says `embed`.

    Hence matrices and kernels decay; biases, gains and the embeddings of tokens, patches, words and levels do not.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and "embed" not in name else plain).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def set_training_mode(module: nn.Module) -> None:
    """Training mode for all that is trained; evaluation mode (no stochastic depth) for modules that are frozen."""
    module.train()
    for child in module.modules():
        parameters = list(child.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            child.eval()


def build_optimizers(module: nn.Module, settings: LoopSettings) -> list[tuple[torch.optim.Optimizer, float]]:
    """Return optimizers with their share of the learning rate: AdamW, or Muon for matrices and AdamW for the rest.

    Muon (momentum, orthogonalised by Newton-Schulz) takes the matrices inside blocks and projectors, with steps of
    AdamW's size (`match_rms_adamw`); vectors, embeddings, heads and modulations keep AdamW at a lower rate.
    """
    groups = parameter_groups(module, settings.weight_decay)
    matrices: list[nn.Parameter] = []
    if settings.optimizer == "muon":
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        matrices = [
            p for name, p in named
            if p.ndim == 2 and name.endswith(".weight") and any(part in name for part in _MUON_PARTS)
        ]  # fmt: skip
    chosen = {id(p) for p in matrices}
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in chosen]
    adamw = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
    if not matrices:
        return [(adamw, 1.0)]
    muon = torch.optim.Muon(
        matrices, lr=settings.learning_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [(muon, 1.0), (adamw, _ADAMW_RATE_BESIDE_MUON)]


class Trainer(Generic[BatchT]):
    """Runs one stage of `settings.steps` optimiser steps in `directory`, going on where a killed run stopped."""

    def __init__(self, name: str, task: Task[BatchT], settings: LoopSettings, directory: Path) -> None:
        self._name, self._task, self._settings, self._directory = name, task, settings, directory
        self._parameters = [p for p in task.module.parameters() if p.requires_grad]
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
        settings = self._settings
        torch.manual_seed(settings.seed * 1_000_003 + step)  # stochastic depth is the only user of the global stream
        batch = self._task.batch(step)
        for optimizer, factor in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * learning_rate_at(step, settings)
        device = self._parameters[0].device.type
        with torch.autocast(device, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss, metrics = self._task.loss(batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, settings.grad_clip)
        self._require_finite(step + 1, loss.detach(), norm)
        for optimizer, _ in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.detach(), **metrics, "grad_norm": norm}

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
