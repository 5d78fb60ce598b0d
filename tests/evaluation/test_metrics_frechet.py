"""The Fréchet distance against closed forms, and the extractor that makes its features."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from vargpt.data.scenes.render import render
from vargpt.data.scenes.sampler import sample_scene
from vargpt.data.scenes.world import Scene, Thing
from vargpt.evaluation.metrics.extractor import (
    FEATURES,
    WEIGHTS,
    Extractor,
    accuracies,
    attributes,
    extractor_hash,
    features_of,
    gaussian_blur,
    load_extractor,
    main,
    signed_input,
    standardised,
)
from vargpt.evaluation.metrics.frechet import frechet_distance, frechet_estimate, frechet_of_gaussians


def test_gaussians_with_a_closed_form():
    zero, one = np.zeros(2), np.eye(2)
    assert frechet_of_gaussians(zero, one, np.array([3.0, 4.0]), one) == pytest.approx(25)
    # diagonal covariances: the sum of (deviation - deviation)^2
    assert frechet_of_gaussians(zero, np.diag([4.0, 9.0]), zero, np.diag([1.0, 25.0])) == pytest.approx(1 + 4)
    # one without any spread in a direction
    assert frechet_of_gaussians(zero, np.diag([4.0, 0.0]), zero, np.diag([1.0, 0.0])) == pytest.approx(1)


def test_covariances_that_do_not_commute():
    generator = np.random.default_rng(0)
    first, second = (m @ m.T for m in generator.normal(size=(2, 5, 5)))
    # trace of the root of C1 C2 by the eigenvalues of the unsymmetric product
    root = np.sqrt(np.linalg.eigvals(first @ second).real).sum()
    expected = np.trace(first) + np.trace(second) - 2 * root
    zero = np.zeros(5)
    assert frechet_of_gaussians(zero, first, zero, second) == pytest.approx(expected)
    assert frechet_of_gaussians(zero, second, zero, first) == pytest.approx(expected)


def test_samples_are_taken_as_gaussians():
    first = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])  # variances 4/3
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, 3 * first + 1) == pytest.approx(2 * 9 + 2 * 4 * 4 / 3)
    with pytest.raises(ValueError, match="at least 2 rows"):
        frechet_distance(first[:1], first)
    with pytest.raises(ValueError, match="2 and 1 columns"):
        frechet_distance(first, first[:, :1])


def test_the_interval_of_a_distance_holds_it_and_narrows():
    generator = np.random.default_rng(1)
    widths = []
    for count in (100, 1600):
        first = generator.normal(size=(count, 3))
        estimate = frechet_estimate(first, first * 1.5 + 0.5)
        assert estimate.low < estimate.mean < estimate.high and estimate.count == count
        assert estimate.mean == frechet_distance(first, first * 1.5 + 0.5)
        widths.append(estimate.high - estimate.low)
    assert widths[1] < 0.5 * widths[0]
    same = generator.normal(size=(50, 3))
    assert frechet_estimate(same, same).high == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="one shape"):
        frechet_estimate(same, same[1:])


def scenes(purpose: str, count: int, side: int = 64) -> torch.Tensor:
    return torch.stack(
        [torch.from_numpy(render(sample_scene(f"{purpose} {index}"), side, side)) for index in range(count)]
    )


def test_worse_pictures_are_farther_away():
    reference = features_of(scenes("test a", 250)).numpy()
    other = scenes("test b", 250)

    def away(images: torch.Tensor) -> float:
        return frechet_distance(reference, features_of(images).numpy())

    def blurred(sigma: float) -> torch.Tensor:
        return gaussian_blur(other.permute(0, 3, 1, 2).float(), sigma).permute(0, 2, 3, 1).to(torch.uint8)

    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
    floor = away(other)
    colours = torch.cat([other[:50].roll(1, -1), other[50:]])
    for worse in (
        [blurred(0.7), blurred(1.5)],
        [(other + level * noise).clamp(0, 255).to(torch.uint8) for level in (8, 24)],
        [colours, other.roll(1, -1)],
        [other[:10].repeat(25, 1, 1, 1), other[:2].repeat(125, 1, 1, 1)],
    ):
        mild, strong = (away(images) for images in worse)
        assert floor < mild < strong


def test_the_extractor_knows_what_is_in_a_scene():
    found = accuracies(load_extractor(), 256)
    assert found.pop("pairs") > 0.4  # all of 64 at once
    assert min(found.values()) > 0.95


def test_attributes_of_a_scene():
    scene = Scene((Thing("star", "red"), Thing("star", "blue", texture="dotted", x=0.2, y=0.2)), "sky")
    found = attributes(scene)
    assert found["shapes"].tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert found["colours"].tolist() == [1, 0, 0, 0, 0, 1, 0, 0]
    assert found["textures"].tolist() == [1, 0, 1]
    assert np.flatnonzero(found["pairs"]).tolist() == [3, 5 * 8 + 3]
    assert found["count"] == 2 and found["background"] == 3


def test_features_do_not_depend_on_the_batch_and_large_pictures_are_reduced():
    images = scenes("batch", 5, 128)
    together = features_of(images)
    assert together.shape == (5, FEATURES)
    assert torch.allclose(features_of(images, batch_size=2), together, atol=1e-4)
    noise = torch.randint(0, 256, (1, 128, 128, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    small = signed_input(noise)
    assert small.shape == (1, 3, 64, 64)
    expected = noise[0, 2:4, 6:8, 1].float().mean() / 127.5 - 1
    assert small[0, 1, 1, 3] == pytest.approx(expected.item(), abs=1e-6)
    with pytest.raises(ValueError, match="uint8"):
        features_of(images.float())


def test_scaling_the_features_keeps_the_answers():
    torch.manual_seed(0)
    network = Extractor().eval()
    images = signed_input(scenes("scale", 40))
    with torch.no_grad():
        before = network.answers(network(images))
        standardised(network, [images])
        features = network(images)
        after = network.answers(features)
    assert torch.allclose(features.mean(0), torch.zeros(FEATURES), atol=1e-4)
    assert torch.allclose(features.std(0), torch.ones(FEATURES), atol=1e-4)
    assert all(torch.allclose(before[name], after[name], atol=1e-4) for name in before)


def test_the_command_makes_the_same_file_twice(tmp_path: Path, repo_root: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--folder", str(repo_root / "examples"), "--steps", "2", "--batch-size", "8", "--test-scenes", "8"]
    for name in ("a", "b"):
        assert main(["--output", str(tmp_path / name), *arguments]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert f"hash {extractor_hash(tmp_path / 'a')}" in capsys.readouterr().out
    assert extractor_hash() == hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:16]
    assert WEIGHTS.stat().st_size < 600_000


def test_other_files_are_refused(tmp_path: Path):
    from safetensors.torch import save_file

    with pytest.raises(ValueError, match="make it with"):
        load_extractor(tmp_path / "missing.safetensors")
    save_file({"features.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not the extractor's weights"):
        load_extractor(tmp_path / "other.safetensors")
