"""Checkpoints of a stage: folders `step-XXXXXXXX`, written by all ranks together, readable by any number of ranks.

Invariant: a folder without `.partial` in its name was complete when it got that name: every file is on the disk and
listed in `manifest.json` with size and checksum. A kill while one is written leaves a `.partial` folder, which the next
save removes. The last two are kept; a broken one is passed over aloud, and if none can be read that is an error.

The files are those of `torch.distributed.checkpoint`, which spends a fifth of a millisecond and more on every tensor.
Small ones are therefore written together, as one vector per dtype; the manifest says where each of them lies.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vargpt.training import distributed

KEEP = 2
_FORMAT = 1
_MANIFEST = "manifest.json"
_BLOCK = 1 << 22
_SMALL = 1 << 14
"""Elements up to which a tensor shares a vector with others."""
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on the disk: its folder, its step, and the facts it was saved with."""

    path: Path
    step: int
    facts: dict[str, Any]
    packed: dict[str, list[tuple[str, list[int]]]]
    """Vectors of small tensors: names and shapes of what each holds, in order."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all tensors."""
        shapes = {name: s for name, s in distributed.state_shapes(self.path).items() if name not in self.packed}
        return shapes | {name: tuple(shape) for entries in self.packed.values() for name, shape in entries}

    def read(self, state: Mapping[str, Tensor]) -> None:
        """Fill tensors, however they are sharded; all ranks call it.

        Args:
            state: by name; all that the checkpoint holds.
        """
        small = {name for entries in self.packed.values() for name, _ in entries}
        dtypes = {str(tensor.dtype): tensor.dtype for tensor in state.values()}
        vectors = {
            vector: torch.empty(sum(math.prod(shape) for _, shape in entries), dtype=dtypes[vector.rpartition(" ")[2]])
            for vector, entries in self.packed.items()
        }
        distributed.read_state(self.path, {n: t for n, t in state.items() if n not in small} | vectors)
        for vector, entries in self.packed.items():
            parts = vectors[vector].split([math.prod(shape) for _, shape in entries])
            for (name, shape), part in zip(entries, parts, strict=True):
                distributed.fill(state[name], part.view(shape))


def _pack(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[tuple[str, list[int]]]]]:
    """Put small tensors into one vector per dtype; return what to write and what each vector holds."""
    large = {name: tensor for name, tensor in state.items() if tensor.numel() > _SMALL}
    packed: dict[str, list[tuple[str, list[int]]]] = {}
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in state.items():
        if name not in large:
            vector = f"small {tensor.dtype}"
            packed.setdefault(vector, []).append((name, list(tensor.shape)))
            parts.setdefault(vector, []).append(distributed.whole(tensor.detach()).flatten().cpu())
    return large | {vector: torch.cat(tensors) for vector, tensors in parts.items()}, packed


