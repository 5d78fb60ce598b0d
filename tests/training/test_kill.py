"""SIGKILL at any moment: the same call goes on and ends bitwise where an uninterrupted run ends."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_helpers import require_same

from vargpt.training.loop import checkpoints, trainer
from vargpt.training.run import train

OVERRIDES = [f"stages.{index}.loop.checkpoint_every=0.000001" for index in range(3)]


def in_a_child(work: Callable[[], Any], kill_after: float | None = None) -> int:
    """Run in a forked process, kill it after so many seconds, and return its wait status."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
        finally:
            os._exit(1)  # not reached by a child that is killed; 1: it ended by itself
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


@pytest.fixture(scope="module")
def often_saved(recipe_file: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Output of an uninterrupted run with a checkpoint after every step, and its seconds."""
    output = tmp_path_factory.mktemp("often")
    started = time.monotonic()
    train(recipe_file, data, output, OVERRIDES)
    return output, time.monotonic() - started


def test_killed_at_random_moments(often_saved: tuple[Path, float], recipe_file: Path, data: Path, tmp_path: Path):
    reference, seconds = often_saved
    seed = random.randrange(10**6)
    moments = [random.Random(seed).uniform(0, 1.2 * seconds) for _ in range(5)]
    print(f"seed {seed}: killed after {[round(moment, 3) for moment in moments]} s")
    for moment in moments:
        in_a_child(lambda: train(recipe_file, data, tmp_path, OVERRIDES), kill_after=moment)
    train(recipe_file, data, tmp_path, OVERRIDES)
    require_same(reference, tmp_path)


@pytest.mark.parametrize("moment", ["half written", "before the name", "after the name"])
@pytest.mark.parametrize("write", [1, 4, 7])
def test_killed_while_a_checkpoint_is_written(
    often_saved: tuple[Path, float], recipe_file: Path, data: Path, tmp_path: Path, monkeypatch: Any,
    write: int, moment: str,
):  # fmt: skip
    publish, saved = checkpoints._publish, 0

    def killed(partial: Path, *arguments: Any) -> None:
        nonlocal saved
        saved += 1
        if saved == write and moment != "after the name":
            if moment == "half written":
                os.truncate(partial / "__0_0.distcp", (partial / "__0_0.distcp").stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        publish(partial, *arguments)
        if saved == write:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_publish", killed)
        status = in_a_child(lambda: train(recipe_file, data, tmp_path, OVERRIDES))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert len(list(tmp_path.glob("*/step-*.partial"))) == (0 if moment == "after the name" else 1)
    train(recipe_file, data, tmp_path, OVERRIDES)
    require_same(often_saved[0], tmp_path)
    assert not list(tmp_path.glob("*/step-*.partial"))


@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_a_last_checkpoint_that_rotted_costs_steps_but_changes_nothing(
    often_saved: tuple[Path, float], recipe_file: Path, data: Path, tmp_path: Path, harm: str, capsys: Any
):
    """Two steps into the last stage: the newest checkpoint is broken, the one before is taken."""
    run_until(recipe_file, data, tmp_path, "sft", step=2)
    file = tmp_path / "sft" / "step-00000002" / "__0_0.distcp"
    if harm == "flip":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 0x01
        file.write_bytes(content)
    else:
        file.unlink()
    train(recipe_file, data, tmp_path, OVERRIDES)
    assert "going on from step 1" in capsys.readouterr().err
    require_same(often_saved[0], tmp_path)


def test_sigterm_saves_first(recipe_file: Path, data: Path, tmp_path: Path, often_saved: tuple[Path, float]):
    """With checkpoints once an hour, only the one of the signal is there."""
    rarely = [f"stages.{index}.loop.checkpoint_every=3600" for index in range(3)]
    run_until(recipe_file, data, tmp_path, "sft", step=2, overrides=rarely, number=signal.SIGTERM)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "sft")] == ["step-00000002"]
    train(recipe_file, data, tmp_path, rarely)
    require_same(often_saved[0], tmp_path)


def run_until(
    recipe_file: Path, data: Path, output: Path, stage: str, step: int,
    overrides: list[str] = OVERRIDES, number: signal.Signals = signal.SIGTERM,
) -> None:  # fmt: skip
    """Run in a child that sends itself a signal when it records a step of a stage."""
    record = trainer._Record.training

    def signalled(self: Any, at: int, values: dict[str, float]) -> None:
        record(self, at, values)
        if self._directory.name == stage and at == step:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer._Record, "training", signalled)
        in_a_child(lambda: train(recipe_file, data, output, overrides))


def test_killed_while_the_model_is_saved(
    often_saved: tuple[Path, float], recipe_file: Path, data: Path, tmp_path: Path, monkeypatch: Any
):
    from vargpt.processing.processor import VargptProcessor

    with monkeypatch.context() as patch:
        patch.setattr(VargptProcessor, "save_pretrained", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        in_a_child(lambda: train(recipe_file, data, tmp_path, OVERRIDES))
    assert not (tmp_path / "model").exists()
    train(recipe_file, data, tmp_path, OVERRIDES)
    require_same(often_saved[0], tmp_path)
