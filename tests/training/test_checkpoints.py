"""Checkpoints on the disk: atomic, checked, kept and passed over; and that they give back what was put in."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn

from vargpt.training import distributed
from vargpt.training.loop import checkpoints
from vargpt.training.loop.averaging import MovingAverage
from vargpt.training.loop.checkpoints import find_latest, keep_only, list_checkpoints, save_checkpoint
from vargpt.training.loop.optim import build_optimizers
from vargpt.training.loop.output_lock import locked
from vargpt.training.loop.settings import LoopSettings
from vargpt.training.loop.training_state import TrainingState

STATE = {
    "weight": torch.tensor([0.1, 0.7]),
    "matrix": torch.arange(20_000.0).view(2, 100, 100),
    "count": torch.tensor([3.0], dtype=torch.float64),
    "column": torch.tensor([[1.5], [2.5]]),
}


def save(directory: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(directory, step, STATE, {"finished": False})


def in_a_child(work: Callable[[], Any]) -> int:
    """Wait status of a forked process that does it: exit code 0 if it got through, 1 if it raised."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def test_what_was_saved_comes_back(tmp_path: Path):
    save(tmp_path, 3)
    found = find_latest(tmp_path)
    assert found is not None and (found.step, found.facts) == (3, {"finished": False})
    into = {name: torch.zeros_like(value) for name, value in STATE.items()}
    found.read(into)
    assert all(torch.equal(into[name], value) for name, value in STATE.items())
    assert found.shapes() == {"weight": (2,), "matrix": (2, 100, 100), "count": (1,), "column": (2, 1)}


def test_small_tensors_are_written_together(tmp_path: Path):
    """A tiny model's checkpoint once took 0.1 s and more, for every tensor alone."""
    save(tmp_path, 3)
    shapes = distributed.state_shapes(tmp_path / "step-00000003")
    assert shapes == {"matrix": (2, 100, 100), "small torch.float32": (4,), "small torch.float64": (1,)}


