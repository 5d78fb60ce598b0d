"""Records of JSON lines and of one big JSON array, by number, without reading the file into memory.

Invariant: opening costs one pass over the file the first time and nothing later; reading a record parses that record
alone. A JSON array is indexed in place, element by element, with a buffer of a few megabytes: no copy of the file is
made, and an array of any size opens in the same memory.
"""

from __future__ import annotations

import codecs
import json
from array import array
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vargpt.data.sources.index_file import Index, load_or_build, read_ranges

MAX_RECORD_BYTES = 64 * 1024 * 1024
_CHUNK = 4 * 1024 * 1024
_BOM = codecs.BOM_UTF8
_SPACE = " \t\r\n"
_NUMBER = "0123456789.eE+-"
_LONGEST_NUMBER = 5000
"""A number may go on in the next chunk, where one of these characters, or nothing yet, comes next."""


class BrokenRecord(ValueError):
    """A record that cannot be used; the message is the reason alone."""


def parse_json(data: bytes, label: str = "JSON") -> Any:
    """Parse strict JSON: UTF-8, no key twice in an object.

    Raises:
        BrokenRecord: with what is wrong.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_distinct)
    except UnicodeDecodeError as error:
        raise BrokenRecord(f"not UTF-8 text (byte {error.start} of the record)") from error
    except BrokenRecord:
        raise
    except (ValueError, RecursionError) as error:
        raise BrokenRecord(f"not {label} ({error})") from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BrokenRecord(f"the key {twice!r} comes twice in an object")
    return found


class RecordFile:
    """JSON objects of a file: JSON lines (blank lines are skipped), or one array; told apart by the first character.

    Attributes:
        problem: what is wrong with the file as a whole (it ends in the middle, say), or None. The records before that
            can be read.
    """

    def __init__(self, path: Path, label: str | None = None) -> None:
        """Args: label: what to call the file in keys; its name by default."""
        self.path, self.label = path, label or path.name
        index = load_or_build(path, "records-1", _build)
        self._starts, self._ends, self._lines = (index.arrays[name] for name in ("starts", "ends", "lines"))
        self._stamp = index.stamp
        self.problem: str | None = index.facts["problem"]

    def __len__(self) -> int:
        return len(self._starts)

    def key(self, number: int) -> str:
        """What to call a record: file and line, or file and record number (from 1) in an array."""
        if len(self._lines):
            return f"{self.label}:{self._lines[number]}"
        return f"{self.label} record {number + 1}"

    def read(self, number: int) -> dict[str, Any]:
        """Parse one record.

        Raises:
            BrokenRecord: if it is not a JSON object.
        """
        start, end = int(self._starts[number]), int(self._ends[number])
        if end - start > MAX_RECORD_BYTES:
            raise BrokenRecord(f"{end - start:,} bytes, the limit for a record is {MAX_RECORD_BYTES:,}")
        (data,) = read_ranges(self.path, self._stamp, [(start, end - start)])
        value = parse_json(data, "a JSON record")
        if not isinstance(value, dict):
            raise BrokenRecord(f"expected a JSON object, got {_json_name(value)}")
        return value


def _json_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _build(path: Path) -> Index:
    with open(path, "rb") as file:
        start = file.read(4096).removeprefix(_BOM).lstrip()
    arrays, problem = _array_index(path) if start.startswith(b"[") else _lines_index(path)
    return Index(arrays, {"problem": problem})


def _lines_index(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """Starts, ends and line numbers (from 1) of the lines that are not blank."""
    starts, ends, lines = array("q"), array("q"), array("q")
    with open(path, "rb") as file:
        begin = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        file.seek(0)
        offset = number = 0
        while chunk := file.read(_CHUNK):
            breaks = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + offset
            if len(breaks):
                begins = np.concatenate(([begin], breaks[:-1] + 1))
                keep = breaks - begins > 0
                starts.frombytes(begins[keep].astype(np.int64).tobytes())
                ends.frombytes(breaks[keep].astype(np.int64).tobytes())
                lines.frombytes((np.flatnonzero(keep) + number + 1).astype(np.int64).tobytes())
                begin, number = int(breaks[-1]) + 1, number + len(breaks)
            offset += len(chunk)
        if offset > begin:
            starts.append(begin)
            ends.append(offset)
            lines.append(number + 1)
        found = {name: np.frombuffer(values, np.int64) for name, values in zip(
            ("starts", "ends", "lines"), (starts, ends, lines), strict=True)}  # fmt: skip
        short = np.flatnonzero(found["ends"] - found["starts"] < 16).tolist()
        dropped = [row for row in short if not _line(file, found, row)]
        problem = None
        if len(found["ends"]) and found["ends"][-1] == offset:  # no line break after the last line: is it whole?
            try:
                parse_json(_line(file, found, -1), "a JSON record")
            except BrokenRecord as error:
                problem = f"line {found['lines'][-1]}: the file may end in the middle: {error}"
                dropped.append(len(found["ends"]) - 1)
    return {name: np.delete(values, dropped) for name, values in found.items()}, problem


def _line(file: BinaryIO, found: dict[str, np.ndarray], row: int) -> bytes:
    """A line without the white space around it (the start of it, if it is absurdly long)."""
    start, end = int(found["starts"][row]), int(found["ends"][row])
    file.seek(start)
    return file.read(min(end - start, MAX_RECORD_BYTES)).strip()


def _array_index(path: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """Starts and ends of the elements of a JSON array; each is parsed once on the way, so a damaged file is found."""
    starts, ends = array("q"), array("q")
    problem = None
    with open(path, "rb") as file:
        window = _Window(file)
        window.skip_space()
        window.take("[")
        try:
            window.skip_space()
            closed = window.next_is("]")
            while not closed:
                start, end = window.element(len(starts) + 1)
                starts.append(start)
                ends.append(end)
                window.skip_space()
                if not (closed := window.next_is("]")):
                    window.take(",")
                    window.skip_space()
            window.take("]")
            window.skip_space()
            if window.peek():
                raise BrokenRecord(f"something follows the end of the array at byte {window.place:,}")
        except BrokenRecord as error:
            problem = str(error)
    arrays = {"starts": np.frombuffer(starts, np.int64), "ends": np.frombuffer(ends, np.int64)}
    return {**arrays, "lines": np.empty(0, np.int64)}, problem


class _Window:
    """The text of a file from a place on, read as needed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        # Bytes that are not UTF-8 are kept as surrogates, so that they spoil their own record only, when it is read.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._json = json.JSONDecoder()
        self._text, self._at, self._done = "", 0, False
        self.place = 0
        if self.peek() == "\ufeff":
            self._move(1)

    def _more(self) -> bool:
        """Read on; False at the end of the file."""
        if self._done:
            return False
        chunk = self._file.read(max(_CHUNK, len(self._text) - self._at))
        self._done = not chunk
        self._text, self._at = self._text[self._at :] + self._decoder.decode(chunk, final=self._done), 0
        return not self._done

    def _move(self, characters: int) -> None:
        passed = self._text[self._at : self._at + characters]
        self.place += len(passed) if passed.isascii() else len(passed.encode("utf-8", "surrogateescape"))
        self._at += characters

    def peek(self) -> str:
        """The next character, "" at the end."""
        while self._at >= len(self._text):
            if not self._more():
                return ""
        return self._text[self._at]

    def next_is(self, mark: str) -> bool:
        """Whether a character comes next."""
        return self.peek() == mark

    def skip_space(self) -> None:
        """Go to the next character that is not white space."""
        while (character := self.peek()) and character in _SPACE:
            self._move(1)

    def take(self, mark: str) -> None:
        """Go past a character that must come next."""
        found = self.peek()
        if not found:
            raise BrokenRecord(f"the file ends in the middle, after {self.place:,} bytes: expected {mark!r}")
        if found != mark:
            raise BrokenRecord(f"not JSON: expected {mark!r} at byte {self.place:,}, got {found!r}")
        self._move(1)

    def element(self, number: int) -> tuple[int, int]:
        """Go past a whole value and return the bytes where it starts and ends."""
        start = self.place
        while True:
            try:
                _, end = self._json.raw_decode(self._text, self._at)
                rest = self._text[end : end + _LONGEST_NUMBER]
                if (
                    self._text[end - 1] in '}]"'
                    or self._done
                    or rest[:1].strip(_NUMBER)
                    or len(rest) == _LONGEST_NUMBER
                ):
                    break
            except (ValueError, RecursionError) as error:
                if len(self._text) - self._at > MAX_RECORD_BYTES:
                    reason = f"not JSON or longer than {MAX_RECORD_BYTES:,} bytes"
                    raise BrokenRecord(f"record {number} (byte {start:,}): {reason}") from error
                if self._done:
                    reason = f"not JSON, or the file ends in the middle of it ({error})"
                    raise BrokenRecord(f"record {number} (byte {start:,}): {reason}") from error
            self._more()
        self._move(end - self._at)
        return start, self.place
