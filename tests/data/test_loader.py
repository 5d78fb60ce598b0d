"""The loader hands out what would have been made, in order, and ends cleanly however it ends."""

from __future__ import annotations

import threading

import pytest

from vargpt.data.loader import Loader


@pytest.mark.parametrize("workers, depth", [(0, None), (1, 1), (2, None), (4, 9)])
def test_positions_come_in_order(workers: int, depth: int | None):
    with Loader(lambda position: position * position, workers, depth) as loader:
        assert [loader.get(position) for position in range(5, 60)] == [n * n for n in range(5, 60)]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_jump_gives_the_same(workers: int):
    with Loader(str, workers) as loader:
        assert [loader.get(position) for position in (7, 3, 3, 1000, 8, 9, 0)] == ["7", "3", "3", "1000", "8", "9", "0"]


def test_the_next_positions_are_made_while_the_caller_works():
    made: set[int] = set()
    ready = threading.Event()

    def make(position: int) -> int:
        made.add(position)
        if made == {0, 1, 2, 3}:
            ready.set()
        return position

    with Loader(make, workers=2, depth=3) as loader:
        loader.get(0)
        assert ready.wait(10)
    assert made == {0, 1, 2, 3}, "and no further ones"


def test_nothing_is_made_beyond_the_end():
    made: set[int] = set()
    with Loader(lambda position: made.add(position), workers=1, depth=5, end=3) as loader:
        for position in range(3):
            loader.get(position)
    assert made == {0, 1, 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_at_its_own_position_and_work_goes_on(workers: int):
    def make(position: int) -> int:
        if position == 2:
            raise ValueError("sample 2 is broken")
        return position

    with Loader(make, workers) as loader:
        assert [loader.get(0), loader.get(1)] == [0, 1]
        with pytest.raises(ValueError, match="sample 2 is broken"):
            loader.get(2)
        with pytest.raises(ValueError, match="sample 2 is broken"):
            loader.get(2)
        assert loader.get(3) == 3


def test_what_was_asked_ahead_for_nothing_is_not_made():
    made: list[int] = []
    started, go_on = threading.Event(), threading.Event()

    def make(position: int) -> int:
        made.append(position)
        if position == 1:
            started.set()
            assert go_on.wait(10)
        return position

    with Loader(make, workers=1, depth=3, end=101) as loader:
        loader.get(0)
        assert started.wait(10)
        jump = threading.Thread(target=loader.get, args=(100,))
        jump.start()
        while loader._tasks.qsize() < 3:  # 2, 3 and 100: the worker holds 1
            assert jump.is_alive()
        go_on.set()
        jump.join(10)
    assert made == [0, 1, 100]


def test_closing_ends_the_threads_and_waits_for_nothing_else():
    started, go_on = threading.Event(), threading.Event()

    def make(position: int) -> int:
        if position == 1:
            started.set()
            assert go_on.wait(10)
        assert position < 2, "cancelled work is not done"
        return position

    loader = Loader(make, workers=1, depth=50)
    loader.get(0)
    assert started.wait(10)
    closing = threading.Thread(target=loader.close)
    closing.start()
    go_on.set()
    closing.join(10)
    assert not closing.is_alive()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader-")]
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        loader.get(0)


def interrupted(loader: Loader[str]) -> None:
    with loader:
        loader.get(0)
        assert all(thread.daemon for thread in loader._threads), "a program that forgets to close still ends"
        raise KeyboardInterrupt


def test_an_interrupt_of_the_caller_closes_it():
    with pytest.raises(KeyboardInterrupt):
        interrupted(Loader(str, workers=2))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader-")]


@pytest.mark.parametrize("workers, depth", [(-1, None), (1, 0)])
def test_misuse_is_named(workers: int, depth: int | None):
    with pytest.raises(ValueError, match="workers must be at least 0 and depth at least 1"):
        Loader(str, workers, depth)
