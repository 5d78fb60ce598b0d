"""Preference pairs on disk: written by `vargpt prefer` and the `pairs` stage of a recipe, read by the `dpo` stage.

Invariant: a shard is there complete or not at all, and what it holds depends on the prompts of its range alone, so a
killed run that goes on ends with bytewise the same shards as an unbroken one.

    pairs.json         how the pairs are made: every shard of the folder was made like this
    pairs-00000.zip    prompts 0 to n-1: `shard.json`, then the members of each pair (`vargpt.data.pair_records`)
    pairs-00001.zip    prompts n to 2n-1, ...
    index.json         how many pairs each shard holds; written last, so its presence says that the folder is whole

Shards are ordinary zip files, stored without compression; zip keeps a checksum of every member and its directory at the
end, so a cut shard does not open and a damaged member does not read.
"""

from __future__ import annotations

import bisect
import io
import itertools
import json
import os
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vargpt.data.pair_records import DrawnImage, Pair, encode_png, from_members, image_tokenizer_hash, to_members

__all__ = ["DrawnImage", "Pair", "PairFolder", "PairWriter", "encode_png", "image_tokenizer_hash", "read_shard"]

FORMAT = 1
HEADER = "pairs.json"
INDEX = "index.json"
PROMPTS_PER_SHARD = 64
_OPEN_SHARDS = 8
_EPOCH = (1980, 1, 1, 0, 0, 0)
_DAMAGE = (zipfile.BadZipFile, OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, NotImplementedError)
"""What reading a damaged zip, or well-formed members that are no pair, raises."""


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"pairs-{number:05d}.zip"


class PairFolder:
    """The pairs of a finished folder, by number.

    Opening reads one small file; a shard is opened when one of its pairs is asked for, and the last few stay open.

    Raises:
        ValueError: for a folder that is not one of pairs or is not finished.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder}: no such folder; expected one of pairs, made by `vargpt prefer`")
        if not (self.folder / INDEX).is_file():
            state = "not finished: run the same command again to go on" if (self.folder / HEADER).is_file() else "none"
            raise ValueError(f"{self.folder}: expected a folder of preference pairs with {INDEX}, but it is {state}")
        index, header = read_json(self.folder / INDEX), read_json(self.folder / HEADER)
        try:
            _require_format(self.folder / HEADER, header["format"])
            self.settings: dict[str, Any] = header["settings"]
            self._ends = list(itertools.accumulate(int(count) for count in index["pairs"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.folder / INDEX}: not an index of pairs ({error})") from error
        self._open: OrderedDict[int, zipfile.ZipFile] = OrderedDict()
        self._process = os.getpid()

    @property
    def image_tokenizer(self) -> str | None:
        """`image_tokenizer_hash` of the tokenizer whose bits the pairs hold; None where they hold none."""
        value = self.settings.get("image_tokenizer")
        return None if value is None else str(value)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Pair:
        """The pair of that number.

        Raises:
            IndexError: beyond the last one. ValueError: for a missing, cut or damaged shard, which it names.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)} in {self.folder}")
        number = bisect.bisect_right(self._ends, index)
        first = self._ends[number - 1] if number else 0
        try:
            return from_members(self._shard(number).read, f"{index - first:05d}")
        except _DAMAGE as error:
            raise _damaged(self.folder / shard_name(number), error) from error

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))

    def _shard(self, number: int) -> zipfile.ZipFile:
        if self._process != os.getpid():  # a forked worker must not share file positions with its parent
            self._open, self._process = OrderedDict(), os.getpid()
        if number not in self._open:
            self._open[number] = zipfile.ZipFile(self.folder / shard_name(number))
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_process": -1}


