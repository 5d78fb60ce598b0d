"""The four measures: right answers count, wrong ones do not, and the numbers can be had again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from vargpt.data.folder import ImageFolder, read_folder
from vargpt.evaluation.folder import FolderEvaluation, Outcome, squared_distances, take
from vargpt.inference.pipeline import VargptPipeline
from vargpt.inputs import ModelInputs
from vargpt.sampling import Sampling

COUNT = 12


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


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> VargptPipeline:
    return VargptPipeline.from_pretrained(tiny_model)


@pytest.fixture
def evaluation(pipeline: VargptPipeline, folder: ImageFolder) -> FolderEvaluation:
    """Batches of three, so that the last one is short."""
    return FolderEvaluation(pipeline.model, pipeline.processor, folder, Sampling.official(), batch_size=3)


def outcome(value: Outcome | None) -> Outcome:
    assert value is not None
    return value


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
    queries, gallery = (torch.randint(0, 256, (count, 300), generator=generator).float() for count in (4, 60))
    whole = squared_distances(queries, gallery)
    monkeypatch.setattr("vargpt.evaluation.folder._CHUNK", 7)
    assert torch.allclose(squared_distances(queries, gallery), whole, rtol=1e-4)
    exact = (queries[:, None] - gallery[None]).square().mean(-1)
    assert torch.allclose(whole, exact, rtol=1e-3)
    assert torch.equal(squared_distances(gallery, gallery).argmin(1), torch.arange(60))


def test_naming_counts_exact_matches_whatever_the_case(evaluation: FolderEvaluation, monkeypatch: pytest.MonkeyPatch):
    records = evaluation.folder.split_images("train")
    answers = [f" {record.text.lower()}\n" for record in records]
    answers[1] = "colour"
    replies = iter(answers)
    monkeypatch.setattr(evaluation, "_answers", lambda prompts: [next(replies) for _ in prompts])
    result = outcome(evaluation.naming("train"))
    assert [sample.value for sample in result.samples] == [1.0, 0.0] + [1.0] * (len(records) - 2)
    assert result.estimate.mean == pytest.approx((len(records) - 1) / len(records))


def test_drawing_is_right_when_the_nearest_picture_of_all_is_the_named_one(
    evaluation: FolderEvaluation, monkeypatch: pytest.MonkeyPatch
):
    records = evaluation.folder.split_images("validation")
    assert len(records) >= 2
    truth = [evaluation.pixels(record.file_name) for record in records]
    other = evaluation.folder.split_images("train")[0]
    drawn = [(truth[0].int() + 3).clamp(0, 255).to(torch.uint8), evaluation.pixels(other.file_name), *truth[2:]]
    seeds: list[int] = []
    queue = iter(drawn)

    def drawings(prompts: list[object], first_seed: int) -> Tensor:
        seeds.extend(range(first_seed, first_seed + len(prompts)))
        return torch.stack([next(queue) for _ in prompts])

    monkeypatch.setattr(evaluation, "_drawings", drawings)
    result = outcome(evaluation.drawing("validation"))
    assert [sample.value for sample in result.samples] == [1.0, 0.0] + [1.0] * (len(records) - 2)
    assert result.samples[1].answer == other.text  # the gallery holds the training pictures too
    assert seeds == list(range(len(records)))


def test_editing_is_right_when_the_result_is_nearer_to_the_target(
    evaluation: FolderEvaluation, monkeypatch: pytest.MonkeyPatch
):
    edits = evaluation.folder.split_edits("train")
    assert len(edits) >= 3
    results = [evaluation.pixels(edit.target) for edit in edits]
    results[0] = evaluation.pixels(edits[0].source)
    middle = evaluation.pixels(edits[1].source).float() + evaluation.pixels(edits[1].target).float()
    results[1] = (middle / 2).to(torch.uint8)
    queue = iter(results)
    monkeypatch.setattr(evaluation, "_drawings", lambda prompts, seed: torch.stack([next(queue) for _ in prompts]))
    values = [sample.value for sample in outcome(evaluation.editing("train")).samples]
    assert values == [0.0, 0.0] + [1.0] * (len(edits) - 2)  # as near to the source is not nearer to the target


def test_reconstruction_is_the_psnr_of_bytes(evaluation: FolderEvaluation, monkeypatch: pytest.MonkeyPatch):
    records = evaluation.folder.split_images("train")
    offset = iter([0, 5, *([10] * len(records))])
    originals = iter([evaluation.pixels(record.file_name) for record in records])

    def decode(canvas_Bdhw: Tensor) -> Tensor:
        rows = [next(originals).permute(2, 0, 1).float() for _ in range(len(canvas_Bdhw))]
        return torch.stack([(row + (next(offset) * (1 - 2 * (row > 127)))) / 127.5 - 1 for row in rows])

    monkeypatch.setattr(evaluation.model.image_tokenizer, "decode", decode)
    values = [sample.value for sample in outcome(evaluation.reconstruction("train")).samples]
    expected = [108.13, 34.15, 28.13]  # 10 log10(255^2 / e), e = 1e-6 (the floor), 25, 100
    assert values[:3] == pytest.approx(expected, abs=0.01)


def test_a_part_without_examples_has_no_outcome(pipeline: VargptPipeline, folder: ImageFolder):
    bare = ImageFolder(folder.root, folder.images, (), 0.0)
    evaluation = FolderEvaluation(pipeline.model, pipeline.processor, bare, Sampling.official())
    assert evaluation.editing("train") is None and evaluation.naming("validation") is None


def test_an_untrained_model_is_measured_and_the_numbers_repeat(
    pipeline: VargptPipeline, folder: ImageFolder, capsys: pytest.CaptureFixture[str]
):
    def numbers(batch_size: int) -> dict[tuple[str, str], list[float]]:
        sampling = Sampling.official()
        evaluation = FolderEvaluation(pipeline.model, pipeline.processor, folder, sampling, batch_size, limit=3)
        return {(o.name, o.part): [s.value for s in o.samples] for o in evaluation.run()}

    first = numbers(3)
    assert {part for _, part in first} == {"validation", "train"}
    assert [name for name, part in first if part == "train"] == ["reconstruction", "naming", "drawing", "editing"]
    assert all(len(values) <= 3 for values in first.values())
    assert numbers(3) == first
    again = numbers(2)
    assert {key: again[key] for key in again if key[0] != "reconstruction"} == {
        key: first[key] for key in first if key[0] != "reconstruction"
    }
    assert "drawing (train): " in capsys.readouterr().err


def test_the_seed_of_a_drawing_is_its_place_in_the_list(evaluation: FolderEvaluation, monkeypatch: pytest.MonkeyPatch):
    seeds: list[int] = []
    generate = evaluation.model.generate

    def listening(inputs: ModelInputs, sampling: Sampling, **options: Any) -> Any:
        assert isinstance(sampling.seeds, list)
        seeds.extend(sampling.seeds)
        return generate(inputs, sampling, **options)

    monkeypatch.setattr(evaluation.model, "generate", listening)
    evaluation.limit = 5  # batches of three
    evaluation.drawing("train")
    evaluation.editing("train")
    assert seeds == [0, 1, 2, 3, 4] * 2