def save_checkpoint(directory: Path, step: int, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Write `directory/step-{step}` atomically and delete all but the newest `KEEP` checkpoints; all ranks call it.

    Args:
        state: tensors by name; sharded ones are written by the ranks that hold them.
        facts: anything JSON can hold; comes back in `Checkpoint.facts`.

    Raises:
        RuntimeError: if it cannot be written (a full disk); the checkpoints that were there are untouched.
    """
    path = directory / f"step-{step:08d}"
    partial = path.with_suffix(".partial")

    tensors, packed = _pack(state)

    def write() -> dict[str, Any]:
        distributed.write_state(partial, tensors)
        return {file.name: _measure(file) for file in sorted(partial.iterdir()) if _is_own(file.name)}

    try:
        _together(lambda: _prepare(directory, partial) if distributed.is_main() else None)
        files = {name: entry for part in _together(write) for name, entry in part.items()}
        manifest = {"format": _FORMAT, "step": step, "facts": dict(facts), "packed": packed, "files": files}
        _together(lambda: _publish(partial, path, manifest) if distributed.is_main() else None)
    except OSError as error:
        if distributed.is_main():
            shutil.rmtree(partial, ignore_errors=True)
        raise RuntimeError(
            f"{path}: the checkpoint could not be written ({error.strerror or error}); earlier ones are untouched: "
            f"make room there and run the same command again"
        ) from error
    if distributed.is_main():
        for old in list_checkpoints(directory)[:-KEEP]:
            _remove(old)
    return path


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in directory.glob("step-*") if path.is_dir() and not path.suffix)


def keep_only(path: Path) -> None:
    """Delete all other checkpoints beside this one (of a stage that is finished)."""
    if distributed.is_main():
        for other in list_checkpoints(path.parent):
            if other != path:
                _remove(other)


def find_latest(directory: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole, the same on all ranks; None where there is none yet.

    Raises:
        RuntimeError: when checkpoints exist but none can be read (never a silent restart from zero).
    """
    paths = distributed.broadcast_object(list_checkpoints(directory))
    for path in reversed(paths):
        found = [_inspect(path)] if distributed.world_size() == 1 else distributed.gather_objects(_inspect(path))
        damage = next((item for item in found if isinstance(item, str)), None)
        if damage is None:
            checkpoint = found[0]
            assert isinstance(checkpoint, Checkpoint)
            return checkpoint
        if distributed.is_main():
            print(f"{path}: this checkpoint cannot be read ({damage}); trying the one before", file=sys.stderr)
    if paths:
        raise RuntimeError(
            f"none of the {len(paths)} checkpoints in {directory} can be read; "
            f"delete the folder to start this stage anew, or restore a checkpoint from a copy"
        )
    old = distributed.broadcast_object(sorted(directory.glob("step-*.pt")))
    if old:
        raise RuntimeError(f"{old[-1]} was written by an earlier version of vargpt; use another output folder")
    return None


def _is_own(name: str) -> bool:
    """Whether this rank wrote a file: `__3_0.distcp` is rank 3's, the rest is rank 0's."""
    return name.startswith(f"__{distributed.rank()}_") or (distributed.is_main() and not name.startswith("__"))


def _together(action: Callable[[], ResultT]) -> list[ResultT]:
    """Do it on every rank; return all results, or raise the first rank's OSError on all of them."""
    result, failure = None, None
    try:
        result = action()
    except OSError as error:
        failure = (error.errno, error.strerror or str(error))
        cause = error
    outcomes = distributed.gather_objects((result, failure))
    for _, problem in outcomes:
        if problem is not None:
            raise OSError(*problem) from (cause if failure else None)
    return [outcome for outcome, _ in outcomes]  # type: ignore[misc]


def _prepare(directory: Path, partial: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.glob("step-*.partial"):
        shutil.rmtree(stale)
    partial.mkdir()


def _publish(partial: Path, path: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest and give the folder its name; a broken checkpoint of that name gives way."""
    with open(partial / _MANIFEST, "w") as file:
        json.dump({**manifest, "crc32": _crc_of(manifest)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(partial)
    if path.exists():
        _remove(path)
    os.rename(partial, path)
    _sync_folder(path.parent)


def _remove(path: Path) -> None:
    """Delete a checkpoint so that a kill half-way never leaves part of it under its name."""
    doomed = path.with_name(f"{path.name}-old.partial")
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _measure(path: Path) -> dict[str, int]:
    crc, size = 0, 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return {"bytes": size, "crc32": crc}


def _crc_of(manifest: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


def _inspect(path: Path) -> Checkpoint | str:
    """Read the manifest and compare this rank's share of the files with it; a description of the damage, if any."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        crc = manifest.pop("crc32")
        if crc != _crc_of(manifest) or path.name != f"step-{manifest['step']:08d}":
            return f"{_MANIFEST} is damaged"
        if manifest["format"] != _FORMAT:
            return f"its format is {manifest['format']}, this version reads {_FORMAT}"
        names = sorted(manifest["files"])
        for name in names[distributed.rank() :: distributed.world_size()]:
            if _measure(path / name) != manifest["files"][name]:
                return f"wrong size or checksum of {name}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return Checkpoint(path, manifest["step"], manifest["facts"], manifest["packed"])
