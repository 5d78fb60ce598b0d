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

from vargpt.training import checkpoints
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


@pytest.mark.parametrize("write", [1, 2, 4, 7])
def test_killed_while_a_checkpoint_is_written(
    often_saved: tuple[Path, float], recipe_file: Path, data: Path, tmp_path: Path, monkeypatch: Any, write: int
):
    save, saved = checkpoints.torch.save, 0

    def half_a_save(payload: Any, file: Any) -> None:
        nonlocal saved
        saved += 1
        save(payload, file)
        if saved == write:
            file.truncate(file.tell() // 2)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(checkpoints.torch, "save", half_a_save)
    status = in_a_child(lambda: train(recipe_file, data, tmp_path, OVERRIDES))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert len(list(tmp_path.glob("*/step-*.partial"))) == 1
    monkeypatch.setattr(checkpoints.torch, "save", save)
    train(recipe_file, data, tmp_path, OVERRIDES)
    require_same(often_saved[0], tmp_path)


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