def test_the_last_two_are_kept_and_of_a_finished_stage_one(tmp_path: Path):
    save(tmp_path, 1, 2, 9, 10)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000009", "step-00000010"]
    keep_only(tmp_path / "step-00000010")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def damage(folder: Path, kind: str) -> None:
    """Harm a checkpoint in one of many ways."""
    data, metadata, manifest = folder / "__0_0.distcp", folder / ".metadata", folder / "manifest.json"
    if kind == "a byte of a tensor":
        content = bytearray(data.read_bytes())
        content[content.index(STATE["weight"].numpy().tobytes()) + 2] ^= 0x10
        data.write_bytes(content)
    elif kind == "a byte of the metadata":
        content = bytearray(metadata.read_bytes())
        content[len(content) // 2] ^= 0x01
        metadata.write_bytes(content)
    elif kind == "a digit of the manifest":
        manifest.write_text(manifest.read_text().replace('"finished": false', '"finished": true'))
    elif kind == "cut":
        os.truncate(data, data.stat().st_size // 2)
    elif kind == "empty":
        os.truncate(data, 0)
    elif kind == "a file is gone":
        data.unlink()
    elif kind == "the manifest is gone":
        manifest.unlink()
    elif kind == "the manifest is text":
        manifest.write_text("no checkpoint")
    elif kind == "a list for a manifest":
        manifest.write_text("[1]")
    else:
        raise AssertionError(kind)


@pytest.mark.parametrize(
    "kind",
    [
        "a byte of a tensor", "a byte of the metadata", "a digit of the manifest", "cut", "empty", "a file is gone",
        "the manifest is gone", "the manifest is text", "a list for a manifest",
    ],
)  # fmt: skip
def test_a_broken_newest_checkpoint_is_passed_over(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]):
    """`torch.distributed.checkpoint` reads past a flipped byte without a word."""
    save(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002", kind)
    found = find_latest(tmp_path)
    assert found is not None and found.step == 1
    assert "step-00000002: this checkpoint cannot be read" in capsys.readouterr().err
    damage(tmp_path / "step-00000001", kind)
    with pytest.raises(RuntimeError, match=r"none of the 2 checkpoints in .* can be read; delete the folder"):
        find_latest(tmp_path)


def test_a_renamed_checkpoint_is_no_other_step(tmp_path: Path):
    save(tmp_path, 1)
    (tmp_path / "step-00000001").rename(tmp_path / "step-00000005")
    with pytest.raises(RuntimeError, match="none of the 1 checkpoints"):
        find_latest(tmp_path)


def test_a_later_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_FORMAT", 2)
        save(tmp_path, 1)
    with pytest.raises(RuntimeError, match="none of the 1"):
        find_latest(tmp_path)
    assert "its format is 2, this version reads 1" in capsys.readouterr().err


def test_a_broken_checkpoint_gives_way_when_its_step_comes_again(tmp_path: Path):
    save(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002", "cut")
    save(tmp_path, 2)
    found = find_latest(tmp_path)
    assert found is not None and found.step == 2
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000001", "step-00000002"]


def test_no_checkpoint_yet_is_no_error_but_an_old_one_is(tmp_path: Path):
    assert find_latest(tmp_path / "absent") is None
    (tmp_path / "step-00000100.pt").write_bytes(b"x")
    with pytest.raises(RuntimeError, match=r"step-00000100\.pt was written by an earlier version"):
        find_latest(tmp_path)


@pytest.mark.parametrize("left", ["step-00000007.partial", "step-00000003-old.partial"])
def test_what_a_kill_left_half_written_is_removed(tmp_path: Path, left: str):
    """Every kill while saving once left files of the size of a checkpoint for good."""
    (tmp_path / left).mkdir()
    (tmp_path / left / "__0_0.distcp").write_bytes(b"half a checkpoint")
    assert find_latest(tmp_path) is None
    save(tmp_path, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000008"]


@pytest.mark.parametrize("function", ["rename", "fsync", "unlink"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_killed_around_every_rename_sync_and_removal(
    tmp_path: Path, function: str, after: bool, call: int, monkeypatch: Any
):
    """A save that also deletes an old checkpoint and replaces a broken one: what is there afterwards is whole."""
    save(tmp_path, 1, 2, 3)
    damage(tmp_path / "step-00000003", "cut")
    real, calls = getattr(os, function), 0

    def killed(*arguments: Any, **keywords: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments, **keywords)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(os, function, killed)
    assert os.WIFSIGNALED(in_a_child(lambda: save(tmp_path, 3, 4)))
    monkeypatch.undo()
    found = find_latest(tmp_path)
    assert found is not None and found.step >= 2
    torn = [path.name for path in list_checkpoints(tmp_path) if isinstance(checkpoints._inspect(path), str)]
    assert torn in ([], ["step-00000003"]), "but for the one that was damaged above"
    save(tmp_path, 5)
    assert not list(tmp_path.glob("*.partial"))


def test_a_full_disk_is_named_and_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 1)

    def full(descriptor: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RuntimeError, match=r"step-00000002: the checkpoint could not be written \(No space left"):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_disk_that_refuses_to_write_more(tmp_path: Path):
    """The real thing, as far as a test can have it: the system refuses bytes beyond a limit."""
    save(tmp_path, 1)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
        with pytest.raises(
            RuntimeError, match=r"the checkpoint could not be written .*(large|full).*: make room there"
        ):
            save_checkpoint(tmp_path, 2, {"weight": torch.zeros(100_000)}, {})

    assert in_a_child(limited) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_an_output_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match="could not be written"):
        save(tmp_path / "file", 1)


class Training:
    """A small net with its optimisers and averages; `idle` never gets a gradient."""

    def __init__(self, optimizer: Any = "adamw", ema: float | None = 0.9, width: int = 3) -> None:
        torch.manual_seed(0)
        blocks = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, 1)])
        self.blocks = blocks
        self.module = nn.ModuleDict({"decoder": nn.ModuleDict({"blocks": blocks}), "idle": nn.Linear(2, 2)})
        settings = LoopSettings(steps=9, batch_size=1, learning_rate=0.1, optimizer=optimizer)
        self.optimizers = [optimizer for optimizer, _ in build_optimizers(self.module, settings)]
        named = dict(self.module.named_parameters())
        self.average = None if ema is None else MovingAverage(list(named.values()), ema)
        self.state = TrainingState(named, self.optimizers, None if self.average is None else self.average.tensors)
        self.steps = 0

    def step(self, count: int) -> None:
        for _ in range(count):
            first, second = self.blocks
            inputs = torch.randn(5, 2, generator=torch.Generator().manual_seed(self.steps))
            second(torch.tanh(first(inputs))).square().mean().backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            if self.average is not None:
                self.average.update(self.steps)
            self.steps += 1

    def save(self, directory: Path, finished: bool = False) -> None:
        save_checkpoint(directory, self.steps, self.state.collect(finished), self.state.facts(finished))

    def load(self, directory: Path) -> None:
        found = find_latest(directory)
        assert found is not None
        self.state.load(found)
        self.steps = found.step

    def tensors(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.state.collect(finished=False).items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_training_goes_on_bitwise(tmp_path: Path, optimizer: str, steps: int):
    base, other = Training(optimizer), Training(optimizer)
    base.step(steps)
    base.save(tmp_path)
    other.step(2)  # a state that must give way
    other.load(tmp_path)
    base.step(3)
    other.step(3)
    assert base.tensors().keys() == other.tensors().keys()
    assert all(torch.equal(value, other.tensors()[name]) for name, value in base.tensors().items())
    assert not any("idle" in name and "exp_avg" in name for name in base.tensors())


def test_a_finished_stage_holds_its_parameters_alone(tmp_path: Path):
    base, other = Training(), Training()
    base.step(3)
    base.save(tmp_path, finished=True)
    found = find_latest(tmp_path)
    assert found is not None
    assert set(found.shapes()) == {f"parameters.{n}" for n, _ in base.module.named_parameters()}
    other.load(tmp_path)
    for one, two in zip(base.module.parameters(), other.module.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    "other, message",
    [
        ({"optimizer": "muon"}, r"'optimizers': \['AdamW'\].* the recipe says .*\['Muon', 'AdamW'\]"),
        ({"ema": None}, r"'ema': True.* the recipe says .*'ema': False"),
        ({"width": 4}, r"weight is \(3, 2\) in the checkpoint but \(4, 2\) in the recipe; use another output folder"),
    ],
)
def test_a_checkpoint_of_other_training_is_refused(tmp_path: Path, other: dict[str, Any], message: str):
    base = Training()
    base.step(1)
    base.save(tmp_path)
    with pytest.raises(RuntimeError, match=message):
        Training(**other).load(tmp_path)


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path):
    def enter() -> None:
        with locked(tmp_path):
            pass

    with locked(tmp_path):
        assert in_a_child(enter) == 1 << 8

        def refused() -> None:
            with pytest.raises(RuntimeError, match=r"another process is training in .*: wait for it, stop it"):
                enter()

        assert in_a_child(refused) == 0
    assert in_a_child(enter) == 0


def test_facts_are_readable(tmp_path: Path):
    save(tmp_path, 4)
    manifest = json.loads((tmp_path / "step-00000004" / "manifest.json").read_text())
    assert manifest["step"] == 4 and set(manifest["files"]) == {"__0_0.distcp", ".metadata"}
