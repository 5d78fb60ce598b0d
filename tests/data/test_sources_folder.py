"""An image folder as a source: its training part, in the wording that the generator chooses."""

from __future__ import annotations

import pickle
import random
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from vargpt.data.folder import read_folder
from vargpt.data.instructions import canonical_caption, canonical_draw, canonical_edit
from vargpt.data.order import Permutation, ShardedPermutation
from vargpt.data.sources import BrokenSample, shuffled
from vargpt.data.sources.folder import FolderSource


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    names = [f"{index}.png" for index in range(40)]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text(
        "".join(f'{{"file_name": "{name}", "text": "picture {name[:-4]}"}}\n' for name in names)
    )
    (tmp_path / "edits.jsonl").write_text(
        "".join(f'{{"source": "{a}", "target": "{b}", "instruction": "next"}}\n' for a, b in pairwise(names))
    )
    return FolderSource("data", read_folder(tmp_path, validation_fraction=0.3))


def test_counts_are_those_of_the_training_part(source: FolderSource):
    assert source.tasks == {"draw", "caption", "edit"}
    assert source.count("draw") == source.count("caption") == len(source.folder.split_images("train")) < 40
    assert source.count("edit") == len(source.folder.split_edits("train")) < 39
    assert source.count("chat") == 0


def test_canonical_samples(source: FolderSource):
    record = source.folder.split_images("train")[3]
    path = source.folder.path(record.file_name)
    draw = source.sample("draw", 3, random.Random(0), variety=0.0)
    assert (draw.key, draw.conversation) == (record.file_name, canonical_draw(record.text, path))
    caption = source.sample("caption", 3, random.Random(0), variety=0.0)
    assert caption.conversation == canonical_caption(path, record.text)
    edit = source.folder.split_edits("train")[2]
    sample = source.sample("edit", 2, random.Random(0), variety=0.0)
    number = source.folder.edits.index(edit) + 1
    assert sample.key == f"edit {number}: {edit.source} -> {edit.target}"
    expected = canonical_edit(source.folder.path(edit.source), source.folder.path(edit.target), "next")
    assert sample.conversation == expected


def test_wording_comes_from_the_generator_alone(source: FolderSource):
    one, two = (source.sample("draw", 0, random.Random(7), variety=1.0) for _ in range(2))
    assert one == two
    wordings = {str(source.sample("draw", 0, random.Random(seed), 1.0).conversation) for seed in range(30)}
    assert len(wordings) > 10


def test_no_sample_shows_a_validation_image(source: FolderSource):
    held_out = {record.file_name for record in source.folder.split_images("validation")}
    for task in sorted(source.tasks):
        for index in range(source.count(task)):
            sample = source.sample(task, index, random.Random(0), 0.0)
            shown = {part.image.name for m in sample.conversation.turns for part in m.content if part.type != "text"}  # type: ignore[union-attr]
            assert shown and not shown & held_out


def test_an_index_outside_is_refused(source: FolderSource):
    with pytest.raises(ValueError, match="has 0 samples for 'chat', got index 0"):
        source.sample("chat", 0, random.Random(0), 0.0)
    with pytest.raises(ValueError, match="got index -1"):
        source.sample("draw", -1, random.Random(0), 0.0)


class Shards:
    """A source of nothing but lengths."""

    name = "shards"
    tasks = frozenset({"draw"})

    def count(self, task: str) -> int:
        return sum(self.shards(task))

    def shards(self, task: str) -> list[int]:
        return [5, 5] if task == "draw" else [0]

    def sample(self, *arguments: object) -> object:
        raise NotImplementedError


def test_sources_choose_their_order(source: FolderSource):
    assert isinstance(shuffled(source, "draw", seed=1), Permutation)
    assert isinstance(shuffled(Shards(), "draw", seed=1), ShardedPermutation)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'shards' has no samples for the task 'edit'; it has: draw"):
        shuffled(Shards(), "edit", seed=1)  # type: ignore[arg-type]


def test_a_broken_sample_names_itself_and_travels():
    error = BrokenSample("web", "a.tar/007", "no caption")
    assert str(error) == "source 'web', a.tar/007: no caption"
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, BrokenSample) and (copy.source, copy.key, copy.reason) == ("web", "a.tar/007", "no caption")
