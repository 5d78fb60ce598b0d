"""Safetensors files, tensor by tensor: a reader and a writer that never hold more than one tensor.

Invariant: reading copies bytes into the tensor's own memory (no memory map stays open, so peak memory is what is
asked for) and a file is checked against its own header before anything is read from it.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: its file, type, shape and the offset of its first byte."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    def read(self, rows: tuple[int, int] | None = None, scratch: Tensor | None = None) -> Tensor:
        """Read the tensor, or some rows of its first axis, into new memory or into `scratch` (uint8) if it fits."""
        shape, offset = self.shape, self.offset
        if rows is not None:
            offset += rows[0] * math.prod(shape[1:]) * self.dtype.itemsize
            shape = (rows[1] - rows[0], *shape[1:])
        size = math.prod(shape) * self.dtype.itemsize
        if scratch is not None and 0 < size <= scratch.numel():
            tensor = scratch[:size].view(self.dtype).view(shape)
        else:
            tensor = torch.empty(shape, dtype=self.dtype)
        if size == 0:
            return tensor
        view = _bytes_of(tensor)
        with open(self.path, "rb") as file:
            file.seek(offset)
            read = 0
            while read < len(view):
                count = file.readinto(view[read:])
                if not count:
                    raise ValueError(f"{self.path} ended while a tensor was read from it: copy or download it again")
                read += count
        return tensor


class LazyTensors(Mapping[str, Tensor]):
    """Name -> tensor, made when asked for."""

    def __init__(self, makers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Tensor:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _header(path: Path) -> tuple[dict[str, dict], int]:
    """Return the parsed header and the offset of the data; ValueError for anything but a whole safetensors file."""
    advice = "copy or download the file again"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {advice}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= _MAX_HEADER_BYTES:
            raise ValueError(f"{path} is not a safetensors file ({size} bytes, no valid header): {advice}")
        if 8 + length > size:
            raise ValueError(f"{path} is truncated: its header needs {8 + length} bytes, the file has {size}; {advice}")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ValueError(f"{path} is not a safetensors file (its header is not JSON): {advice}") from error
    header.pop("__metadata__", None)
    ends = [entry["data_offsets"][1] for entry in header.values()]
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        what = "truncated" if size < expected else "damaged"
        raise ValueError(f"{path} is {what}: its header describes {expected} bytes, the file has {size}; {advice}")
    return header, 8 + length


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """Return all tensors of one safetensors file by name, without reading them."""
    header, start = _header(path)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {name} has type {entry['dtype']}, expected one of {', '.join(_DTYPES)}")
        shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
        begin, end = entry["data_offsets"]
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{path} is damaged: {name} of shape {list(shape)} does not fill its {end - begin} bytes")
        tensors[name] = StoredTensor(path, dtype, shape, start + begin)
    return tensors


def shard_paths(folder: Path) -> list[Path]:
    """Return the weight files of a model folder: those of its index, or the single file.

    Raises:
        ValueError: if there are no weights, or the index is not readable or names a missing file.
    """
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{index} is not a weight index: expected JSON with a 'weight_map'; copy it again"
            ) from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"{folder} lacks {len(missing)} of its {len(names)} weight files: {', '.join(missing[:5])}"
                f"{' ...' if len(missing) > 5 else ''}; copy or download them"
            )
        return [folder / name for name in names]
    if single.is_file():
        return [single]
    raise ValueError(f"{folder} holds no weights: expected {SINGLE_NAME}, or {INDEX_NAME} with the files it names")


def list_folder(folder: Path) -> dict[str, StoredTensor]:
    """Return all tensors of a model folder by name; an index that disagrees with its files is an error."""
    tensors: dict[str, StoredTensor] = {}
    for path in shard_paths(folder):
        for name, stored in list_tensors(path).items():
            if name in tensors:
                raise ValueError(f"{name} is both in {tensors[name].path.name} and in {path.name} of {folder}")
            tensors[name] = stored
    index = folder / INDEX_NAME
    if index.is_file():
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        absent = sorted(named - set(tensors))
        if absent:
            raise ValueError(
                f"{index} names {len(absent)} tensors that its files lack, first {absent[0]}: "
                "the files belong to another model or are incomplete; copy all of them again"
            )
    return tensors


def parse_size(size: int | str) -> int:
    """Return bytes from an int or a text such as '5GB' or '200MiB'."""
    if isinstance(size, int):
        value = size
    else:
        units = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30, "b": 1, "": 1}
        text = size.strip().lower()
        digits = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
        unit = text[len(digits) :].strip()
        if unit not in units or not digits.replace(".", "", 1).isdigit():
            raise ValueError(f"max_shard_size is a number of bytes or a text like '5GB', got {size!r}")
        value = int(float(digits) * units[unit])
    if value < 1:
        raise ValueError(f"max_shard_size must be positive, got {size!r}")
    return value


Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def plan_shards(layout: Layout, max_shard_bytes: int) -> list[tuple[str, list[str]]]:
    """Group names, in order, into files of at most `max_shard_bytes` (a larger tensor gets its own file)."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, (dtype, shape) in layout.items():
        size = math.prod(shape) * dtype.itemsize
        if groups[-1] and filled + size > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return [(SINGLE_NAME, groups[0])]
    return [(f"model-{i:05}-of-{len(groups):05}.safetensors", names) for i, names in enumerate(groups, 1)]


def _write_header(file: BinaryIO, names: list[str], layout: Layout) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        dtype, shape = layout[name]
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(struct.pack("<Q", len(encoded)) + encoded)


def write_file(path: Path, names: list[str], layout: Layout, tensors: Iterator[Tensor]) -> None:
    """Write one safetensors file, taking the tensors one after the other in the order of `names`."""
    with open(path, "wb") as file:
        _write_header(file, names, layout)
        for name, tensor in zip(names, tensors, strict=True):
            dtype, shape = layout[name]
            assert tensor.dtype == dtype and tuple(tensor.shape) == tuple(shape), name
            if tensor.numel():
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                file.write(_bytes_of(flat))
        file.flush()
        os.fsync(file.fileno())


def write_index(path: Path, shards: list[tuple[str, list[str]]], layout: Layout) -> None:
    """Write the index of several weight files, as transformers does."""
    weight_map = {name: file for file, names in shards for name in names}
    total = sum(math.prod(shape) * dtype.itemsize for dtype, shape in layout.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
