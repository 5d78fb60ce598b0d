"""Positions made ahead in other processes: in order, at any jump, with errors as themselves."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from vargpt.data.loader import Loader


def square(position: int) -> int:
    return position * position


@pytest.mark.parametrize("workers, depth", [(0, 1), (1, 1), (3, 2)])
def test_positions_come_in_order_and_jumps_start_anew(workers: int, depth: int):
    with Loader(square, workers, depth) as loader:
        assert [loader.get(position) for position in (0, 1, 2, 3, 7, 8, 2, 2)] == [0, 1, 4, 9, 49, 64, 4, 4]


def test_the_work_is_done_elsewhere():
    with Loader(lambda position: os.getpid(), workers=2) as loader:
        assert os.getpid() not in {loader.get(0), loader.get(1)}
    with Loader(lambda position: os.getpid()) as loader:
        assert loader.get(0) == os.getpid()


def test_nothing_is_made_at_or_after_the_end():
    def make(position: int) -> int:
        if position >= 3:
            raise AssertionError("past the end")
        return position

    with Loader(make, workers=1, depth=5, end=3) as loader:
        assert [loader.get(position) for position in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_at_its_own_position_and_work_goes_on(workers: int):
    def make(position: int) -> int:
        if position == 2:
            raise ValueError("sample 2 is broken")
        return position

    with Loader(make, workers) as loader:
        assert [loader.get(0), loader.get(1)] == [0, 1]
        with pytest.raises(ValueError, match=r"^sample 2 is broken$"):
            loader.get(2)
        assert loader.get(3) == 3


def test_the_callers_random_numbers_stay_as_they_are():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with Loader(square, workers=2) as loader:
        assert loader.get(4) == 16
        assert torch.equal(torch.rand(3), expected)


def test_a_stop_of_the_whole_group_leaves_the_next_positions():
    """SIGTERM to a run with workers ended in an error of the loader instead of a saved checkpoint."""

    def make(position: int) -> int:
        return os.getpid()

    with Loader(make, workers=1, depth=1) as loader:
        worker = loader.get(0)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker, number)
        assert [loader.get(position) for position in range(1, 6)] == [worker] * 5
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the process outlived its loader")


def test_a_closed_loader_says_so():
    loader = Loader(square, workers=1)
    assert loader.get(1) == 1
    loader.close()
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        loader.get(2)


@pytest.mark.parametrize("workers, depth", [(-1, 1), (1, 0)])
def test_misuse_is_named(workers: int, depth: int):
    with pytest.raises(ValueError, match="workers must be at least 0 and depth at least 1"):
        Loader(square, workers, depth)