class PairWriter:
    """Writes a folder of pairs, shard by shard; goes on where a killed run stopped.

    Prompts are numbered; shard k holds what came of `prompts_per_shard` prompts. Ask `next_prompt` which prompt is to
    be added next: after a restart it is the first one whose shard is not there.

        while writer.next_prompt < count:
            writer.add(make(writer.next_prompt))    # None where a prompt gave no pair
        writer.finish()

    Args:
        settings: all that decides what the pairs are (JSON values); a folder begun with others is refused.
        made_by: what is worth knowing beside them (versions, commit); not compared, each kind is listed once.
        share: (rank, world): this writer makes only the shards whose number is rank modulo world.

    Raises:
        ValueError: for a folder begun with other settings, or one with a damaged shard.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        settings: dict[str, Any] | None = None,
        made_by: dict[str, Any] | None = None,
        prompts_per_shard: int = PROMPTS_PER_SHARD,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if prompts_per_shard < 1:
            raise ValueError(f"prompts_per_shard must be at least 1, got {prompts_per_shard}")
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps({**(settings or {}), "prompts_per_shard": prompts_per_shard}))
        self.made_by = json.loads(json.dumps(made_by or {}))
        self._size, self._share = prompts_per_shard, share
        self._rows: list[tuple[Pair | None, dict[str, Any]]] = []
        self._claim()
        self._done = {number: _pairs_in(self.folder / shard_name(number)) for number in self._present()}
        self._number = share[0]
        self._skip_done()

    @property
    def next_prompt(self) -> int:
        """Number of the prompt that `add` takes next."""
        return self._number * self._size + len(self._rows)

    @property
    def room(self) -> int:
        """How many prompts, from `next_prompt` on, still go into the same shard."""
        return self._size - len(self._rows)

    def add(self, pair: Pair | None, note: dict[str, Any] | None = None) -> None:
        """Add what came of the next prompt: a pair, or None; the shard is written when its range is complete.

        Args:
            note: facts about the prompt for the report (JSON values), such as all its scores.
        """
        self._rows.append((pair, note or {}))
        if len(self._rows) == self._size:
            self._write()

    def finish(self) -> None:
        """Write the last, shorter shard and, where all shards are there, the index.

        Raises:
            ValueError: if a shard before the last one is missing (with one share; other shares write their own).
        """
        if self._rows:
            self._write()
        if self._share[1] == 1:
            write_index(self.folder)

    def _write(self) -> None:
        """Write the shard of the collected prompts."""
        members: dict[str, bytes] = {}
        pairs = [pair for pair, _ in self._rows if pair is not None]
        shard = {
            "format": FORMAT,
            "first_prompt": self._number * self._size,
            "prompts": len(self._rows),
            "pairs": len(pairs),
            "settings": self.settings,
            "outcomes": [note for _, note in self._rows],
        }
        members["shard.json"] = _json_bytes(shard)
        for ordinal, pair in enumerate(pairs):
            members |= to_members(pair, f"{ordinal:05d}")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, data in members.items():
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, data)
        write_durably(self.folder / shard_name(self._number), buffer.getvalue())
        self._done[self._number] = len(pairs)
        self._rows = []
        self._skip_done()

    def _skip_done(self) -> None:
        rank, world = self._share
        while self._number in self._done or self._number % world != rank:
            self._number += 1

    def _present(self) -> list[int]:
        return [int(path.stem.removeprefix("pairs-")) for path in sorted(self.folder.glob("pairs-*.zip"))]

    def _claim(self) -> None:
        """Write the header, or check that the one there says the same."""
        path = self.folder / HEADER
        if path.is_file():
            header = read_json(path)
            _require_format(path, header.get("format"))
            require_same(self.folder, header.get("settings", {}), self.settings)
            known = header.get("made_by", [])
            if self.made_by in known:
                return
            write_durably(path, _json_bytes({**header, "made_by": [*known, self.made_by]}, indent=1))
            return
        if self.folder.is_dir() and any(self.folder.glob("pairs-*.zip")):
            raise ValueError(f"{self.folder}: has shards but no {HEADER}; choose another output folder")
        document = {"format": FORMAT, "settings": self.settings, "made_by": [self.made_by]}
        write_durably(path, _json_bytes(document, indent=1))


def require_same(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to mix pairs that were made differently.

    Raises:
        ValueError: naming the first setting that differs, with both values.
    """
    for name in (*old, *new):
        if old.get(name) != new.get(name):
            raise ValueError(
                f"{folder} was begun with another {name}: {old.get(name)} there, {new.get(name)} now; choose another "
                "output folder, or give the same settings to go on"
            )


def read_shard(path: Path) -> dict[str, Any]:
    """What a shard says about itself (`shard.json`).

    Raises:
        ValueError: for a missing, cut or damaged shard, which it names.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            shard: dict[str, Any] = json.loads(archive.read("shard.json"))
            entries = sum(name.endswith(".json") for name in archive.namelist()) - 1
            if shard["pairs"] != entries or shard["prompts"] != len(shard["outcomes"]):
                raise ValueError(f"it lists {shard['pairs']} pairs and holds {entries}")
            return shard
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def shards(folder: Path) -> list[dict[str, Any]]:
    """`read_shard` of all shards in order.

    Raises:
        ValueError: for a gap, or a damaged shard.
    """
    names = sorted(path.name for path in folder.glob("pairs-*.zip"))
    for number, name in enumerate(names):
        if name != shard_name(number):
            raise ValueError(f"{folder}: {shard_name(number)} is missing; run the same command again to make it")
    return [read_shard(folder / name) for name in names]


def write_index(folder: Path) -> None:
    """Declare a folder whole: count the pairs of its shards.

    Raises:
        ValueError: for a gap, a damaged shard, or one that is too short and not the last.
    """
    found = shards(folder)
    for number, shard in enumerate(found[:-1]):
        if shard["prompts"] != shard["settings"]["prompts_per_shard"]:
            raise ValueError(
                f"{folder / shard_name(number)}: holds {shard['prompts']} of "
                f"{shard['settings']['prompts_per_shard']} prompts though it is not the last; delete it and go on"
            )
    write_durably(folder / INDEX, _json_bytes({"pairs": [shard["pairs"] for shard in found]}))


def write_durably(path: Path, data: bytes) -> None:
    """Write a file beside its place, sync it to the disk and put it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: in one line, where there is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _pairs_in(path: Path) -> int:
    return int(read_shard(path)["pairs"])


def _require_format(path: Path, value: Any) -> None:
    if value != FORMAT:
        raise ValueError(f"{path}: expected pairs of format {FORMAT}, got {value!r}")


def _damaged(path: Path, error: BaseException) -> ValueError:
    if isinstance(error, FileNotFoundError):
        return ValueError(f"{path}: this shard is missing; run the command that made the folder again to make it")
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return ValueError(
        f"{path}: truncated or damaged shard ({reason}); delete it and run the command that made the folder again"
    )


def _json_bytes(value: Any, indent: int | None = None) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n").encode("utf-8")
