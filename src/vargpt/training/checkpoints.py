"""Training checkpoints: written atomically, the last two kept, a broken one passed over aloud.

Invariant: a file named `step-*.pt` is complete when it exists; a kill while writing leaves only a `.partial` file.
"""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

KEEP = 2


def save_checkpoint(directory: Path, step: int, payload: dict[str, Any]) -> Path:
    """Write `directory/step-{step}.pt` atomically and delete all but the newest `KEEP` checkpoints."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step-{step:08d}.pt"
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        torch.save({"step": step, **payload}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    for old in list_checkpoints(directory)[:-KEEP]:
        old.unlink()
    return path


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(directory.glob("step-*.pt"))


def load_latest(directory: Path) -> dict[str, Any] | None:
    """Read the newest checkpoint that is whole; None where there is none yet.

    Raises:
        RuntimeError: when checkpoints exist but none can be read (never a silent restart from zero).
    """
    paths = list_checkpoints(directory)
    for path in reversed(paths):
        try:
            payload: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return payload
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            print(f"checkpoint {path} cannot be read ({error}); trying the one before", file=sys.stderr)
    if paths:
        raise RuntimeError(
            f"none of the {len(paths)} checkpoints in {directory} can be read; "
            f"delete the folder to start this stage anew, or restore a checkpoint from a copy"
        )
    return None
