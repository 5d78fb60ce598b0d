"""Indexes of data files: arrays that are built once, kept on disk and memory-mapped from then on.

Invariant: an index that is used belongs to the file as it is now (size and modification time are compared), and is
whole (it was written beside its place and moved there). A missing, stale or damaged index is built again.

An index lies in `.vargpt-index/` beside its file, or, where that cannot be written, in `$XDG_CACHE_HOME/vargpt/index`
(by default `~/.cache/vargpt/index`).
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC = b"vargptI1"
_ALIGNMENT = 64
_MAX_HEADER_BYTES = 64 * 1024 * 1024
FOLDER = ".vargpt-index"


@dataclass(frozen=True)
class Index:
    """Arrays that describe a data file, and facts about it as JSON.

    Attributes:
        arrays: one-dimensional; read-only and memory-mapped where the index came from disk.
        facts: anything that JSON can hold.
        stamp: size and modification time (ns) of the data file that it describes.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    stamp: tuple[int, int] = (0, 0)


def stamp_of(path: Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns.

    Raises:
        ValueError: if there is no such file.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a file")
    return stat.st_size, stat.st_mtime_ns


def load_or_build(path: Path, version: str, build: Callable[[Path], Index], facts_only: bool = False) -> Index:
    """The index of a data file, from disk if it is there and fits.

    Args:
        version: names the layout; an index of another version is built again.
        build: reads the data file; its `stamp` need not be set.
        facts_only: leave the arrays on disk (they are returned only if they had to be built).

    Raises:
        ValueError: if the data file is missing, or changes while it is read; and whatever `build` raises.
    """
    stamp = stamp_of(path)
    for place in _places(path):
        found = _load(place, version, stamp, facts_only)
        if found is not None:
            return found
    built = build(path)
    if stamp_of(path) != stamp:
        raise ValueError(f"{path}: changed while it was being read; start again when it is complete")
    index = Index(built.arrays, built.facts, stamp)
    failures = []
    for place in _places(path):
        try:
            _save(place, version, index)
        except OSError as error:
            failures.append(f"{place.parent} ({error.strerror})")
            continue
        return _load(place, version, stamp, facts_only) or index
    print(f"{path}: its index cannot be kept in {' or '.join(failures)}, so each start reads the file", file=sys.stderr)
    return index


def kept_facts(path: Path, version: str) -> dict[str, Any] | None:
    """The facts of an index that is on disk and fits; None where there is none.

    Raises:
        ValueError: if the data file is missing.
    """
    stamp = stamp_of(path)
    for place in _places(path):
        found = _load(place, version, stamp, facts_only=True)
        if found is not None:
            return found.facts
    return None


def read_ranges(path: Path, stamp: tuple[int, int], ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read parts (offset, size) of a data file.

    Raises:
        ValueError: if the file has gone or is no longer the one that was indexed.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            stat = os.fstat(handle)
            if (stat.st_size, stat.st_mtime_ns) != stamp:
                raise ValueError(f"{path}: has changed since it was opened; start again")
            parts = [os.pread(handle, size, offset) for offset, size in ranges]
        finally:
            os.close(handle)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    for (offset, size), part in zip(ranges, parts, strict=True):
        if len(part) != size:
            raise ValueError(f"{path}: expected {size:,} bytes at offset {offset:,}, got {len(part):,}")
    return parts


def _places(path: Path) -> tuple[Path, Path]:
    absolute = path.absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vargpt" / "index"
    tag = hashlib.sha256(os.fsencode(absolute)).hexdigest()[:16]
    return absolute.parent / FOLDER / f"{path.name}.index", cache / f"{path.name[:100]}-{tag}.index"


def _save(place: Path, version: str, index: Index) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    layout, offset = {}, 0
    for name, array in index.arrays.items():
        layout[name] = [array.dtype.str, len(array), offset]
        offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    header = {"version": version, "stamp": index.stamp, "facts": index.facts, "arrays": layout, "bytes": offset}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-(len(encoded) + 16) % _ALIGNMENT)
    handle, partial = tempfile.mkstemp(prefix=f"{place.name[:100]}.", suffix=".partial", dir=place.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + struct.pack("<Q", len(encoded)) + encoded)
            for array in index.arrays.values():
                file.write(np.ascontiguousarray(array).data)
                file.write(b"\0" * (-array.nbytes % _ALIGNMENT))
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, place)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def _load(place: Path, version: str, stamp: tuple[int, int], facts_only: bool) -> Index | None:
    """The index at a place, or None where there is none that is whole and fits."""
    try:
        with open(place, "rb") as file:
            start = file.read(16)
            if len(start) != 16 or start[:8] != _MAGIC:
                return None
            (length,) = struct.unpack("<Q", start[8:])
            if length > _MAX_HEADER_BYTES:
                return None
            header = json.loads(file.read(length))
            if header["version"] != version or tuple(header["stamp"]) != stamp:
                return None
            if os.fstat(file.fileno()).st_size != 16 + length + header["bytes"]:
                return None
            if facts_only:
                return Index({}, header["facts"], stamp)
        if not header["bytes"]:
            return Index({name: np.empty(0, d) for name, (d, _, _) in header["arrays"].items()}, header["facts"], stamp)
        mapped = np.memmap(place, np.uint8, mode="r", offset=16 + length)
        arrays = {
            name: mapped[at : at + count * np.dtype(dtype).itemsize].view(dtype)
            for name, (dtype, count, at) in header["arrays"].items()
        }
    except (OSError, ValueError, KeyError, TypeError):  # a damaged header, or an index that is just being replaced
        return None
    return Index({name: np.asarray(array) for name, array in arrays.items()}, header["facts"], stamp)
