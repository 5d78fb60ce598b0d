"""Trackers: tensorboard where it is installed, trackio and wandb where they are asked for.

Invariant: after a resume at step s tensorboard forgets what an earlier process logged beyond s, and wandb ignores that
it is logged again. (trackio may show steps between the checkpoint and the kill twice, with equal values.)
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal, Protocol

TrackerName = Literal["tensorboard", "trackio", "wandb"]

_PACKAGES: dict[TrackerName, str] = {
    "tensorboard": "pip install 'vargpt[train]'",
    "trackio": "pip install trackio",
    "wandb": "pip install wandb",
}


class Tracker(Protocol):
    """Takes numbers by name and step."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the values of a step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def open_trackers(names: Sequence[TrackerName] | None, directory: Path, stage: str, resumed_step: int) -> list[Tracker]:
    """Open trackers for a stage; `names` None means tensorboard if it is installed.

    Raises:
        ValueError: for one that is asked for but not installed.
    """
    if names is None:
        names = ["tensorboard"] if _installed("tensorboard") else []
    for name in names:
        if not _installed(name):
            raise ValueError(f"the tracker {name} is not installed: {_PACKAGES[name]}, or leave it out of `trackers`")
    return [_open(name, directory, stage, resumed_step) for name in names]


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _open(name: TrackerName, directory: Path, stage: str, resumed_step: int) -> Tracker:
    if name == "tensorboard":
        return TensorboardTracker(directory / "tensorboard", resumed_step)
    return RunTracker(importlib.import_module(name), name, directory, stage)


class TensorboardTracker:
    """Event files in a folder; a resumed run tells tensorboard to forget what came after its checkpoint."""

    def __init__(self, directory: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=resumed_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write at once, so that a kill loses nothing before the last checkpoint."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """End the event file."""
        self._writer.close()


class RunTracker:
    """A run of trackio or wandb (their `init`, `log` and `finish` agree), named after output folder and stage."""

    def __init__(self, module: ModuleType, name: str, directory: Path, stage: str) -> None:
        run_name = f"{directory.resolve().parent.name}-{stage}"
        if name == "wandb":
            self._run = module.init(project="vargpt", name=run_name, id=run_name, resume="allow", dir=str(directory))
        else:
            self._run = module.init(project="vargpt", name=run_name, resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the values of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()
