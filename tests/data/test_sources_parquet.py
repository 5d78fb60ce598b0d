"""Parquet files: captioned images and conversations, by row group; damage is named."""

from __future__ import annotations

import builtins
import io
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vargpt.data.instructions import canonical_caption, canonical_draw
from vargpt.data.order import ShardedPermutation
from vargpt.data.sources import shuffled
from vargpt.data.sources.open import open_source
from vargpt.data.sources.parquet import ParquetSource
from vargpt.data.sources.policy import CheckedSource
from vargpt.data.sources.protocol import BrokenSample
from vargpt.processing.conversation import Conversation, DrawPart, ImagePart, assistant, user
from vargpt.training.recipes.schema import SourceSection

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def picture(colour: str) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, "PNG")
    return data.getvalue()


RED, BLUE = picture("red"), picture("blue")
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def table(path: Path, columns: dict[str, list[Any]], rows: int = 2) -> Path:
    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows)
    return path


def opened(folder: Path, on_error: str = "stop") -> CheckedSource:
    settings = SourceSection.model_validate({"format": "parquet", "path": ".", "on_error": on_error})
    return open_source("web", settings, folder)


def plain(folder: Path) -> ParquetSource:
    return ParquetSource("web", sorted(folder.glob("*.parquet")), folder)


def sample(source: Any, index: int, task: str = "draw") -> Any:
    return source.sample(task, index, random.Random(0), 0.0)


@pytest.mark.parametrize("words", ["text", "caption"])
@pytest.mark.parametrize("as_struct", [False, True])
def test_captioned_images(tmp_path: Path, words: str, as_struct: bool):
    def cell(data: bytes) -> Any:
        return {"bytes": data, "path": None} if as_struct else data

    table(tmp_path / "a.parquet", {"image": [cell(RED)] * 5, words: [f"thing {n}" for n in range(5)], "x": [1] * 5})
    table(tmp_path / "b.parquet", {words: [" six "], "image": [cell(BLUE)]})
    source = plain(tmp_path)
    assert source.tasks == {"draw", "caption"} and source.shards("draw") == [2, 2, 1, 1]
    assert isinstance(shuffled(source, "draw", 0), ShardedPermutation)
    assert sample(source, 3).key == "a.parquet row group 1 row 2"
    assert sample(source, 3).conversation == canonical_draw("thing 3", RED)
    assert sample(source, 5, "caption").conversation == canonical_caption(BLUE, "six")
    with pytest.raises(ValueError, match="has 6 samples for 'draw', got index 6"):
        sample(source, 6)


@pytest.mark.parametrize("spelling", ["messages", "conversations"])
def test_conversations(tmp_path: Path, spelling: str):
    turns: list[dict[str, str]] = [
        {"role": "user", "content": "<image> in blue"},
        {"role": "assistant", "content": "Done. <image_gen>"},
    ]
    if spelling == "conversations":
        turns = [{"from": {"user": "human"}.get(t["role"], "gpt"), "value": t["content"]} for t in turns]
    table(tmp_path / "a.parquet", {spelling: [turns], "images": [[{"bytes": RED}, {"bytes": BLUE}]]})
    expected = (user(ImagePart(image=RED), " in blue"), assistant("Done. ", DrawPart(image=BLUE)))
    assert sample(plain(tmp_path), 0, "chat").conversation == Conversation(messages=expected)


def test_conversations_without_images_and_images_by_path(tmp_path: Path):
    table(tmp_path / "a.parquet", {"messages": [TALK]})
    assert sample(plain(tmp_path), 0, "chat").conversation == Conversation(messages=(user("hi"), assistant("ho")))
    (tmp_path / "red.png").write_bytes(RED)
    table(tmp_path / "a.parquet", {"image": [{"bytes": None, "path": "red.png"}], "text": ["red"]})
    assert sample(plain(tmp_path), 0).conversation == canonical_draw("red", tmp_path / "red.png")


