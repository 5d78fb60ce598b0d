"""What lies where in a tar shard: one pass over its headers.

Invariant: every record of the index is whole: all its members lie inside the file, and it has an image and words, or a
JSON member. What is not, is named in the problems.

A record is a run of members whose names agree up to the first dot of the file name: `dir/0007.jpg`, `dir/0007.txt`.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vargpt.data.sources.index_file import Index

VERSION = "tar-1"
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "avif", "jp2", "ppm", "pgm"})
_BLOCK = 512
_NAMED_PROBLEMS = 20
_MAX_NAME_BYTES = 1 << 20
_MAX_MEMBER_BYTES = 2**32 - 1
_PAX = re.compile(rb"(\d+) ([^=\n]+)=")


@dataclass
class _Shard:
    """Columns of the index as they grow."""

    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    suffixes: array[int] = field(default_factory=lambda: array("H"))
    firsts: array[int] = field(default_factory=lambda: array("q", [0]))
    keys: bytearray = field(default_factory=bytearray)
    key_ends: array[int] = field(default_factory=lambda: array("q", [0]))
    hashes: array[int] = field(default_factory=lambda: array("q"))
    suffix_numbers: dict[str, int] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    problem_count: int = 0

    def problem(self, key: str, reason: str) -> None:
        self.problem_count += 1
        if len(self.problems) < _NAMED_PROBLEMS:
            self.problems.append((key, reason))

    def add(self, key: str, members: list[tuple[str, int, int]]) -> None:
        """Add a record of members (suffix, offset, size), or say why it cannot be used."""
        suffixes = [suffix for suffix, _, _ in members]
        if len(set(suffixes)) < len(suffixes):
            self.problem(key, "has two members of the same name")
        elif "json" not in suffixes and not is_captioned(suffixes):
            self.problem(key, f"expected an image and a .txt or .json, got {', '.join(suffixes)}")
        else:
            for suffix, offset, size in members:
                self.offsets.append(offset)
                self.sizes.append(size)
                self.suffixes.append(self.suffix_numbers.setdefault(suffix, len(self.suffix_numbers)))
            self.firsts.append(len(self.offsets))
            self.keys += os.fsencode(key)
            self.key_ends.append(len(self.keys))
            self.hashes.append(hash(key))

    def key(self, number: int) -> bytes:
        return bytes(self.keys[self.key_ends[number] : self.key_ends[number + 1]])


def is_captioned(suffixes: list[str]) -> bool:
    """Whether members are an image and words about it."""
    return "txt" in suffixes and any(is_image(suffix) for suffix in suffixes)


def is_image(suffix: str) -> bool:
    """Whether a suffix is one of an image (`jpg`, `source.png`)."""
    return suffix.rpartition(".")[2] in IMAGE_SUFFIXES


def build(path: Path) -> Index:
    """Scan a shard.

    Arrays: `offsets`, `sizes`, `suffixes` by member; `firsts` (first member) and `key_ends` by record, with an end;
    `keys`. Facts: `records`, `suffixes` by number, `problems` (the first ones) and `problem_count`.
    """
    shard = _Shard()
    with open(path, "rb") as file:
        group: list[tuple[str, int, int]] = []
        current: str | None = None
        for name, offset, size in _members(file, shard):
            folder, _, base = name.rpartition("/")
            if base.startswith((".", "__")):
                continue
            stem, dot, suffix = base.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if not dot:
                shard.problem(name, "the member's name has no suffix")
                continue
            if key != current and current is not None:
                shard.add(current, group)
                group = []
            current = key
            group.append((suffix.lower(), offset, size))
        if current is not None:
            shard.add(current, group)
    return _finished(shard)


def _finished(shard: _Shard) -> Index:
    firsts, key_ends = np.frombuffer(shard.firsts, np.int64), np.frombuffer(shard.key_ends, np.int64)
    keep = np.ones(len(firsts) - 1, bool)
    order = np.argsort(np.frombuffer(shard.hashes, np.int64), kind="stable")
    same = np.flatnonzero(np.diff(np.frombuffer(shard.hashes, np.int64)[order]) == 0)
    for place in same:
        first, again = sorted((int(order[place]), int(order[place + 1])))
        if shard.key(first) == shard.key(again):
            keep[again] = False
            shard.problem(os.fsdecode(shard.key(again)), "the key comes again later in the shard")
    members = np.repeat(keep, np.diff(firsts))
    letters = np.repeat(keep, np.diff(key_ends))
    arrays = {
        "offsets": np.frombuffer(shard.offsets, np.int64)[members],
        "sizes": np.frombuffer(shard.sizes, np.int64)[members].astype(np.uint32),
        "suffixes": np.frombuffer(shard.suffixes, np.uint16)[members],
        "firsts": np.concatenate(([0], np.cumsum(np.diff(firsts)[keep]))).astype(np.uint32),
        "key_ends": np.concatenate(([0], np.cumsum(np.diff(key_ends)[keep]))).astype(np.uint32),
        "keys": np.frombuffer(bytes(shard.keys), np.uint8)[letters],
    }
    facts = {
        "records": int(keep.sum()),
        "suffixes": list(shard.suffix_numbers),
        "problems": shard.problems,
        "problem_count": shard.problem_count,
    }
    return Index(arrays, facts)


def _members(file: BinaryIO, shard: _Shard) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of the ordinary files of an archive; damage ends it and is named."""
    total = os.fstat(file.fileno()).st_size
    place, name, size_override = 0, "", None
    while True:
        file.seek(place)
        header = file.read(_BLOCK)
        if not header.strip(b"\0"):
            _check_end(file, place, len(header), total, shard)
            return
        if len(header) < _BLOCK:
            return shard.problem("the shard", f"ends in the middle of a header, at byte {place:,}")
        size = _size(header)
        if size is None or not _checksum_fits(header):
            return shard.problem("the shard", f"not a tar header at byte {place:,}: what follows cannot be read")
        kind, own_name = header[156:157], name or _name(header)
        regular = kind in b"0\0" + b"7"
        if regular and size_override is not None:
            size = size_override
        offset = place + _BLOCK
        place = offset + -(-size // _BLOCK) * _BLOCK
        if offset + size > total:
            return shard.problem(own_name, f"the shard ends in the middle of it, at byte {total:,}")
        if kind in b"Lx":
            if size > _MAX_NAME_BYTES:
                return shard.problem("the shard", f"a member's name of {size:,} bytes at byte {offset:,}")
            data = file.read(size)
            name, size_override = (os.fsdecode(data.rstrip(b"\0")), None) if kind == b"L" else _pax(data)
            continue
        name, size_override = "", None
        if regular and size > _MAX_MEMBER_BYTES:
            shard.problem(own_name, f"{size:,} bytes, the limit for a member is {_MAX_MEMBER_BYTES:,}")
        elif regular:
            yield own_name.removeprefix("./"), offset, size
        elif kind in b"12":
            shard.problem(own_name, "is a link, expected a file")


def _check_end(file: BinaryIO, place: int, read: int, total: int, shard: _Shard) -> None:
    """At a zero block, or the end of the file: there must be two zero blocks and nothing behind them."""
    file.seek(place)
    rest = file.read(1 << 20)
    if len(rest) < 2 * _BLOCK:
        shard.problem("the shard", f"has no end mark: it may be cut after byte {place:,}")
    elif rest.strip(b"\0"):
        shard.problem("the shard", f"something follows its end mark at byte {place:,}")


def _name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return os.fsdecode(prefix + b"/" + name if prefix else name)


def _size(header: bytes) -> int | None:
    raw = header[124:136]
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    digits = raw.strip(b" \0")
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return None


def _checksum_fits(header: bytes) -> bool:
    try:
        expected = int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        return False
    return sum(header) - sum(header[148:156]) + 8 * 32 == expected


def _pax(data: bytes) -> tuple[str, int | None]:
    """Path and size from the records of an extended header, where it has them."""
    name, size, at = "", None, 0
    while match := _PAX.match(data, at):
        end = at + int(match[1])
        value = data[match.end() : end - 1]
        if match[2] == b"path":
            name = os.fsdecode(value)
        elif match[2] == b"size" and value.isdigit():
            size = int(value)
        at = max(end, match.end())
    return name, size
