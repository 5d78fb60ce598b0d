"""Training checkpoints: written atomically, the last two kept, a broken one passed over aloud.

Invariant: a file named `step-*.pt` is complete when it exists; a kill while writing leaves only a `.partial` file,
which the next save removes.
"""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

KEEP = 2


def save_checkpoint(directory: Path, step: int, payload: dict[str, Any]) -> Path:
    """Write `directory/step-{step}.pt` atomically and delete all but the newest `KEEP` checkpoints.

    Raises:
        RuntimeError: if it cannot be written (a full disk); the checkpoints that were there are untouched.
    """
    path = directory / f"step-{step:08d}.pt"
    partial = path.with_suffix(".partial")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob("step-*.partial"):
            stale.unlink()
        with open(partial, "wb") as file:
            torch.save({"step": step, **payload}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RuntimeError(
            f"{path}: the checkpoint could not be written ({error.strerror or error}); earlier ones are untouched: "
            f"make room there and run the same command again"
        ) from error
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
        damage = _damage(path)
        if damage is None:
            payload: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return payload
        print(f"{path}: this checkpoint cannot be read ({damage}); trying the one before", file=sys.stderr)
    if paths:
        raise RuntimeError(
            f"none of the {len(paths)} checkpoints in {directory} can be read; "
            f"delete the folder to start this stage anew, or restore a checkpoint from a copy"
        )
    return None


def _damage(path: Path) -> str | None:
    """What is wrong with a file, by the checksums that `torch.save` writes and `torch.load` does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        return str(error)
    return None if broken is None else f"wrong checksum of {broken}"
