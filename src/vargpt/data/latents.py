"""A cache on disk of what the image tokenizer's encoder makes of pictures.

Invariant: what comes out of the cache is bitwise what the encoder gave: float32, found by the hash of the very pixels
and by a fingerprint of the encoder's weights, dtype and kind of device, and checked by a checksum when read. Bits
cannot be kept in their place: bit flips change what the finer scales are made of, and that needs the latent.

    <folder>/<fingerprint>/<random>.latents   a few hundred latents of one shape, written whole or not at all

Any number of processes may share a folder: each writes files of its own, and finds those that were there when it
started.
A latent takes 4 bytes x bits x grid: 131 KB at 512x512 with 32 bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from vargpt.image_tokenizer import ImageTokenizer

_MAGIC = b"vargptL1"
_KEY_BYTES = 32
_FLUSH_BYTES = 64 * 1024 * 1024


def encoder_fingerprint(tokenizer: ImageTokenizer) -> str:
    """A name for all that the latent of given pixels depends on: configuration, weights, dtype, kind of device."""
    digest = hashlib.sha256(json.dumps(tokenizer.config.to_dict(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(tokenizer.encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.device.type}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


class LatentCache:
    """Latents by pixels; safe to use from several threads. `flush`, or a `with` block, keeps the last ones.

    Attributes:
        hits, misses: how many latents were found and how many were made.
    """

    def __init__(self, folder: str | os.PathLike[str], fingerprint: str, flush_bytes: int = _FLUSH_BYTES) -> None:
        """Open the cache of one encoder.

        Args:
            fingerprint: of the encoder (`encoder_fingerprint`).
            flush_bytes: how much is held in memory before it is written.
        """
        self.hits = self.misses = 0
        self._folder = Path(folder) / fingerprint
        self._flush_bytes = flush_bytes
        self._lock = threading.Lock()
        self._pending: dict[tuple[int, ...], dict[bytes, np.ndarray]] = {}
        self._pending_bytes = 0
        self._shards: list[_Shard] = []
        self._recent: dict[bytes, tuple[int, int]] = {}
        self._failed = False
        prefixes, places = [np.empty(0, np.uint64)], [np.empty((0, 2), np.int32)]
        for path in sorted(self._folder.glob("*.latents")) if self._folder.is_dir() else []:
            shard = _Shard.open(path)
            if shard is None:
                print(f"{path}: damaged, its latents are made again", file=sys.stderr)
                continue
            rows = np.arange(len(shard.keys) // _KEY_BYTES, dtype=np.int32)
            prefixes.append(np.frombuffer(shard.keys, np.uint64)[:: _KEY_BYTES // 8])
            places.append(np.stack([np.full_like(rows, len(self._shards)), rows], axis=1))
            self._shards.append(shard.without_keys())
        joined = np.concatenate(prefixes)
        order = np.argsort(joined, kind="stable")
        self._prefixes, self._places = joined[order], np.concatenate(places)[order]

    def __len__(self) -> int:
        """How many latents are found."""
        return len(self._prefixes) + len(self._recent) + sum(len(pending) for pending in self._pending.values())

    def get(self, pixels_3HW: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """The latent of these pixels, float32 on the CPU: from the cache, or made and kept.

        Args:
            pixels_3HW: exactly what the encoder is given.
            make: gives the latent, float32.

        Raises:
            ValueError: if `make` gives another dtype.
        """
        key = _key(pixels_3HW)
        with self._lock:
            found = self._find(key)
            if found is not None:
                self.hits += 1
                return torch.from_numpy(found.copy())
            self.misses += 1
        latent = make().detach().cpu()
        if latent.dtype != torch.float32:
            raise ValueError(f"a latent to keep must be float32, got {latent.dtype}")
        value = latent.contiguous().numpy().copy()
        with self._lock:
            self._pending.setdefault(value.shape, {})[key] = value
            self._pending_bytes += value.nbytes
            if self._pending_bytes >= self._flush_bytes:
                self._flush()
        return latent

    def flush(self) -> None:
        """Write what is held in memory."""
        with self._lock:
            self._flush()

    def _find(self, key: bytes) -> np.ndarray | None:
        for pending in self._pending.values():
            if key in pending:
                return pending[key]
        place = self._recent.get(key)
        if place is None:
            prefix = np.frombuffer(key, np.uint64)[0]
            start, end = (
                np.searchsorted(self._prefixes, prefix, "left"),
                np.searchsorted(self._prefixes, prefix, "right"),
            )
            for shard, row in self._places[start:end]:
                value = self._shards[shard].read(int(row), key)
                if value is not None:
                    return value
            return None
        return self._shards[place[0]].read(place[1], key)

    def _flush(self) -> None:
        for shape, latents in self._pending.items():
            if not self._failed:
                try:
                    shard = _Shard.write(self._folder, shape, latents)
                except OSError as error:
                    self._failed = True
                    print(f"{self._folder}: latents are not kept any more ({error.strerror})", file=sys.stderr)
                    continue
                self._recent |= {key: (len(self._shards), row) for row, key in enumerate(latents)}
                self._shards.append(shard)
        self._pending, self._pending_bytes = {}, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()


class _Shard:
    """A file of latents of one shape: header, keys, then rows of checksum and data."""

    def __init__(self, path: Path, shape: tuple[int, ...], start: int, keys: bytes) -> None:
        self.path, self.shape, self.start, self.keys = path, shape, start, keys
        self._row_bytes = 4 + 4 * math.prod(shape)

    @classmethod
    def open(cls, path: Path) -> _Shard | None:
        """Read header and keys; None for a file that is not whole."""
        try:
            with open(path, "rb") as file:
                magic, length = struct.unpack("<8sI", file.read(12))
                if magic != _MAGIC or length > 4096:
                    return None
                header = json.loads(file.read(length))
                count, shape = int(header["count"]), tuple(int(side) for side in header["shape"])
                shard = cls(path, shape, 12 + length + count * _KEY_BYTES, file.read(count * _KEY_BYTES))
                whole = os.fstat(file.fileno()).st_size == shard.start + count * shard._row_bytes
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return None
        return shard if whole else None

    @classmethod
    def write(cls, folder: Path, shape: tuple[int, ...], latents: dict[bytes, np.ndarray]) -> _Shard:
        """Write latents beside their place and move them there."""
        folder.mkdir(parents=True, exist_ok=True)
        header = json.dumps({"count": len(latents), "shape": shape}).encode()
        keys = b"".join(latents)
        handle, partial = tempfile.mkstemp(suffix=".partial", dir=folder)
        path = Path(partial).with_suffix(".latents")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(struct.pack("<8sI", _MAGIC, len(header)) + header + keys)
                for key, value in latents.items():
                    data = value.tobytes()
                    file.write(struct.pack("<I", zlib.crc32(data, zlib.crc32(key))) + data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise
        return cls(path, shape, 12 + len(header) + len(keys), b"")

    def without_keys(self) -> _Shard:
        """The same, once its keys are known elsewhere."""
        return _Shard(self.path, self.shape, self.start, b"")

    def read(self, row: int, key: bytes) -> np.ndarray | None:
        """One latent; None where it cannot be read, is damaged, or belongs to another key."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                data = os.pread(file.fileno(), self._row_bytes, self.start + row * self._row_bytes)
        except OSError:
            return None
        if len(data) != self._row_bytes or zlib.crc32(data[4:], zlib.crc32(key)) != struct.unpack("<I", data[:4])[0]:
            return None
        return np.frombuffer(data, np.float32, offset=4).reshape(self.shape)


def _key(pixels: Tensor) -> bytes:
    flat = pixels.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(flat.shape)} {flat.dtype} ".encode())
    digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
