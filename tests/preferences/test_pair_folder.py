"""Pairs on disk: what is read is what was written, a resumed writer equals an unbroken one, damage is named."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vargpt.configuration import ImageTokenizerConfig
from vargpt.data.pairs import DrawnImage, Pair, PairFolder, PairWriter, encode_png, image_tokenizer_hash
from vargpt.image_tokenizer import ImageTokenizer
from vargpt.processing.conversation import Conversation, DrawPart, assistant, user
from vargpt.scales import ScaleSchedule

SCHEDULE = ScaleSchedule.from_template(1.0, 3, stride=2)  # 21 tokens, 8x8 pixels


def picture(colour: tuple[int, int, int]) -> bytes:
    return encode_png(Image.new("RGB", (8, 8), colour))


def pair(number: int, prompt: Conversation | None = None) -> Pair:
    generator = torch.Generator().manual_seed(number)
    bits = torch.randint(0, 2, (2, 21, 5), generator=generator, dtype=torch.uint8)
    return Pair(
        f"name {number}",
        prompt or Conversation(messages=(user(f"draw thing {number}"),)),
        "Here:",
        DrawnImage(picture((number, 0, 0)), bits[0], 0.1 * number, 2**62 + number),
        DrawnImage(picture((0, number, 0)), bits[1] if number % 2 else None, -1.5, None),
        SCHEDULE,
    )


def write(folder: Path, count: int, size: int = 4, stop_after: int | None = None) -> PairWriter:
    """Write `count` prompts, every third one without a pair; broken off after some where told."""
    writer = PairWriter(folder, {"seed": 1}, prompts_per_shard=size)
    added = 0
    while writer.next_prompt < count:
        if added == stop_after:
            return writer
        number = writer.next_prompt
        writer.add(None if number % 3 == 2 else pair(number), {"n": number})
        added += 1
    writer.finish()
    return writer


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_same(got: Pair, expected: Pair) -> None:
    assert (got.key, got.answer, got.schedule) == (expected.key, expected.answer, expected.schedule)
    for mine, theirs in ((got.chosen, expected.chosen), (got.rejected, expected.rejected)):
        assert (mine.png, mine.score, mine.seed) == (theirs.png, theirs.score, theirs.seed)
        assert (mine.bits is None) == (theirs.bits is None)
        if mine.bits is not None and theirs.bits is not None:
            assert mine.bits.dtype == torch.uint8
            assert torch.equal(mine.bits, theirs.bits)


def test_pairs_come_back(tmp_path: Path) -> None:
    write(tmp_path / "pairs", 10)
    folder = PairFolder(tmp_path / "pairs")
    numbers = [0, 1, 3, 4, 6, 7, 9]
    assert len(folder) == 7
    assert folder.settings == {"seed": 1, "prompts_per_shard": 4}
    for index in (6, 0, 3, 5, 1, 2, 4):
        assert_same(folder[index], pair(numbers[index]))
    assert [item.key for item in folder] == [f"name {number}" for number in numbers]
    assert folder[0].prompt.messages[0].content[0].text == "draw thing 0"  # type: ignore[union-attr]
    assert folder[0].rejected.bits is None
    with pytest.raises(IndexError):
        folder[7]


def test_bits_are_packed_eight_to_a_byte_in_row_order(tmp_path: Path) -> None:
    bits = torch.zeros(21, 2, dtype=torch.uint8)
    bits[0, 1] = bits[4, 0] = bits[20, 1] = 1
    writer = PairWriter(tmp_path)
    writer.add(Pair("a", pair(0).prompt, "", DrawnImage(picture((0, 0, 0)), bits), pair(0).rejected, SCHEDULE))
    writer.finish()
    with zipfile.ZipFile(tmp_path / "pairs-00000.zip") as archive:
        assert archive.read("00000.chosen.bits") == bytes([0b01000000, 0b10000000, 0, 0, 0, 0b01000000])
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_pictures_of_the_prompt_are_kept_as_they_came(tmp_path: Path) -> None:
    jpeg = io.BytesIO()
    Image.effect_noise((20, 12), 60).convert("RGB").save(jpeg, format="JPEG")
    (tmp_path / "in.png").write_bytes(picture((9, 8, 7)))
    shown = Image.new("RGB", (5, 4), (1, 2, 3))
    prompt = Conversation(messages=(user(jpeg.getvalue(), "and", tmp_path / "in.png", shown, "make it blue"),))
    writer = PairWriter(tmp_path / "pairs")
    writer.add(pair(1, prompt))
    writer.finish()
    parts = PairFolder(tmp_path / "pairs")[0].prompt.messages[0].content
    assert [part.type for part in parts] == ["image", "text", "image", "image", "text"]
    assert parts[0].image == jpeg.getvalue()  # type: ignore[union-attr]
    assert parts[2].image == picture((9, 8, 7))  # type: ignore[union-attr]
    assert parts[3].image == encode_png(shown)  # type: ignore[union-attr]


@pytest.mark.parametrize("stop_after", [0, 1, 4, 5, 8, 9])
def test_a_writer_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path, stop_after: int) -> None:
    write(tmp_path / "whole", 10)
    write(tmp_path / "broken", 10, stop_after=stop_after)
    with pytest.raises(ValueError, match="not finished: run the same command again"):
        PairFolder(tmp_path / "broken")
    again = PairWriter(tmp_path / "broken", {"seed": 1}, prompts_per_shard=4)
    assert again.next_prompt == stop_after // 4 * 4
    write(tmp_path / "broken", 10)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_shard_that_was_deleted_is_made_again_alone(tmp_path: Path) -> None:
    write(tmp_path / "pairs", 10)
    before = contents(tmp_path / "pairs")
    (tmp_path / "pairs" / "pairs-00001.zip").unlink()
    folder = PairFolder(tmp_path / "pairs")
    assert folder[0].key == "name 0"
    with pytest.raises(ValueError, match=r"pairs-00001\.zip: this shard is missing"):
        folder[3]
    writer = PairWriter(tmp_path / "pairs", {"seed": 1}, prompts_per_shard=4)
    assert writer.next_prompt == 4
    write(tmp_path / "pairs", 10)
    assert contents(tmp_path / "pairs") == before


def test_two_shares_write_the_shards_of_one(tmp_path: Path) -> None:
    write(tmp_path / "one", 10)
    for rank in (1, 0):
        writer = PairWriter(tmp_path / "two", {"seed": 1}, prompts_per_shard=4, share=(rank, 2))
        while writer.next_prompt < 10:
            number = writer.next_prompt
            writer.add(None if number % 3 == 2 else pair(number), {"n": number})
        writer.finish()
    assert not (tmp_path / "two" / "index.json").exists()
    write(tmp_path / "two", 10)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_other_settings_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 2)
    with pytest.raises(ValueError, match="begun with another seed: 1 there, 2 now"):
        PairWriter(tmp_path, {"seed": 2}, prompts_per_shard=4)
    with pytest.raises(ValueError, match="another prompts_per_shard: 4 there, 8 now"):
        PairWriter(tmp_path, {"seed": 1}, prompts_per_shard=8)


@pytest.mark.parametrize("damage", ["cut", "text", "empty", "flipped"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 10)
    path = tmp_path / "pairs-00001.zip"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[data.index(b"thing 3") if b"thing 3" in data else data.index(b"thing 4")] ^= 1
    path.write_bytes({"cut": bytes(data[:-40]), "text": b"hello", "empty": b"", "flipped": bytes(data)}[damage])
    folder = PairFolder(tmp_path)
    assert folder[0].key == "name 0"
    with pytest.raises(ValueError, match=r"pairs-00001\.zip: truncated or damaged shard"):
        [folder[index] for index in (3, 4)]
    if damage != "flipped":  # resuming reads what a shard says of itself, not every picture
        with pytest.raises(ValueError, match=r"pairs-00001\.zip: truncated or damaged shard"):
            PairWriter(tmp_path, {"seed": 1}, prompts_per_shard=4)


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        PairFolder(tmp_path / "nothing")
    with pytest.raises(ValueError, match="it is none"):
        PairFolder(tmp_path)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "assistant turn last": ({"prompt": Conversation(messages=(user("a"), assistant("b")))}, "must end with the user"),
    "drawn before": (
        {"prompt": Conversation(messages=(user("a"), assistant(DrawPart()), user("b")))},
        "holds a picture that was drawn",
    ),
    "size": ({"chosen": DrawnImage(encode_png(Image.new("RGB", (8, 9))))}, "is 8x9, its schedule draws 8x8"),
    "bits": (
        {"chosen": DrawnImage(picture((0, 0, 0)), torch.zeros(20, 4, dtype=torch.uint8))},
        r"of shape \[21, d\], got torch.uint8 \(20, 4\)",
    ),
    "values": (
        {"chosen": DrawnImage(picture((0, 0, 0)), torch.full((21, 4), 2, dtype=torch.uint8))},
        "with other values",
    ),
    "score": ({"chosen": DrawnImage(picture((0, 0, 0)), score=float("nan"))}, "must be finite, got nan"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    changes, message = WRONG[name]
    writer = PairWriter(tmp_path, prompts_per_shard=1)
    with pytest.raises(ValueError, match=message):
        writer.add(Pair(**{**pair(1).__dict__, **changes}))
    assert not list(tmp_path.glob("*.zip"))


def _read_in_child(folder: PairFolder, opened: zipfile.ZipFile, queue: multiprocessing.Queue) -> None:
    keys = [folder[index].key for index in range(len(folder))]
    queue.put((keys, folder._shard(0) is opened))


def test_workers_share_no_file_position(tmp_path: Path) -> None:
    write(tmp_path, 10)
    folder = PairFolder(tmp_path)
    keys = [item.key for item in folder]
    assert [item.key for item in pickle.loads(pickle.dumps(folder))] == keys
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(folder, folder._shard(0), queue))
    child.start()
    assert queue.get(timeout=60) == (keys, False)
    child.join()


def test_the_hash_of_a_tokenizer_is_of_its_weights_as_bfloat16() -> None:
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(ImageTokenizerConfig(bits=6, base_channels=32, channel_multipliers=[1, 1], stride=2))
    before = image_tokenizer_hash(tokenizer)
    assert len(before) == 64
    assert image_tokenizer_hash(tokenizer.bfloat16()) == before
    with torch.no_grad():
        next(tokenizer.parameters()).view(-1)[3] += 1
    assert image_tokenizer_hash(tokenizer) != before