BROKEN = [
    ({"image": b"no image", "text": "x"}, "not an image in a known format"),
    ({"image": RED[:-30], "text": "x"}, "truncated or damaged"),
    ({"image": None, "text": "x"}, "must be given by its file name, got None"),
    ({"image": b"", "text": "x"}, "must be given by its file name"),
    ({"image": RED, "text": " "}, "has no caption"),
    ({"image": RED, "text": None}, "has no caption"),
]


@pytest.mark.parametrize("row, reason", BROKEN)
def test_a_broken_row_is_named_and_skipped(
    tmp_path: Path, row: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
):
    rows = [row, {"image": RED, "text": "good"}]
    table(tmp_path / "a.parquet", {column: [row[column] for row in rows] for column in ("image", "text")})
    with pytest.raises(BrokenSample) as error:
        sample(opened(tmp_path), 0)
    assert str(error.value).startswith("source 'web', a.parquet row group 0 row 1: ") and reason in str(error.value)
    assert sample(opened(tmp_path, "skip"), 0).key == "a.parquet row group 0 row 2"
    assert reason in capsys.readouterr().err


def test_a_path_that_leads_out_is_refused(tmp_path: Path):
    table(tmp_path / "a.parquet", {"image": [{"bytes": None, "path": "../red.png"}], "text": ["red"]})
    with pytest.raises(BrokenSample, match="outside the images folder"):
        sample(plain(tmp_path), 0)


@pytest.mark.parametrize("damage", [lambda data: data[:-10], lambda data: b"junk" * 9, lambda data: b""])
def test_a_damaged_file_is_named_and_left_out(tmp_path: Path, damage: Any):
    path = table(tmp_path / "a.parquet", {"image": [RED], "text": ["x"]})
    table(tmp_path / "b.parquet", {"image": [RED], "text": ["y"]})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BrokenSample, match=r"a.parquet: not a whole parquet file"):
        opened(tmp_path)
    source = opened(tmp_path, "skip")
    assert source.count("draw") == 1 and source.broken.summary().records == 1


def test_a_damaged_row_group_is_named(tmp_path: Path):
    path = table(tmp_path / "a.parquet", {"image": [RED] * 4, "text": ["some words"] * 4})
    data = bytearray(path.read_bytes())
    data[4:60] = b"\xff" * 56
    path.write_bytes(bytes(data))
    with pytest.raises(BrokenSample, match=r"a.parquet row group 0 row 1: the row group cannot be read"):
        sample(plain(tmp_path), 0)
    assert sample(plain(tmp_path), 2).key == "a.parquet row group 1 row 1"


def test_columns_that_do_not_fit_are_named(tmp_path: Path):
    table(tmp_path / "a.parquet", {"picture": [RED], "text": ["x"]})
    with pytest.raises(ValueError, match=r"expected the columns image and text .* got picture, text"):
        plain(tmp_path)
    table(tmp_path / "a.parquet", {"image": [RED], "text": ["x"]})
    table(tmp_path / "b.parquet", {"image": [RED], "caption": ["x"]})
    with pytest.raises(ValueError, match=r"b.parquet: has the columns \['caption', 'image'\], but the first file has"):
        plain(tmp_path)


def test_a_file_that_changes_is_named(tmp_path: Path):
    path = table(tmp_path / "a.parquet", {"image": [RED] * 4, "text": ["x"] * 4})
    source = plain(tmp_path)
    sample(source, 0)
    table(path, {"image": [BLUE] * 6, "text": ["longer"] * 6})
    with pytest.raises(ValueError, match=r"a.parquet: has changed since it was opened"):
        sample(source, 3)


def test_without_pyarrow_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table(tmp_path / "a.parquet", {"image": [RED], "text": ["x"]})
    real = builtins.__import__

    def missing(name: str, *arguments: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"pip install 'vargpt\[data\]'"):
        plain(tmp_path)


def test_row_groups_are_forgotten_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table(tmp_path / "a.parquet", {"image": [RED] * 8, "text": ["x"] * 8})
    source = plain(tmp_path)
    monkeypatch.setattr("vargpt.data.sources.parquet._KEPT_BYTES", 500)
    for index in range(8):
        sample(source, index)
    assert len(source._kept) < 4
