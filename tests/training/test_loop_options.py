"""Options of the loop: averaged weights, recomputed and compiled blocks, frozen parts, hooks, progress, trackers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_layers import GradientCheckpointingLayer

from vargpt.training.loop import progress, trackers
from vargpt.training.loop.averaging import MovingAverage
from vargpt.training.loop.checkpoints import find_latest
from vargpt.training.loop.journal import read_journal
from vargpt.training.loop.modes import recompute
from vargpt.training.loop.progress import Progress, format_count, format_duration, peak_flops, split_scale
from vargpt.training.loop.settings import LoopSettings
from vargpt.training.loop.stopping import StopRequest, TimeLimitReached
from vargpt.training.loop.trackers import open_trackers
from vargpt.training.loop.trainer import Trainer

SETTINGS = LoopSettings(
    steps=5, batch_size=4, learning_rate=0.05, precision="fp32", log_every=1, evaluate_every=2, checkpoint_every=1e9,
    trackers=(),
)  # fmt: skip


class Layer(GradientCheckpointingLayer):
    """A residual block with dropout that counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.dropout = nn.Dropout(0.4)
        self.calls = 0

    def forward(self, values: Tensor) -> Tensor:
        self.calls += 1
        return values + self.dropout(torch.tanh(self.inner(values)))


