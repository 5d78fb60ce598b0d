"""Data folders: layout, broken lines, and a split without leaks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vargpt.data.folder import ImageFolder, read_folder
from vargpt.data.schema import EditRecord, ImageRecord, read_jsonl


def write(folder: Path, names: list[str], edits: list[tuple[str, str]] = (), inner: str = "") -> Path:  # type: ignore[assignment]
    root = folder / inner
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(root / name)
    lines = [json.dumps({"file_name": name, "text": name.removesuffix(".png")}) for name in names]
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    if edits:
        rows = [json.dumps({"source": a, "target": b, "instruction": "change it"}) for a, b in edits]
        (folder / "edits.jsonl").write_text("\n".join(rows))
    return folder


@pytest.mark.parametrize("inner", ["", "images"])
def test_both_layouts_are_read(tmp_path: Path, inner: str):
    data = read_folder(write(tmp_path, ["a.png", "b.png"], [("a.png", "b.png")], inner))
    assert data.root == tmp_path / inner
    assert data.captions == {"a.png": "a", "b.png": "b"}
    assert [edit.target for edit in data.edits] == ["b.png"]
    assert data.load("a.png").size == (8, 8)


def test_edits_beside_the_images_are_found(tmp_path: Path):
    write(tmp_path, ["a.png", "b.png"], [("a.png", "b.png")], "images")
    (tmp_path / "edits.jsonl").rename(tmp_path / "images" / "edits.jsonl")
    assert len(read_folder(tmp_path).edits) == 1


def test_edits_are_optional(tmp_path: Path):
    assert read_folder(write(tmp_path, ["a.png"])).edits == ()


GOOD = '{"file_name": "a.png", "text": "a"}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a line of JSON"),
        ("[1]", "expected a JSON object, got list"),
        ('{"text": "x"}', "file_name: Field required"),
        ('{"file_name": "b.png"}', "text: Field required"),
        ('{"file_name": "b.png", "text": 3}', "text: Input should be a valid string"),
        ('{"file_name": "b.png", "text": "  "}', "text: must not be empty"),
        ('{"file_name": "../b.png", "text": "x"}', "file_name: must be a file name inside"),
        ('{"file_name": "/etc/b.png", "text": "x"}', "file_name: must be a file name inside"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str, reason: str):
    write(tmp_path, ["a.png"])
    path = tmp_path / "metadata.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(ValueError, match=reason) as caught:
        read_folder(tmp_path)
    assert str(caught.value).startswith(f"{path}:3: ") and "\n" not in str(caught.value)


def test_text_that_is_not_utf8_is_named(tmp_path: Path):
    write(tmp_path, ["a.png"])
    (tmp_path / "metadata.jsonl").write_bytes(GOOD.encode() + b'\n{"file_name": "\xff"}')
    with pytest.raises(ValueError, match=r"metadata\.jsonl:2: not UTF-8"):
        read_folder(tmp_path)


def test_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path):
    write(tmp_path, ["a.png"])
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n")
    assert read_folder(tmp_path).captions == {"a.png": "a"}


def test_folder_mistakes_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="no such folder"):
        read_folder(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no metadata\.jsonl here or in images/"):
        read_folder(tmp_path)
    write(tmp_path, ["a.png"])
    (tmp_path / "metadata.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="lists no image"):
        read_folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(f"{GOOD}\n{GOOD}\n")
    with pytest.raises(ValueError, match=r"a\.png is listed more than once"):
        read_folder(tmp_path)
    (tmp_path / "metadata.jsonl").write_text(GOOD)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"1 listed images do not exist, the first is .*a\.png"):
        read_folder(tmp_path)
    with pytest.raises(ValueError, match="validation_fraction"):
        read_folder(tmp_path, validation_fraction=1.0)


def test_edits_of_unknown_images_and_broken_images_are_named(tmp_path: Path):
    write(tmp_path, ["a.png"], [("a.png", "z.png")])
    with pytest.raises(ValueError, match=r"edits\.jsonl: z\.png is not an image"):
        read_folder(tmp_path)
    (tmp_path / "edits.jsonl").unlink()
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing else")
    data = read_folder(tmp_path)
    with pytest.raises(ValueError, match=r"a\.png: "):
        data.load("a.png")


NAMES = [f"{index}.png" for index in range(400)]
PAIRS = tuple(
    EditRecord(source=f"{a}.png", target=f"{(a * 7 + b) % 400}.png", instruction="x")
    for a in range(400)
    for b in (1, 2)
)
FOLDER = ImageFolder(Path("nowhere"), tuple(ImageRecord(file_name=name, text="x") for name in NAMES), PAIRS, 0.1)


def test_no_validation_image_is_in_any_training_pair():
    held = {record.file_name for record in FOLDER.split_images("validation")}
    assert 20 < len(held) < 60
    for edit in FOLDER.split_edits("train"):
        assert not held.intersection((edit.source, edit.target))


def test_parts_are_disjoint_complete_and_include_the_inverse():
    parts = [FOLDER.split_edits(part) for part in ("train", "validation", "unused")]
    assert sum(map(len, parts)) == len(PAIRS) and all(parts)
    held = {(edit.source, edit.target) for edit in parts[1]}
    for edit in PAIRS:
        inverse = EditRecord(source=edit.target, target=edit.source, instruction="back")
        assert FOLDER.edit_part(inverse) == FOLDER.edit_part(edit)
    assert not held.intersection((edit.source, edit.target) for edit in parts[0])


def test_split_does_not_depend_on_other_files():
    fewer = ImageFolder(Path("elsewhere"), FOLDER.images[:50], (), 0.1)
    assert [fewer.image_part(name) for name in NAMES] == [FOLDER.image_part(name) for name in NAMES]
    held = [name for name in NAMES[:60] if FOLDER.image_part(name) == "validation"]
    assert held == ["0.png", "6.png", "8.png", "33.png", "40.png", "42.png"]


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=120).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_read_or_named(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(data)
    complaint = None
    try:
        read_jsonl(path, ImageRecord)
    except ValueError as error:
        complaint = str(error)
    assert complaint is None or re.match(rf"{re.escape(str(path))}:\d+: ", complaint)


def test_the_emoji_folder_reads(shared: Path):
    folder = shared / "data" / "noto-emoji"
    if not folder.is_dir():
        pytest.skip(f"no emoji set at {folder}")
    data = read_folder(folder)
    assert (len(data.images), len(data.edits)) == (3343, 7661)
    assert data.load(data.images[0].file_name).size == (128, 128)
