"""Tar shards: what is found in them, what is read, and every way in which a shard can be damaged."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vargpt.data.instructions import canonical_caption, canonical_draw
from vargpt.data.order import ShardedPermutation
from vargpt.data.sources import shuffled, tar_index
from vargpt.data.sources.open import open_source
from vargpt.data.sources.policy import CheckedSource
from vargpt.data.sources.protocol import BrokenSample
from vargpt.data.sources.tar import TarSource
from vargpt.processing.conversation import Conversation, DrawPart, ImagePart, assistant, user
from vargpt.training.recipes.schema import SourceSection


def picture(colour: str = "red", kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, kind)
    return data.getvalue()


RED, BLUE = picture("red"), picture("blue", "JPEG")


def shard(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def captioned(*keys: str) -> list[tuple[str, bytes]]:
    return [item for key in keys for item in ((f"{key}.png", RED), (f"{key}.txt", f"thing {key}".encode()))]


def opened(folder: Path, on_error: str = "stop") -> CheckedSource:
    settings = SourceSection.model_validate({"format": "tar", "path": "*.tar", "on_error": on_error})
    return open_source("web", settings, folder)


def plain(folder: Path) -> TarSource:
    return TarSource("web", sorted(folder.glob("*.tar")))


def keys(source: Any, task: str = "draw") -> list[str]:
    return [source.sample(task, index, random.Random(0), 0.0).key for index in range(source.count(task))]


def test_captioned_images(tmp_path: Path):
    shard(tmp_path / "a.tar", captioned("000", "001"))
    shard(
        tmp_path / "b.tar", [("x/7.JPG", BLUE), ("x/7.json", b'{"caption": " seven ", "width": 8}'), ("x/7.cls", b"3")]
    )
    source = plain(tmp_path)
    assert source.tasks == {"draw", "caption"} and source.problems == []
    assert (source.count("draw"), source.count("caption"), source.count("chat")) == (3, 3, 0)
    assert source.shards("draw") == [2, 1]
    assert keys(source) == ["a.tar/000", "a.tar/001", "b.tar/x/7"]
    assert source.sample("draw", 1, random.Random(0), 0.0).conversation == canonical_draw("thing 001", RED)
    assert source.sample("caption", 2, random.Random(0), 0.0).conversation == canonical_caption(BLUE, "seven")
    with pytest.raises(ValueError, match="has 3 samples for 'draw', got index 3"):
        source.sample("draw", 3, random.Random(0), 0.0)


def test_images_of_shards_arrive_decoded(tmp_path: Path):
    shard(tmp_path / "a.tar", captioned("000"))
    image = opened(tmp_path).sample("draw", 0, random.Random(0), 0.0).conversation.drawings[0].image
    assert isinstance(image, Image.Image) and image.getpixel((0, 0)) == (255, 0, 0)


def test_conversations_with_their_images(tmp_path: Path):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": "source.png"}, {"type": "text", "text": "in blue"}]},
        {"role": "assistant", "content": [{"type": "image_gen", "image": "target.jpg"}]},
    ]
    record = json.dumps({"messages": messages}).encode()
    talk = json.dumps(
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    ).encode()
    shard(tmp_path / "a.tar", [("1.source.png", RED), ("1.target.jpg", BLUE), ("1.json", record), ("2.json", talk)])
    source = plain(tmp_path)
    assert source.tasks == {"chat"} and keys(source, "chat") == ["a.tar/1", "a.tar/2"]
    expected = (user(ImagePart(image=RED), "in blue"), assistant(DrawPart(image=BLUE)))
    assert source.sample("chat", 0, random.Random(0), 0.0).conversation == Conversation(messages=expected)


def test_shards_are_shuffled_by_windows(tmp_path: Path):
    for name in ("a", "b"):
        shard(tmp_path / f"{name}.tar", captioned("0", "1"))
    assert isinstance(shuffled(plain(tmp_path), "draw", seed=0), ShardedPermutation)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_of_every_tar_dialect(tmp_path: Path, format: int):
    long = "folder-of-a-long-name/" * 5 + "k" * 90 if format != tarfile.USTAR_FORMAT else "f" * 120 + "/" + "k" * 90
    shard(tmp_path / "a.tar", captioned(long, "Bär", "plain"), format)
    assert keys(plain(tmp_path)) == [f"a.tar/{long}", "a.tar/Bär", "a.tar/plain"]


names = st.text(
    st.characters(exclude_characters="./\0", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12
).filter(lambda name: not name.startswith("__"))


@settings(max_examples=25, deadline=None)
@given(
    found=st.lists(names, unique=True, min_size=1, max_size=8),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    sizes=st.data(),
)
def test_every_member_is_found_where_tarfile_finds_it(
    tmp_path_factory: pytest.TempPathFactory, found: list[str], format: int, sizes: st.DataObject
):
    folder = tmp_path_factory.mktemp("shards")
    images = [bytes(sizes.draw(st.integers(0, 1100))) for _ in found]
    members = [
        m for key, image in zip(found, images, strict=True) for m in ((f"{key}.png", image), (f"{key}.txt", b"w"))
    ]
    index = tar_index.build(shard(folder / "a.tar", members, format))
    assert (index.facts["records"], index.facts["problems"]) == (len(found), [])
    with tarfile.open(folder / "a.tar") as file:
        expected = [(info.offset_data, info.size) for info in file]
    assert list(zip(index.arrays["offsets"].tolist(), index.arrays["sizes"].tolist(), strict=True)) == expected


def test_the_index_is_kept_per_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shard(tmp_path / "a.tar", captioned("0"))
    shard(tmp_path / "b.tar", captioned("1"))
    plain(tmp_path)
    shard(tmp_path / "b.tar", captioned("2", "3"))
    shard(tmp_path / "c.tar", captioned("4"))
    built: list[str] = []
    real = tar_index.build

    def noted(path: Path) -> Any:
        built.append(path.name)
        return real(path)

    monkeypatch.setattr(tar_index, "build", noted)
    assert keys(plain(tmp_path)) == ["a.tar/0", "b.tar/2", "b.tar/3", "c.tar/4"]
    assert sorted(built) == ["b.tar", "c.tar"]


MEMBER = len(captioned("0")) * 1024  # a header and a block for each of the two members of a record
DAMAGED = [
    (lambda data: data[: MEMBER + 550], 1, "a.tar/1.png: the shard ends in the middle of it, at byte 2,598"),
    (lambda data: data[: MEMBER + 100], 1, "a.tar/the shard: ends in the middle of a header, at byte 2,048"),
    (lambda data: data[: 2 * MEMBER], 2, "a.tar/the shard: has no end mark: it may be cut after byte 4,096"),
    (
        lambda data: data[:MEMBER] + b"x" * 512 + data[MEMBER + 512 :],
        1,
        "a.tar/the shard: not a tar header at byte 2,048",
    ),
    (lambda data: b"garbage" * 1000, 0, "a.tar/the shard: not a tar header at byte 0"),
    (lambda data: b"", 0, "a.tar/the shard: has no end mark"),
    (lambda data: data + data, 2, "a.tar/the shard: something follows its end mark at byte 4,096"),
    (lambda data: data[:10] + b"?" + data[11:], 0, "a.tar/the shard: not a tar header at byte 0"),
]


@pytest.mark.parametrize("damage, whole, reason", DAMAGED)
def test_a_damaged_shard_is_named_and_used_as_far_as_it_goes(
    tmp_path: Path, damage: Any, whole: int, reason: str, capsys: pytest.CaptureFixture[str]
):
    path = shard(tmp_path / "a.tar", captioned("0", "1"))
    shard(tmp_path / "z.tar", captioned("9"))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BrokenSample) as error:
        opened(tmp_path)
    assert f"source 'web', {reason}" in str(error.value) and "on_error: skip" in str(error.value)
    source = opened(tmp_path, "skip")
    assert keys(source) == [f"a.tar/{number}" for number in range(whole)] + ["z.tar/9"]
    assert source.broken.summary().records >= 1 and reason in capsys.readouterr().err


LEFT_OUT = [
    (captioned("0") + captioned("1") + captioned("0"), "a.tar/0: the key comes again later in the shard"),
    ([*captioned("0")[:1], *captioned("0"), *captioned("1")], "a.tar/0: has two members of the same name"),
    ([("0.png", RED), *captioned("1")], "a.tar/0: expected an image and a .txt or .json, got png"),
    ([("0.txt", b"words"), *captioned("1")], "a.tar/0: expected an image and a .txt or .json, got txt"),
    ([("README", b"words"), *captioned("1")], "a.tar/README: the member's name has no suffix"),
]


@pytest.mark.parametrize("members, reason", LEFT_OUT)
def test_records_that_are_not_whole_are_named_when_opened(tmp_path: Path, members: Any, reason: str):
    shard(tmp_path / "a.tar", members)
    with pytest.raises(BrokenSample) as error:
        opened(tmp_path)
    assert reason in str(error.value)
    source = opened(tmp_path, "skip")
    assert "a.tar/1" in keys(source) and len(set(keys(source))) == source.count("draw")


def test_links_are_named_and_strange_files_left_alone(tmp_path: Path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        link = tarfile.TarInfo("5.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        for info, data in ((link, b""), (tarfile.TarInfo("._0.png"), b"x"), (tarfile.TarInfo("__meta__.json"), b"x")):
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for name, data in captioned("./1"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    source = plain(tmp_path)
    assert [str(problem) for problem in source.problems] == ["source 'web', a.tar/5.png: is a link, expected a file"]
    assert keys(source) == ["a.tar/1"]


BROKEN = [
    ([("0.png", RED), ("0.txt", b" \n")], "has no caption"),
    ([("0.png", RED), ("0.txt", b"\xff")], "member .txt is not UTF-8 text"),
    ([("0.png", RED), ("0.json", b"{")], "not JSON"),
    ([("0.png", RED), ("0.json", b'{"title": "x"}')], "has no caption"),
    ([("0.png", RED), ("0.json", b'{"caption": null}')], "has no caption"),
    ([("0.a.png", RED), ("0.b.png", RED), ("0.txt", b"x")], "expected one image, got a.png, b.png"),
    ([("0.json", b'"words"')], "expected one image, got none"),
    ([("0.png", b"no image"), ("0.txt", b"x")], "not an image in a known format"),
    ([("0.png", RED[:-30]), ("0.txt", b"x")], "truncated or damaged image"),
    ([("0.png", b""), ("0.txt", b"x")], "the file is empty"),
]


@pytest.mark.parametrize("members, reason", BROKEN)
def test_a_broken_record_is_named_and_skipped(
    tmp_path: Path, members: Any, reason: str, capsys: pytest.CaptureFixture[str]
):
    shard(tmp_path / "a.tar", captioned("-") + members + captioned("1"))
    with pytest.raises(BrokenSample) as error:
        opened(tmp_path).sample("draw", 1, random.Random(0), 0.0)
    assert str(error.value).startswith("source 'web', a.tar/0: ") and reason in str(error.value)
    source = opened(tmp_path, "skip")
    assert keys(source) == ["a.tar/-", "a.tar/1", "a.tar/1"]
    assert (source.broken.summary().records, source.broken.summary().replaced) == (1, 1)
    assert reason in capsys.readouterr().err


CHATS = [
    ([], "member .json must be an object, got list"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}]},
        "has no member .x.png, only json",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": 3}]}]},
        "must be given by its member's name",
    ),
]


@pytest.mark.parametrize("record, reason", CHATS)
def test_a_broken_conversation_is_named(tmp_path: Path, record: Any, reason: str):
    talk = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    shard(tmp_path / "a.tar", [("0.json", json.dumps(talk).encode()), ("1.json", json.dumps(record).encode())])
    with pytest.raises(BrokenSample, match=r"a\.tar/1") as error:
        plain(tmp_path).sample("chat", 1, random.Random(0), 0.0)
    assert reason in str(error.value)


def test_a_shard_that_vanishes_or_changes_is_named(tmp_path: Path):
    path = shard(tmp_path / "a.tar", captioned("0", "1"))
    source = plain(tmp_path)
    keys(source)
    shard(path, captioned("0", "1", "2"))
    with pytest.raises(ValueError, match=r"a.tar: has changed since it was opened; start again"):
        source.sample("draw", 0, random.Random(0), 0.0)
    path.unlink()
    with pytest.raises(ValueError, match=r"a.tar: cannot be read"):
        source.sample("draw", 0, random.Random(0), 0.0)


def test_many_problems_are_counted(tmp_path: Path):
    shard(tmp_path / "a.tar", [(f"{number}.png", RED) for number in range(50)] + captioned("x"))
    source = plain(tmp_path)
    assert (len(source.problems), source.problem_count) == (20, 50)
    with pytest.raises(BrokenSample, match=r"\(and 49 more problems\)"):
        opened(tmp_path)


def test_long_indexing_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for number in range(12):
        shard(tmp_path / f"{number:02d}.tar", captioned(str(number)))
    monkeypatch.setattr("vargpt.data.sources.tar._TELL_EVERY", -1.0)
    assert keys(plain(tmp_path)) == [f"{number:02d}.tar/{number}" for number in range(12)], "in the shards' order"
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "source 'web': 1 of 12 shards are indexed" and len(told) == 12


def test_a_missing_shard_is_named(tmp_path: Path):
    path = shard(tmp_path / "a.tar", captioned("0"))
    with pytest.raises(ValueError, match=r"b.tar: cannot be read \(No such file"):
        TarSource("web", [path, tmp_path / "b.tar"])
