"""The loop on a toy task: learning rate, weight decay, clipping, stopping, checkpoints, divergence."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vargpt.training.loop.checkpoints import find_latest, list_checkpoints
from vargpt.training.loop.journal import read_journal
from vargpt.training.loop.trainer import LoopSettings, StopRequest, TimeLimitReached, Trainer, set_training_mode

SETTINGS = LoopSettings(
    steps=6, batch_size=2, learning_rate=0.1, precision="fp32", log_every=1, evaluate_every=4, checkpoint_every=1e9,
    trackers=(),
)  # fmt: skip


class Line:
    """Fit y = w x; `on_step` is called with each step's number; `micro` rows to a micro-batch."""

    def __init__(self, on_step: Any = None, poison: int | None = None, micro: int = 3) -> None:
        self.module = nn.Linear(2, 1)
        nn.init.constant_(self.module.weight, 0.5)
        nn.init.zeros_(self.module.bias)
        self.on_step, self.poison, self.micro = on_step, poison, micro

    def batch(self, step: int) -> list[Tensor]:
        if self.on_step is not None:
            self.on_step(step)
        values = torch.randn(4, 2, generator=torch.Generator().manual_seed(step))
        return list((values * float("nan") if step == self.poison else values).split(self.micro))

    def counts(self, batch: list[Tensor]) -> dict[str, float]:
        return {"rows": sum(len(values) for values in batch)}

    def loss(self, micro: Tensor, counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.module(micro) - micro.sum(1, keepdim=True) * 3).square().sum() / counts["rows"]
        return loss, {"error": loss.detach() * 2}

    def evaluate(self) -> dict[str, float]:
        assert not self.module.training
        return {"weight": float(self.module.weight.detach().sum())}


def weights(task: Line) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.module.parameters()])


def run(directory: Path, settings: LoopSettings = SETTINGS, task: Line | None = None, **stop: Any) -> Line:
    task = task or Line()
    Trainer("line", task, settings, directory).run(StopRequest(**stop))
    return task


def test_frozen_modules_run_in_evaluation_mode():
    """Stochastic depth was once active in frozen parts of the model."""
    frozen = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Dropout())
    trained = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    module = nn.Sequential(frozen, trained)
    set_training_mode(module)
    assert [part.training for part in (module, frozen, frozen[1], trained, trained[1])] == [
        True, False, False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.05}, {"warmup": 1.0}, {"final_learning_rate": 1.0}, {"weight_decay": 0.9},
        {"betas": (0.0, 0.95)}, {"betas": (0.9, 0.5)}, {"grad_clip": 0.1}, {"precision": "bf16"}, {"steps": 5},
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_changes_the_weights(tmp_path: Path, change: dict[str, Any]):
    base, changed = run(tmp_path / "a"), run(tmp_path / "b", replace(SETTINGS, **change))
    assert not torch.equal(weights(base), weights(changed))


def test_a_stage_may_end_before_its_schedule_does(tmp_path: Path):
    """`stop_at` gives the first steps of the whole stage, not a shorter stage."""
    short = run(tmp_path / "a", replace(SETTINGS, stop_at=3))
    with pytest.raises(TimeLimitReached):
        Trainer("line", whole := Line(), SETTINGS, tmp_path / "b").run(_StopAfter(3))
    assert torch.equal(weights(short), weights(whole))
    assert not torch.equal(weights(short), weights(run(tmp_path / "c", replace(SETTINGS, steps=3))))
    assert torch.equal(weights(short), weights(run(tmp_path / "a", replace(SETTINGS, stop_at=3))))
    assert torch.equal(weights(run(tmp_path / "d", replace(SETTINGS, stop_at=9))), weights(run(tmp_path / "e")))