class Net(nn.Module):
    """A head on two blocks, of which the second may be frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = Layer(), Layer(), nn.Linear(3, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(self.second(self.first(values)))


class NetTask:
    """Least squares; remembers which weights an evaluation saw."""

    def __init__(self, frozen: bool = False) -> None:
        torch.manual_seed(0)
        self.module = Net()
        if frozen:
            self.module.second.requires_grad_(False)
        self.seen: list[Tensor] = []

    def batch(self, step: int) -> list[Tensor]:
        return list(torch.randn(4, 3, generator=torch.Generator().manual_seed(step)).split(2))

    def counts(self, batch: list[Tensor]) -> dict[str, float]:
        return {"rows": 4.0, "tokens": 40.0, "flops": 4e9}

    def loss(self, micro: Tensor, counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.module(micro) - micro.sum(1, keepdim=True)).square().sum() / counts["rows"]
        return loss, {f"bit_loss/scale{k}": loss.detach() * k for k in range(3)}

    def evaluate(self) -> dict[str, float]:
        self.seen.append(weights(self))
        return {"error": float(self.seen[-1].sum())}


def weights(task: NetTask) -> Tensor:
    return torch.cat([p.detach().flatten() for p in task.module.parameters()])


def run(directory: Path, settings: LoopSettings = SETTINGS, frozen: bool = False, **arguments: Any) -> NetTask:
    task = NetTask(frozen)
    Trainer("net", task, settings, directory, **arguments).run()
    return task


def test_averages_by_literal_values():
    parameter = nn.Parameter(torch.zeros(1))
    average = MovingAverage([parameter], 0.5)
    for step, (value, expected) in enumerate([(10.0, 9.0), (0.0, 9.0 * 2 / 11), (1.0, None)]):
        parameter.data.fill_(value)
        average.update(step)
        if expected is not None:
            assert float(average.tensors[0]) == pytest.approx(expected)
    assert float(average.tensors[0]) == pytest.approx(0.25 * 9.0 * 2 / 11 + 0.75 * 1.0)  # decay (1 + 2) / (10 + 2)
    before = float(average.tensors[0])
    for step in range(100, 103):  # late enough for the decay itself
        average.update(step)
    assert float(average.tensors[0]) - 1 == pytest.approx((before - 1) / 8, rel=1e-4)
    with average.in_place():
        assert torch.equal(parameter.detach(), average.tensors[0])
    assert float(parameter.detach()) == 1.0


def test_the_stage_ends_with_the_averages_and_evaluations_use_them(tmp_path: Path):
    plain, averaged = run(tmp_path / "a"), run(tmp_path / "b", replace(SETTINGS, ema=0.9))
    assert not torch.equal(weights(plain), weights(averaged))
    losses = [[e["loss"] for e in read_journal(tmp_path / name / "journal.jsonl") if "loss" in e] for name in "ab"]
    assert losses[0] == losses[1], "averages are no part of training itself"
    assert [len(task.seen) for task in (plain, averaged)] == [3, 3]  # steps 2, 4 and the end
    assert not torch.equal(plain.seen[0], averaged.seen[0])
    assert torch.equal(averaged.seen[-1], weights(averaged))
    restored = NetTask()
    Trainer("net", restored, replace(SETTINGS, ema=0.9), tmp_path / "b").restore()
    assert torch.equal(weights(restored), weights(averaged))


def test_averages_resume_bitwise(tmp_path: Path):
    settings = replace(SETTINGS, ema=0.9)
    base = run(tmp_path / "a", settings)
    resumed = NetTask()
    for _ in range(4):
        with pytest.raises(TimeLimitReached):
            Trainer("net", NetTask(), settings, tmp_path / "b").run(StopRequest(0.0))
    Trainer("net", resumed, settings, tmp_path / "b").run(StopRequest(0.0))
    assert torch.equal(weights(base), weights(resumed))
    assert (tmp_path / "a" / "journal.jsonl").read_text() == (tmp_path / "b" / "journal.jsonl").read_text()


@pytest.mark.parametrize("frozen", [False, True])
def test_recomputed_activations_change_nothing(tmp_path: Path, frozen: bool):
    """Dropout included; a frozen block that a gradient passes through recomputes, too, and has no dropout."""
    base = run(tmp_path / "a", frozen=frozen)
    again = run(tmp_path / "b", replace(SETTINGS, activation_checkpointing=True), frozen=frozen)
    assert torch.equal(weights(base), weights(again))
    micro_batches = 10
    for layer in (base.module.first, base.module.second):
        assert layer.calls == micro_batches
    for layer in (again.module.first, again.module.second):
        assert layer.calls == 2 * micro_batches
        assert not layer.gradient_checkpointing, "the next stage decides for itself"


def test_a_recomputed_forward_uses_the_attention_kernels_of_the_first():
    """Once the backward ran with other kernels, which save other tensors, and failed."""
    queries = torch.randn(1, 2, 8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def attend(values: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(values, values, values)

    with sdpa_kernel(SDPBackend.MATH):
        plain, again = attend(queries), recompute(attend, queries)
    assert torch.equal(plain, again)
    first, second = (torch.autograd.grad(output.square().sum(), queries)[0] for output in (plain, again))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "settings", [replace(SETTINGS, activation_checkpointing=True), replace(SETTINGS, compile=True)]
)
def test_options_without_blocks_are_refused(tmp_path: Path, settings: LoopSettings):
    task = NetTask()
    task.module = nn.Sequential(nn.Linear(3, 1))  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"stage net: .* Sequential has none; leave them out"):
        Trainer("net", task, settings, tmp_path).run()


@pytest.mark.slow
def test_compiled_blocks_train_the_same(tmp_path: Path):
    """But for dropout, which compiled code draws from another stream."""
    tasks = [NetTask(frozen=True), NetTask(frozen=True)]
    for task, compiled in zip(tasks, (False, True), strict=True):
        task.module.first.dropout.p = 0.0
        Trainer("net", task, replace(SETTINGS, compile=compiled), tmp_path / str(compiled)).run()
    assert torch.allclose(weights(tasks[0]), weights(tasks[1]), atol=1e-5)
    assert tasks[1].module.first._compiled_call_impl is None


def test_frozen_parts_cost_neither_gradients_nor_optimiser_memory(tmp_path: Path):
    task = NetTask(frozen=True)
    trainer = Trainer("net", task, SETTINGS, tmp_path)
    gradients: list[bool] = []
    task.module.head.register_full_backward_hook(
        lambda *_: gradients.append(any(p.grad is not None for p in task.module.second.parameters()))
    )
    before = [p.clone() for p in task.module.second.parameters()]
    trainer.run()
    assert gradients and not any(gradients)
    assert all(torch.equal(a, b) for a, b in zip(before, task.module.second.parameters(), strict=True))
    held = {id(p) for optimizer, _ in trainer._optimizers for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in [*task.module.first.parameters(), *task.module.head.parameters()]}
    found = find_latest(tmp_path)
    assert found is not None and not any("second" in name for name in found.shapes())


def test_hooks_see_every_entry_and_may_warn(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    seen: list[tuple[int, list[str]]] = []

    def hook(step: int, metrics: Any) -> str | None:
        seen.append((step, sorted(metrics)[:1]))
        return "beware" if step == 3 else None

    run(tmp_path, hooks=[hook])
    assert [step for step, _ in seen] == [1, 2, 2, 3, 4, 4, 5, 5]
    assert seen[2] == (2, ["validation/error"])
    assert capsys.readouterr().err.count("beware") == 1


def test_the_progress_line_has_the_main_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run(tmp_path)
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("net 2/5 (40%) "))
    assert "scale" not in line and "loss " in line and "grad_norm " in line
    for part in ("samples/s", "tokens/s", "FLOP/s", "ETA 0:00:0"):
        assert part in line
    assert "bit_loss/scale2" in read_journal(tmp_path / "journal.jsonl")[0]


def test_rates_count_what_was_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    line = Progress("net", 10, 4, devices=2, device=torch.device("cpu"))
    line._peak = 2 * 50e12
    for _ in range(2):
        clock[0] += 2.0
        line.count(8, {"tokens": 100.0, "flops": 40e12, "rows": 3.0})
    rates = line.rates()
    assert rates == {"samples/s": 4.0, "tokens/s": 50.0, "flops/s": 20e12, "mfu": 0.2}
    line.show(6, {"loss": 1.25}, rates)
    assert capsys.readouterr().err == (
        "net 6/10 (60%) loss 1.25 | 4 samples/s, 50 tokens/s, 20TFLOP/s, MFU 20.0%, ETA 0:00:08\n"
    )
    assert line.rates() == {}


def test_names_and_units():
    assert split_scale("validation/bit_loss/scale12") == ("validation/bit_loss", 12)
    assert split_scale("loss") is None and split_scale("scale1") is None
    assert [format_count(value) for value in (0.5, 999.4, 999.6, 1234567, 3.2e16)] == [
        "0.5",
        "999",
        "1k",
        "1.23M",
        "32P",
    ]
    assert [format_duration(s) for s in (-1, 59.9, 3600, 36061)] == ["0:00:00", "0:00:59", "1:00:00", "10:01:01"]
    names = ("NVIDIA H200", "NVIDIA A100-SXM4-80GB", "NVIDIA L40S", "NVIDIA L4", "GeForce RTX 4090", "unknown")
    assert [peak_flops(name) for name in names] == [989e12, 312e12, 362e12, 121e12, 165e12, None]


def test_tensorboard_shows_no_step_twice(tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = replace(SETTINGS, trackers=("tensorboard",))
    with pytest.raises(TimeLimitReached):
        Trainer("net", NetTask(), settings, tmp_path).run(StopRequest(0.0))
    early = open_trackers(("tensorboard",), tmp_path, "net", 1)  # logged beyond the checkpoint, then killed
    for step in (2, 3):
        early[0].log(step, {"loss": 99.0})
    early[0].close()
    run(tmp_path, settings)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    journal = [(e["step"], e["loss"]) for e in read_journal(tmp_path / "journal.jsonl") if "loss" in e]
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in shown] == [1, 2, 3, 4, 5]
    assert [value for _, value in shown] == pytest.approx([value for _, value in journal], rel=1e-6)
    assert len(events.Scalars("speed/tokens/s")) == 5


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trackers, "_installed", lambda name: False)
    assert open_trackers(None, tmp_path, "net", 0) == []
    with pytest.raises(ValueError, match=r"the tracker wandb is not installed: pip install wandb, or leave it out"):
        open_trackers(("wandb",), tmp_path, "net", 0)
