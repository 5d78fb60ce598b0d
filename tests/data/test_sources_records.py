"""Conversations in JSON files: every dialect by a literal record, every kind of garbage by name."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vargpt.data.sources import records
from vargpt.data.sources.open import open_preferences, open_source
from vargpt.data.sources.policy import CheckedSource
from vargpt.data.sources.protocol import BrokenSample
from vargpt.data.sources.records import BrokenRecord, RecordFile
from vargpt.processing.conversation import Conversation, DrawPart, ImagePart, assistant, user
from vargpt.training.recipes.schema import SourceSection

OURS = {
    "id": "one",
    "messages": [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "make it red"}]},
        {"role": "assistant", "content": [{"type": "image_gen", "image": "b.png"}]},
    ],
}
TALK = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
EDIT = {
    "messages": [
        {"role": "user", "content": "Change this <image> to a poster"},
        {"role": "assistant", "content": "The output image is: <image_gen>"},
    ],
    "images": ["a.png", "b.png"],
}
DPO = {
    "conversations": [{"from": "human", "value": "Draw a person."}],
    "chosen": {"from": "gpt", "value": "I have drawn a person.<image_gen>"},
    "rejected": {"from": "gpt", "value": "I have drawn a person. <image_gen>"},
    "images": ["a.png", "b.png"],
}
LLAVA = {
    "id": "000",
    "image": "a.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": "A square."},
        {"from": "human", "value": "Which colour?"},
        {"from": "gpt", "value": "Red."},
    ],
}
LLAVA_TALK = {
    "id": "t",
    "model": "",
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8), "red" if name == "a.png" else "blue").save(tmp_path / name)
    return tmp_path


def source_settings(kind: str, path: str, **changes: Any) -> Any:
    return SourceSection.model_construct(**{"format": kind, "path": path, **changes})  # unchecked: wrong ones too


def opened(folder: Path, kind: str, content: str | bytes, name: str = "data.json", **changes: Any) -> CheckedSource:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_source("web", source_settings(kind, name, **changes), folder)


def chat(source: CheckedSource, index: int = 0) -> Conversation:
    return source.sample("chat", index, random.Random(0), 0.0).conversation


def lines(*found: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in found)


def test_our_own_lines(folder: Path):
    source = opened(folder, "conversations", lines(OURS, TALK), "chat.jsonl")
    assert source.tasks == {"chat"} and source.count("chat") == 2 and source.count("draw") == 0
    expected = (user(ImagePart(image=folder / "a.png"), "make it red"), assistant(DrawPart(image=folder / "b.png")))
    assert chat(source) == Conversation(messages=expected)
    assert chat(source, 1) == Conversation(messages=(user("hi"), assistant("hello")))
    assert [source.sample("chat", i, random.Random(0), 0.0).key for i in (0, 1)] == ["chat.jsonl:1", "chat.jsonl:2"]


@pytest.mark.parametrize("as_lines", [False, True])
def test_published_records(folder: Path, as_lines: bool):
    content = lines(EDIT, TALK) if as_lines else json.dumps([EDIT, TALK], indent=2)
    source = opened(folder, "official", content)
    expected = (
        user("Change this ", ImagePart(image=folder / "a.png"), " to a poster"),
        assistant("The output image is: ", DrawPart(image=folder / "b.png")),
    )
    assert chat(source) == Conversation(messages=expected)
    assert source.count("chat") == 2


def test_published_preferences(folder: Path):
    source = opened(folder, "official-preferences", json.dumps([DPO]))
    drawn = assistant("I have drawn a person.", DrawPart(image=folder / "a.png"))
    assert chat(source) == Conversation(messages=(user("Draw a person."), drawn))
    pairs = open_preferences("web", source_settings("official-preferences", "data.json"), folder)
    pair = pairs.preference(0)
    assert (len(pairs), pair.key, pair.answer) == (1, "data.json record 1", "I have drawn a person.")
    assert (pair.chosen, pair.rejected) == (folder / "a.png", folder / "b.png")
    assert pair.prompt == Conversation(messages=(user("Draw a person."),))


def test_a_preference_about_an_edit(folder: Path):
    Image.new("RGB", (8, 8)).save(folder / "source.png")
    edit = {
        **DPO,
        "conversations": [{"from": "human", "value": "<image> in red"}],
        "images": ["source.png", "a.png", "b.png"],
    }
    opened(folder, "official-preferences", json.dumps([edit]))
    pair = open_preferences("web", source_settings("official-preferences", "data.json"), folder).preference(0)
    assert pair.prompt == Conversation(messages=(user(ImagePart(image=folder / "source.png"), " in red"),))
    assert (pair.chosen, pair.rejected) == (folder / "a.png", folder / "b.png")


def test_llava_records(folder: Path):
    source = opened(folder, "llava", json.dumps([LLAVA, LLAVA_TALK, {**LLAVA, "image": ["a.png"]}]))
    asked = user(ImagePart(image=folder / "a.png"), "\nWhat is this?")
    expected = (asked, assistant("A square."), user("Which colour?"), assistant("Red."))
    assert chat(source) == chat(source, 2) == Conversation(messages=expected)
    assert chat(source, 1) == Conversation(messages=(user("Hi"), assistant("Ho")))


def test_several_files_and_an_images_folder(folder: Path):
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    for part in ("one", "two"):
        (folder / part / "chat.jsonl").write_text(lines(OURS, TALK))
    source = open_source("web", source_settings("conversations", "*/chat.jsonl", images="."), folder)
    assert source.count("chat") == 4
    keys = [source.sample("chat", index, random.Random(0), 0.0).key for index in range(4)]
    assert keys == [f"{folder / part / 'chat.jsonl'}:{line}" for part in ("one", "two") for line in (1, 2)]
    assert chat(source, 2) == chat(source, 0)


def changed(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**record, **changes}.items() if value is not ...}


def our_image(name: Any) -> dict[str, Any]:
    return {"messages": [OURS["messages"][0], {"role": "assistant", "content": [{"type": "image_gen", "image": name}]}]}


BROKEN = [
    ("conversations", "{", "not a JSON record"),
    ("conversations", "[1", "not a JSON record|not JSON"),
    ("conversations", '"words"', "expected a JSON object, got str"),
    ("conversations", b'{"messages": "\xff"}', "not UTF-8 text (byte 14"),
    ("conversations", '{"id": 1, "id": 2}', "the key 'id' comes twice"),
    ("conversations", '{"n": ' + "9" * 5000 + "}", "not a JSON record"),
    ("conversations", {"id": "x"}, 'expected a list of {"role", "content"} under "messages"'),
    ("conversations", {"messages": ["hi"]}, "a message must be"),
    ("conversations", {"messages": TALK["messages"][:1]}, "the assistant says nothing"),
    ("conversations", {"messages": TALK["messages"][1:]}, "turns must alternate"),
    ("conversations", changed(TALK, messages=[{"role": "owner", "content": "x"}]), "role"),
    ("conversations", our_image("../b.png"), "image '../b.png' is outside the images folder"),
    ("conversations", our_image("/etc/passwd"), "is outside the images folder"),
    ("conversations", our_image(None), "must be given by its file name, got None"),
    ("conversations", our_image(7), "must be given by its file name, got 7"),
    ("conversations", our_image(""), "must be given by its file name, got ''"),
    ("conversations", our_image("a\0b"), "must be given by its file name"),
    ("official", changed(EDIT, images=["a.png"]), "more placeholders than images: no image is left for <image_gen>"),
    ("official", changed(EDIT, images=["a.png", "b.png", "a.png"]), "1 of 3 images have no <image> or <image_gen>"),
    ("official", changed(EDIT, images=...), "more placeholders than images"),
    ("official", changed(EDIT, messages=[]), "expected a list of turns"),
    ("official", changed(EDIT, messages=[{"role": "user"}]), "a turn must be {role, content}"),
    ("official", changed(EDIT, messages=[{"role": "tool", "content": "x"}]), "unknown role 'tool'"),
    ("official", changed(EDIT, messages=[{"role": "user", "content": "<image_gen><image_gen>"}]), "assistant message"),
    ("official-preferences", changed(DPO, rejected=...), "has no 'rejected'"),
    ("official-preferences", changed(DPO, images=["a.png"]), "expected the chosen and the rejected image last"),
    ("official-preferences", changed(DPO, images=["a.png"] * 3), "1 of 1 images have no <image>"),
    ("official-preferences", changed(DPO, chosen={"from": "gpt", "value": "Here."}), "ends with <image_gen>"),
    ("official-preferences", changed(DPO, chosen={"from": "gpt", "value": "Other.<image_gen>"}), "in the picture only"),
    ("official-preferences", changed(DPO, conversations=LLAVA_TALK["conversations"]), "must end with the user's turn"),
    ("llava", changed(LLAVA, image=...), "no image is left for <image>"),
    ("llava", changed(LLAVA, image=["a.png", "b.png"]), "1 of 2 images have no <image>"),
    ("llava", changed(LLAVA_TALK, image="a.png"), "1 of 1 images have no <image>"),
    ("llava", changed(LLAVA, image={"x": 1}), "must be given by its file name"),
]  # fmt: skip


@pytest.mark.parametrize("kind, record, reason", BROKEN)
def test_a_broken_record_is_named_and_can_be_skipped(
    folder: Path, kind: str, record: Any, reason: str, capsys: pytest.CaptureFixture[str]
):
    bad = record if isinstance(record, bytes) else (record if isinstance(record, str) else json.dumps(record)).encode()
    good = DPO if kind == "official-preferences" else TALK
    content = b"\n".join([json.dumps(good).encode(), b"", bad, json.dumps(good).encode(), b""])
    source = opened(folder, kind, content, "data.jsonl")
    with pytest.raises(BrokenSample) as error:
        chat(source, 1)
    assert str(error.value).startswith("source 'web', data.jsonl:3: ")
    assert any(part in str(error.value) for part in reason.split("|")), str(error.value)
    assert "\n" not in str(error.value)
    skipping = opened(folder, kind, content, "data.jsonl", on_error="skip")
    for _ in range(2):
        sample = skipping.sample("chat", 1, random.Random(0), 0.0)
        assert sample.key == "data.jsonl:4", "the next record takes its place"
    assert (skipping.broken.summary().records, skipping.broken.summary().replaced) == (1, 2)
    assert capsys.readouterr().err.count("skipped: source 'web', data.jsonl:3: ") == 1


def test_a_missing_or_broken_image_is_named_and_skipped(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "broken.png").write_bytes(b"not an image")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:-30])
    bad = [our_image("missing.png"), our_image("broken.png"), our_image("cut.png")]
    source = opened(folder, "conversations", lines(*bad, TALK), "data.jsonl", on_error="skip")
    assert source.sample("chat", 0, random.Random(0), 0.0).key == "data.jsonl:4"
    told = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1].split(", ")[1] for line in told] == ["data.jsonl:1", "data.jsonl:2", "data.jsonl:3"]
    assert "missing.png: no such file" in told[0]
    assert "broken.png: not an image" in told[1]
    assert "cut.png: truncated or damaged" in told[2]


def test_skipping_decodes_and_wording_restarts(folder: Path):
    """The generator that words the replacement starts where it would have for the record itself."""
    for name, text in (
        ("metadata.jsonl", lines({"file_name": "a.png", "text": "a"}, {"file_name": "b.png", "text": "b"})),
    ):
        (folder / name).write_text(text)
    plain = open_source("f", source_settings("folder", "."), folder, 0.0)
    first = plain.sample("draw", 1, random.Random(5), 1.0)
    assert isinstance(first.conversation.drawings[0].image, Path)
    (folder / "a.png").write_bytes(b"")
    skipping = open_source("f", source_settings("folder", ".", on_error="skip"), folder, 0.0, report=lambda line: None)
    replaced = skipping.sample("draw", 0, random.Random(5), 1.0)
    assert replaced.key == "b.png"
    assert replaced.conversation.turns[0] == first.conversation.turns[0]
    assert isinstance(replaced.conversation.drawings[0].image, Image.Image)


def test_after_the_last_record_comes_the_first(folder: Path):
    source = opened(folder, "conversations", lines(TALK, TALK, our_image("missing.png")), "data.jsonl", on_error="skip")
    assert source.sample("chat", 2, random.Random(0), 0.0).key == "data.jsonl:1"


def test_when_nothing_can_be_used_it_stops(folder: Path):
    source = opened(folder, "conversations", lines(*[our_image("missing.png")] * 3), on_error="skip")
    with pytest.raises(
        ValueError, match=r"3 records in a row cannot be used; is the path of the images right\? The last: .*"
    ):
        chat(source)


SIZE, BOTH = len(json.dumps(LLAVA)), len(json.dumps([LLAVA, LLAVA_TALK]))
CUT = [
    ("llava", json.dumps([LLAVA, LLAVA_TALK])[:-20], 1, f"record 2 (byte {SIZE + 3}): not JSON, or"),
    ("llava", json.dumps([LLAVA, LLAVA_TALK])[:-1], 2, f"the file ends in the middle, after {BOTH - 1} bytes"),
    ("llava", json.dumps([LLAVA]) + "]", 1, "something follows the end of the array"),
    ("llava", f"[{json.dumps(LLAVA)} {json.dumps(LLAVA)}]", 1, f"expected ',' at byte {SIZE + 2}, got '{{'"),
    ("llava", f"[{json.dumps(LLAVA)}, ", 1, "not JSON, or the file ends in the middle"),
    ("conversations", lines(TALK, TALK)[:-10], 1, "line 2: the file may end in the middle"),
]  # fmt: skip


@pytest.mark.parametrize("kind, content, whole, reason", CUT)
def test_a_cut_file_is_refused_or_used_as_far_as_it_goes(
    folder: Path, kind: str, content: str, whole: int, reason: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(BrokenSample) as error:
        opened(folder, kind, content)
    assert reason in str(error.value) and "on_error: skip" in str(error.value)
    source = opened(folder, kind, content, on_error="skip")
    assert source.count("chat") == whole
    chat(source, whole - 1)
    assert source.broken.summary().records == 1
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "\n\n \n", "[]", " [ ] \n"])
def test_an_empty_file_is_refused(folder: Path, content: str):
    with pytest.raises(ValueError, match=r"source 'web': data.json holds no records"):
        opened(folder, "conversations", content)


@pytest.mark.parametrize(
    "kind, path, changes, reason",
    [
        ("llava", "nowhere.json", {}, "source 'web': found nothing at .*nowhere.json, expected a file"),
        ("llava", "none*.json", {}, "found nothing at .*none"),
        ("tar", ".", {}, r"found nothing at .*, expected a folder with \*.tar"),
        ("llava", "data.json", {"images": "nowhere"}, "the images folder .*nowhere does not exist"),
        ("llava", "data.json", {"count": 3}, "count is for scenes only, got it with llava"),
        ("llava", "data.json", {"on_error": "ignore"}, "on_error must be 'stop' or 'skip', got 'ignore'"),
        ("folder", ".", {"images": "."}, "images is not for folder"),
        ("folder", "data.json", {}, "no such folder"),
    ],
)
def test_bad_settings_are_named(folder: Path, kind: str, path: str, changes: dict[str, Any], reason: str):
    (folder / "data.json").write_text(json.dumps([LLAVA]))
    with pytest.raises(ValueError, match=reason):
        open_source("web", source_settings(kind, path, **changes), folder)


def test_only_preferences_open_as_pairs(folder: Path):
    with pytest.raises(ValueError, match="expected the format official-preferences, got llava"):
        open_preferences("web", source_settings("llava", "data.json"), folder)


def read_all(path: Path) -> list[Any]:
    file = RecordFile(path)
    assert file.problem is None
    return [file.read(number) for number in range(len(file))]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
json_objects = st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=12)


@settings(max_examples=80, deadline=None)
@given(
    objects=json_objects, chunk=st.integers(1, 60), style=st.sampled_from(["array", "indented", "raw", "lines", "crlf"])
)
def test_any_objects_come_back_whatever_the_window(
    tmp_path_factory: pytest.TempPathFactory, objects: list[Any], chunk: int, style: str
):
    path = tmp_path_factory.mktemp("records") / "data.json"
    texts = {
        "array": lambda: json.dumps(objects),
        "indented": lambda: "\ufeff \n" + json.dumps(objects, indent=1) + "\n ",
        "raw": lambda: json.dumps(objects, ensure_ascii=False, separators=(",", ":")),
        "lines": lambda: "\n".join(json.dumps(value) for value in objects),
        "crlf": lambda: "\ufeff" + "".join(json.dumps(value, ensure_ascii=False) + "\r\n\r\n" for value in objects),
    }
    path.write_bytes(texts[style]().encode("utf-8", "surrogatepass"))
    old = records._CHUNK
    try:
        records._CHUNK = chunk
        if b"\xed" not in path.read_bytes():  # lone surrogates are not UTF-8, and are tested below
            assert read_all(path) == objects
    finally:
        records._CHUNK = old


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 13])
def test_elements_that_are_no_objects_are_broken_records(folder: Path, chunk: int, monkeypatch: pytest.MonkeyPatch):
    """Wherever the window ends: a number could go on behind it."""
    monkeypatch.setattr(records, "_CHUNK", chunk)
    path = folder / "data.json"
    path.write_text('[1234567, -1.5e3, true, null, "words", {"a": 1}, 89]')
    file = RecordFile(path)
    assert (file.problem, len(file), file.read(5)) == (None, 7, {"a": 1})
    with pytest.raises(BrokenRecord, match="expected a JSON object, got int"):
        file.read(0)


def test_bytes_that_are_no_text_spoil_only_their_own_record(folder: Path):
    path = folder / "data.json"
    path.write_bytes(b'[{"a": "\xc3\xa9"}, {"b": "\xff\xfe"}, {"c": "\xe2\x82\xac"}]')
    file = RecordFile(path)
    assert (file.problem, file.read(0), file.read(2)) == (None, {"a": "é"}, {"c": "€"})
    with pytest.raises(BrokenRecord, match="not UTF-8 text"):
        file.read(1)


def test_an_absurdly_long_record_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 100)
    path = folder / "data.jsonl"
    path.write_text(lines({"a": "x" * 200}, {"b": 1}))
    file = RecordFile(path)
    assert file.read(1) == {"b": 1}
    with pytest.raises(BrokenRecord, match="209 bytes, the limit for a record is 100"):
        file.read(0)
    path.write_text('[{"a": "' + "x" * 300)
    assert "longer than 100 bytes" in str(RecordFile(path).problem)


def test_deep_nesting_is_a_broken_record(folder: Path):
    path = folder / "data.jsonl"
    path.write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}\n{}\n")
    with pytest.raises(BrokenRecord, match="not a JSON record"):
        RecordFile(path).read(0)


def test_the_index_is_kept_and_follows_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = folder / "data.jsonl"
    path.write_text(lines({"a": 1}))
    assert len(RecordFile(path)) == 1
    kept = folder / ".vargpt-index" / "data.jsonl.index"
    assert kept.is_file() and list(kept.parent.iterdir()) == [kept]
    with monkeypatch.context() as patch:
        patch.setattr(records, "_build", None)
        assert RecordFile(path).read(0) == {"a": 1}, "it is not built again"
    path.write_text(lines({"a": 1}, {"b": 2}))
    assert read_all(path) == [{"a": 1}, {"b": 2}]
    whole = kept.read_bytes()
    for damaged in (b"", b"junk" * 50, whole[:30], whole[:-1], whole[:8] + b"\xff" * 8 + whole[16:]):
        kept.write_bytes(damaged)
        assert len(read_all(path)) == 2
        assert kept.read_bytes() == whole, "a damaged index is replaced"


def test_a_folder_that_cannot_be_written_uses_the_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (folder / ".vargpt-index").write_text("in the way")
    path = folder / "data.jsonl"
    path.write_text(lines({"a": 1}))
    assert read_all(path) == [{"a": 1}]
    (kept,) = (folder / "cache" / "vargpt" / "index").iterdir()
    assert kept.name.startswith("data.jsonl-")
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.write_text("in the way too")
    assert read_all(path) == [{"a": 1}]
    assert "its index cannot be kept" in capsys.readouterr().err


def test_a_file_that_changes_or_goes_is_named(folder: Path):
    path = folder / "data.jsonl"
    path.write_text(lines({"a": 1}, {"b": 2}))
    file = RecordFile(path)
    path.write_text(lines({"a": 1}))
    with pytest.raises(ValueError, match=r"data.jsonl: has changed since it was opened"):
        file.read(0)
    os.unlink(path)
    with pytest.raises(ValueError, match=r"data.jsonl: cannot be read \(No such file"):
        file.read(0)
    with pytest.raises(ValueError, match=r"data.jsonl: cannot be read"):
        RecordFile(path)
