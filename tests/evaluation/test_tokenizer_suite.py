"""The tokenizer suite: every number is what the pictures and bits say, on a real (tiny) model and on exact copies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from vargpt.data.folder import read_folder
from vargpt.data.scenes.checker import Reading, read
from vargpt.data.scenes.world import split_of
from vargpt.evaluation.harness import estimate, run_suite, write_results
from vargpt.evaluation.metrics.codes import code_estimates
from vargpt.evaluation.metrics.extractor import FEATURES, extractor_hash, features_of
from vargpt.evaluation.metrics.frechet import frechet_distance
from vargpt.evaluation.metrics.image_quality import PSNR_LIMIT, psnr, ssim
from vargpt.evaluation.report.page import page
from vargpt.evaluation.subject import Subject
from vargpt.evaluation.suites.tokenizer import (
    Reconstruction,
    folder_originals,
    pack,
    scene_originals,
    size_name,
    tokenizer_suite,
    unpack,
)
from vargpt.inference.pipeline import VargptPipeline
from vargpt.scales import ScaleSchedule


@pytest.fixture(scope="module")
def subject(tiny_model: Path) -> Iterator[Subject]:
    with Subject(VargptPipeline.from_pretrained(tiny_model), batch_size=4) as subject:
        yield subject


class Copying:
    """A subject whose tokenizer returns its pictures, or all of them with one channel inverted, and given bits."""

    def __init__(self, bits: Tensor, spoil: bool = False) -> None:
        self.bits, self.spoil = bits, spoil

    def reconstructions(self, images_nHW3: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
        results = images_nHW3.clone()
        if self.spoil:
            results[..., 0] = 255 - results[..., 0]
        return results, self.bits[: len(images_nHW3)]

    def read(self, images_nHW3: Tensor) -> list[Reading]:
        return [read(picture) for picture in images_nHW3.numpy()]


SCHEDULE = ScaleSchedule.from_template(1.0, 4)  # 96 x 96 pixels, 1 + 4 + 16 + 36 tokens
BITS = torch.randint(0, 2, (6, 57, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def task() -> Reconstruction:
    return Reconstruction("scenes", "Scenes", scene_originals(6), SCHEDULE)


def test_exact_copies_get_the_best_numbers():
    copying = cast(Subject, Copying(BITS))
    judged = task().judge(copying, task().examples())
    found = {name.removeprefix("tokenizer/scenes/96/"): value for name, value in estimate(task(), judged).items()}
    assert found["psnr"].mean == PSNR_LIMIT and found["ssim"].mean == 1.0
    assert found["read-right"].mean == found["read-original"].mean == 1.0
    assert found["frechet"].mean == pytest.approx(0, abs=1e-6) and found["frechet"].count == 6
    expected = code_estimates(BITS.numpy(), SCHEDULE.lengths)
    assert {name: found[name] for name in expected} == expected and len(expected) == 2 + 2 * 4
    assert judged[0].features is not None and judged[0].features.dtype == torch.uint8


def test_wrong_colours_are_read_wrong_and_are_far_away():
    copying = cast(Subject, Copying(BITS, spoil=True))
    judged = task().judge(copying, task().examples())
    found = {name.rpartition("/")[2]: value for name, value in estimate(task(), judged).items()}
    assert found["read-right"].mean == 0.0 and found["read-original"].mean == 1.0
    pictures = {role: torch.stack([example.pictures[role] for example in judged])
                for role in ("original", "reconstruction")}  # fmt: skip
    both = pictures["original"], pictures["reconstruction"]
    assert found["psnr"].mean == pytest.approx(psnr(*both).mean().item())
    assert found["ssim"].mean == pytest.approx(ssim(*both).mean().item())
    expected = frechet_distance(*(features_of(images).numpy() for images in both))
    assert found["frechet"].mean == pytest.approx(expected, rel=1e-4) and expected > 1
    assert judged[0].prompt == scene_originals(1)[0].words and "background" in judged[0].answer


def test_scenes_are_of_all_splits_and_the_same_at_every_size():
    originals = scene_originals(6)
    assert [split_of(item.scene) for item in originals if item.scene] == ["train", "validation", "unseen"] * 2
    assert [item.key for item in originals[:2]] == ["train 0", "validation 1"]
    assert scene_originals(6) == originals and scene_originals(3) == originals[:3]
    assert scene_originals(3, seed=1)[0].scene != originals[0].scene
    small, large = (originals[0].pixels(ScaleSchedule.from_template(1.0, scales)) for scales in (3, 4))
    assert small.shape == (64, 64, 3) and large.shape == (96, 96, 3) and small.dtype == torch.uint8


def test_features_and_bits_survive_packing():
    features = torch.randn(2 * FEATURES)
    bits = torch.randint(0, 2, (7, 13)).to(torch.uint8)
    packed = pack(features, bits)
    assert packed.numel() == 4 + 8 * FEATURES + 7 * 2
    again, again_bits = unpack(packed, 7)
    assert np.array_equal(again, features.numpy()) and np.array_equal(again_bits, bits.numpy())


def test_the_suite_runs_on_a_model_and_makes_its_files(subject: Subject, repo_root: Path, tmp_path: Path):
    suite = tokenizer_suite([subject.schedule], scenes=5, folder=read_folder(repo_root / "examples"), limit=3)
    result = run_suite(suite, subject, {"model": "tiny"}, progress=lambda *_: None)
    measures = result.document["measures"]
    assert list(result.document["tasks"]) == ["tokenizer/scenes/64", "tokenizer/train/64"]
    assert measures["tokenizer/scenes/64/psnr"]["n"] == 5 and measures["tokenizer/train/64/psnr"]["n"] == 3
    assert measures["tokenizer/scenes/64/read-right"]["title"] == "Scenes, 64×64: checker right after reconstruction"
    assert "tokenizer/train/64/read-right" not in measures
    assert result.document["conditions"]["extractor"] == extractor_hash()
    assert set(suite.headline) <= set(measures)
    rows = [json.loads(line) for line in (write_results(result, tmp_path).parent / "examples.jsonl").open()]
    assert rows[0]["key"] == "train 0" and rows[5]["key"].endswith(".png")
    text = page(result)
    assert "Checker right after reconstruction" in text and "reconstruction</figcaption>" in text


def test_numbers_do_not_depend_on_the_batch(subject: Subject):
    originals = Reconstruction("scenes", "Scenes", scene_originals(3), subject.schedule)
    together = originals.judge(subject, originals.examples())
    alone = [originals.judge(subject, [example])[0] for example in originals.examples()]
    for first, second in zip(together, alone, strict=True):
        assert first.values == pytest.approx(second.values, abs=0.02) and first.key == second.key


def test_sizes_are_named_by_their_sides():
    assert size_name(SCHEDULE) == "96" and size_name(ScaleSchedule.from_template(2.0, 5)) == "160x80"


def test_nothing_to_do_is_refused(repo_root: Path):
    with pytest.raises(ValueError, match="nothing to reconstruct"):
        tokenizer_suite([SCHEDULE], scenes=0)
    with pytest.raises(ValueError, match="nothing to reconstruct"):
        tokenizer_suite([], scenes=5)
    folder = read_folder(repo_root / "examples")
    assert len(folder_originals(folder, "train", 3)) == 3