class _StopAfter(StopRequest):
    """Asks for an end after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    @property
    def reason(self) -> str | None:
        """Looked at once per step."""
        self._left -= 1
        return "a test" if self._left == 0 else None


def test_micro_batches_add_up_to_the_whole_batch(tmp_path: Path):
    """Over 20 steps, the last loss and the drift of every weight; a mean per micro-batch would weigh rows unequally."""
    settings = replace(SETTINGS, steps=20, log_every=1)
    tasks = {micro: run(tmp_path / str(micro), settings, Line(micro=micro)) for micro in (4, 3, 2, 1)}
    journals = {micro: read_journal(tmp_path / str(micro) / "journal.jsonl") for micro in tasks}
    for micro in (3, 2, 1):
        assert (
            torch.equal(weights(tasks[micro]), weights(tasks[4]))
            or float((weights(tasks[micro]) - weights(tasks[4])).abs().max()) < 1e-6
        )
        for whole, cut in zip(journals[4], journals[micro], strict=True):
            assert cut == pytest.approx(whole, rel=1e-5)


def test_nothing_to_train_is_an_error(tmp_path: Path):
    task = Line()
    task.module.requires_grad_(False)
    with pytest.raises(ValueError, match="stage line trains nothing"):
        run(tmp_path, task=task)


def test_logging_and_checkpoints_change_nothing(tmp_path: Path):
    base = run(tmp_path / "a")
    often = run(tmp_path / "b", replace(SETTINGS, log_every=5, evaluate_every=1, checkpoint_every=1e-9))
    assert torch.equal(weights(base), weights(often))
    assert [entry["step"] for entry in read_journal(tmp_path / "a" / "journal.jsonl")] == [1, 2, 3, 4, 4, 5, 6, 6]
    assert [path.name for path in list_checkpoints(tmp_path / "b")] == ["step-00000006"]


def test_stopped_after_every_step_equals_uninterrupted(tmp_path: Path):
    base = run(tmp_path / "a")
    for step in range(1, 6):
        with pytest.raises(TimeLimitReached, match=rf"line: stopped by the time limit after step {step}; run again"):
            run(tmp_path / "b", time_limit=0.0)
    resumed = run(tmp_path / "b", time_limit=0.0)
    assert torch.equal(weights(base), weights(resumed))
    assert (tmp_path / "a" / "journal.jsonl").read_text() == (tmp_path / "b" / "journal.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first(tmp_path: Path, number: signal.Signals):
    before = signal.getsignal(number)
    task = Line(on_step=lambda step: os.kill(os.getpid(), number) if step == 2 else None)
    stop = StopRequest()
    with (
        pytest.raises(TimeLimitReached, match=f"stopped by {number.name} after step 3"),
        stop.installed(),
    ):
        Trainer("line", task, SETTINGS, tmp_path).run(stop)
    assert signal.getsignal(number) == before
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000003"]
    assert torch.equal(weights(run(tmp_path)), weights(run(tmp_path / "base")))


def test_a_second_interrupt_ends_at_once(tmp_path: Path):
    def interrupt_twice(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    stop = StopRequest()
    with pytest.raises(KeyboardInterrupt), stop.installed():
        Trainer("line", Line(interrupt_twice), SETTINGS, tmp_path).run(stop)


def test_outside_the_main_thread_no_signal_is_caught(tmp_path: Path):
    done = []

    def work() -> None:
        with StopRequest().installed():
            done.append(weights(run(tmp_path)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(done) == 1


def test_divergence_stops_before_it_reaches_a_checkpoint(tmp_path: Path):
    """The loss was looked at every `log_every` steps only: a checkpoint in between could hold NaN."""
    settings = replace(SETTINGS, log_every=100, checkpoint_every=1e-9)
    task = Line(poison=3)
    with pytest.raises(RuntimeError, match=r"line: the loss is nan .* at step 4; .* Lower learning_rate \(now 0\.1\)"):
        run(tmp_path, settings, task)
    assert bool(torch.isfinite(weights(task)).all())
    saved = find_latest(tmp_path)
    assert saved is not None and saved.step == 3
    assert torch.equal(weights(run(tmp_path, settings)), weights(run(tmp_path / "unbroken", settings)))


def test_an_infinite_gradient_stops_too(tmp_path: Path):
    task = Line()
    task.module.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(RuntimeError, match="gradient norm inf"):
        run(tmp_path, task=task)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path):
    run(tmp_path)
    other = Line()
    other.module = nn.Linear(2, 3)
    with pytest.raises(RuntimeError, match=r"weight is \(1, 2\) in the checkpoint but \(3, 2\) in the recipe"):
        run(tmp_path, task=other)
    fewer = Line()
    fewer.module.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="other trainable parameters; use another output folder"):
        run(tmp_path, task=fewer)
