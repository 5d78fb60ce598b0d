"""The four measures of a folder: right answers count, wrong ones do not, and the numbers can be had again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_helpers import scripted
from PIL import Image
from torch import Tensor

from vargpt.data.folder import ImageFolder, read_folder
from vargpt.evaluation.harness import run_suite, take
from vargpt.evaluation.subject import Subject
from vargpt.evaluation.suites.folder import (
    Drawing,
    Editing,
    Gallery,
    Naming,
    Reconstruction,
    folder_suite,
    squared_distances,
)
from vargpt.evaluation.task import Judged, example_seed
from vargpt.inference.pipeline import VargptPipeline
from vargpt.scales import ScaleSchedule

COUNT = 12
SCHEDULE = ScaleSchedule.from_template(1.0, 3, 16)  # 64 x 64 pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    """Twelve pictures of one colour each, named by it, and edits from each to the next three."""
    root = tmp_path_factory.mktemp("evaluation")
    names = [f"{index}.png" for index in range(COUNT)]
    for index, name in enumerate(names):
        Image.new("RGB", (64, 64), (20 * index, 255 - 20 * index, 90)).save(root / name)
    captions = [{"file_name": name, "text": f"Colour {index}"} for index, name in enumerate(names)]
    edits = [
        {"source": name, "target": names[(index + step) % COUNT], "instruction": f"{step} colours on"}
        for index, name in enumerate(names)
        for step in (1, 2, 3)
    ]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, captions)))
    (root / "edits.jsonl").write_text("\n".join(map(json.dumps, edits)))
    return read_folder(root, 0.2)


@pytest.fixture
def gallery(folder: ImageFolder) -> Gallery:
    return Gallery(folder, SCHEDULE)


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> VargptPipeline:
    return VargptPipeline.from_pretrained(tiny_model)


def judged(task: Any, paint: Callable[[Any, int], np.ndarray] | None = None, answer: Any = None) -> list[Judged]:
    found: list[Judged] = task.judge(scripted(paint, answer), task.examples())
    return found


def numbers(examples: list[Judged]) -> list[float]:
    return [value for example in examples for value in example.values.values()]


def test_take_spreads_evenly():
    assert take(range(10), 4) == [0, 2, 5, 7]
    assert take(range(3), None) == take(range(3), 3) == take(range(3), 9) == [0, 1, 2]
    assert take([], 2) == []


def test_squared_distances_are_means_over_pixels():
    queries, gallery = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    expected = torch.tensor([[0.0, 12.5, 0.5], [12.5, 0.0, 10.0]])
    assert torch.allclose(squared_distances(queries, gallery), expected, atol=1e-4)


def test_distances_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randint(0, 256, (count, 10, 10, 3), generator=generator) for count in (4, 60))
    whole = squared_distances(queries, gallery)
    monkeypatch.setattr("vargpt.evaluation.suites.folder._CHUNK", 7)
    assert torch.allclose(squared_distances(queries, gallery), whole, rtol=1e-4)
    exact = (queries.flatten(1)[:, None] - gallery.flatten(1)[None]).float().square().mean(-1)
    assert torch.allclose(whole, exact, rtol=1e-3)
    assert torch.equal(squared_distances(gallery, gallery).argmin(1), torch.arange(60))


def test_naming_counts_exact_matches_whatever_the_case(gallery: Gallery):
    task = Naming(gallery, "train")
    captions = {gallery.folder.path(record.file_name): record.text for record in task.examples()}
    first = next(iter(captions))

    def answer(path: Path, question: str) -> str:
        assert question == "what is this?"
        return "colour" if path == first else f" {captions[path].lower()}\n"

    assert numbers(judged(task, answer=answer)) == [0.0] + [1.0] * (len(captions) - 1)


def test_drawing_is_right_when_the_nearest_picture_of_all_is_the_named_one(gallery: Gallery):
    task = Drawing(gallery, "validation")
    records = task.examples()
    assert len(records) >= 2
    other = gallery.folder.split_images("train")[0]
    truth = {record.text: gallery[record.file_name] for record in records}
    wrong = records[1].text

    def paint(name: str, seed: int) -> np.ndarray:
        picture = gallery[other.file_name] if name == wrong else truth[name]
        return (picture.int() + 3).clamp(0, 255).to(torch.uint8).numpy()

    found = judged(task, paint)
    assert numbers(found) == [1.0, 0.0] + [1.0] * (len(records) - 2)
    assert found[1].answer == f"nearest: {other.text}"  # the gallery holds the training pictures too


def test_editing_is_right_when_the_result_is_nearer_to_the_target(gallery: Gallery):
    task = Editing(gallery, "train")
    edits = task.examples()
    assert len(edits) >= 3
    results = [gallery[edit.target] for edit in edits]
    results[0] = gallery[edits[0].source]
    middle = gallery[edits[1].source].float() + gallery[edits[1].target].float()
    results[1] = (middle / 2).to(torch.uint8)
    queue = iter(results)
    found = judged(task, lambda request, seed: next(queue).numpy())
    assert numbers(found) == [0.0, 0.0] + [1.0] * (len(edits) - 2)  # as near to the source is not nearer to the target


def test_reconstruction_is_the_psnr_of_bytes(
    pipeline: VargptPipeline, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
):
    task = Reconstruction(gallery, "train")
    offsets = iter([0, 5, *([10] * len(task.examples()))])
    originals = iter([gallery[record.file_name] for record in task.examples()])

    def decode(canvas_Bdhw: Tensor) -> Tensor:
        rows = [next(originals).permute(2, 0, 1).float() for _ in range(len(canvas_Bdhw))]
        return torch.stack([(row + (next(offsets) * (1 - 2 * (row > 127)))) / 127.5 - 1 for row in rows])

    monkeypatch.setattr(pipeline.model.image_tokenizer, "decode", decode)
    found = numbers(task.judge(Subject(pipeline, batch_size=3), task.examples()))
    assert found[:3] == pytest.approx([100.0, 34.15, 28.13], abs=0.01)  # the limit, 10 log10(255^2 / e), e = 25, 100


def test_a_part_without_examples_has_no_task(folder: ImageFolder):
    bare = ImageFolder(folder.root, folder.images, (), 0.0)
    names = [task.name for task in folder_suite(bare, SCHEDULE, "bare").tasks]
    assert names == ["reconstruction/train", "naming/train", "drawing/train"]


def test_an_untrained_model_is_measured_and_the_numbers_repeat(pipeline: VargptPipeline, folder: ImageFolder):
    suite = folder_suite(folder, pipeline.model.config.schedule(), "colours", limit=3)

    def run(batch_size: int) -> dict[str, list[float]]:
        with Subject(pipeline, batch_size=batch_size) as subject:
            result = run_suite(suite, subject, progress=lambda title, done, total: None)
        assert result.document["conditions"]["limit"] == 3
        return {name: numbers(examples) for name, examples in result.judged.items()}

    first, again = run(3), run(2)
    abilities = ["reconstruction", "naming", "drawing", "editing"]
    assert list(first) == [f"{name}/{part}" for part in ("validation", "train") for name in abilities]
    assert all(1 <= len(values) <= 3 for values in first.values())
    for name, values in first.items():
        assert again[name] == pytest.approx(values, abs=0.01 if name.startswith("reconstruction") else 0.0)


def test_the_seed_of_a_drawing_follows_from_its_name(gallery: Gallery):
    """The place in the list did not do: with a limit the same name got another picture."""
    seen: dict[int | None, dict[str, int]] = {}
    for limit in (None, 4):
        seen[limit] = {}

        def paint(name: str, seed: int, into: dict[str, int] = seen[limit]) -> np.ndarray:
            into[name] = seed
            return np.zeros((64, 64, 3), np.uint8)

        judged(Drawing(gallery, "train", limit), paint)
    assert len(seen[4]) == 4 and seen[4].items() <= seen[None].items()
    assert len(set(seen[None].values())) == len(seen[None])
    assert example_seed(0, "drawing", "a") == example_seed(0, "drawing", "a") != example_seed(1, "drawing", "a")
