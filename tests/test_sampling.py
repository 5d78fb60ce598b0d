"""Sampling: literal probabilities, the recorded random stream, seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vargpt import sampling
from vargpt.sampling import Sampling


def two_way(delta: list[float]) -> torch.Tensor:
    """Logits [l, 1, 2] with the given logit differences."""
    d = torch.tensor(delta)
    return torch.stack([torch.zeros_like(d), d], dim=-1)[:, None]


def test_top_p_decides_bits_beyond_its_threshold() -> None:
    probabilities = sampling.bit_probabilities(two_way([0.0, 3.4, 3.5, -3.5]), 0.97)[:, 0, 1]
    assert probabilities.tolist() == pytest.approx([0.5, 0.96770, 1.0, 0.0], abs=1e-4)
    unfiltered = sampling.bit_probabilities(two_way([3.5]), 1.0)[0, 0, 1]
    assert unfiltered.item() == pytest.approx(0.97069, abs=1e-4)


def test_a_tie_at_small_top_p_removes_value_zero() -> None:
    assert sampling.bit_probabilities(two_way([0.0]), 0.5)[0, 0].tolist() == [0.0, 1.0]
    assert sampling.likelier_bits(two_way([0.0, 1.0, -1.0]))[:, 0].tolist() == [0, 1, 0]


def test_general_filters_on_a_literal_row() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert torch.isinf(sampling.filter_logits(logits, top_k=2)).tolist() == [False, False, True, True]
    # From below 0.05, 0.20 are at most 1 - 0.8; 0.50 is not.
    assert torch.isinf(sampling.filter_logits(logits, top_p=0.8)).tolist() == [False, False, True, True]
    assert not torch.isinf(sampling.filter_logits(logits, 0, 0.0)).any()


@pytest.mark.parametrize(("name", "top_p"), [("k900_p097", 0.97), ("k0_p0", 0.0), ("k0_p05", 0.5)])
def test_bits_follow_the_recorded_random_stream(goldens: Path, name: str, top_p: float) -> None:
    recorded = load_file(goldens / "sampler.safetensors")
    logits = recorded["bits.logits"][0][:, None]
    drawn = sampling.sample_bits(logits, top_p, torch.Generator().manual_seed(1234))
    assert torch.equal(drawn[:, 0].long(), recorded[f"bits.{name}.idx"][0, :, 0].long())
    removed = sampling.bit_probabilities(logits, top_p)[:, 0] == 0
    assert torch.equal(removed, recorded[f"bits.{name}.removed"][0].bool())


@pytest.mark.parametrize(("name", "top_k", "top_p"), [("k10_p09", 10, 0.9), ("k0_p0", 0, 0.0)])
def test_words_follow_the_recorded_random_stream(goldens: Path, name: str, top_k: int, top_p: float) -> None:
    recorded = load_file(goldens / "sampler.safetensors")
    filtered = sampling.filter_logits(recorded["vocab.logits"].flatten(0, 1), top_k, top_p)
    drawn = sampling.draw(torch.softmax(filtered, dim=-1), torch.Generator().manual_seed(4321))
    assert torch.equal(drawn, recorded[f"vocab.{name}.idx"].flatten().long())
    assert torch.equal(torch.isinf(filtered), recorded[f"vocab.{name}.removed"].flatten(0, 1).bool())


def test_draw_equals_multinomial_on_the_cpu() -> None:
    probabilities = torch.rand(50, 2, generator=torch.Generator().manual_seed(3))
    ours = sampling.draw(probabilities, torch.Generator().manual_seed(7))
    theirs = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(7))[:, 0]
    assert torch.equal(ours, theirs)


def test_greedy_and_sampled_words() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0])
    generator = sampling.text_generator(0)
    assert sampling.sample_token(logits, 0.0, 0, 1.0, generator) == 1
    assert sampling.sample_token(logits, 1.0, 1, 1.0, generator) == 1
    assert {sampling.sample_token(logits, 5.0, 0, 1.0, generator) for _ in range(60)} == {0, 1, 2}


def test_generators_differ_by_seed_image_and_use() -> None:
    draws = {
        torch.rand(1, generator=generator).item()
        for generator in (
            sampling.image_generator(0),
            sampling.image_generator(1),
            sampling.image_generator(0, 1),
            sampling.text_generator(0),
            sampling.text_generator(1),
        )
    }
    assert len(draws) == 5
    official = torch.rand(3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.rand(3, generator=sampling.image_generator(5)), official)


def test_guidance_and_per_scale_lists() -> None:
    guided = sampling.guide(torch.tensor([2.0]), torch.tensor([1.0]), 3.0)
    assert guided.item() == 4.0
    assert sampling.per_scale(2, 3, "temperature") == [2.0, 2.0, 2.0]
    assert sampling.per_scale([1, 2], 2, "temperature") == [1.0, 2.0]
    with pytest.raises(ValueError, match="guidance_scale has 2 entries, but this schedule has 3 scales"):
        sampling.per_scale([1.0, 2.0], 3, "guidance_scale")


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="top_p must be between 0 and 1, got 2"):
        Sampling(top_p=2)
    with pytest.raises(ValueError, match="images_per_prompt must be at least 1"):
        Sampling(images_per_prompt=0)
    with pytest.raises(ValueError, match="temperatures must not be negative"):
        Sampling(temperature=[0.5, -1.0])
    with pytest.raises(ValueError, match=r"3 .* got 2"):
        Sampling(seeds=[1, 2]).seed_list(3)
    assert Sampling.paper().guidance_scale == 1.5
    assert Sampling.official().stop_after_image


def test_bytes_round_or_truncate() -> None:
    values = torch.tensor([-1.0, 0.0, 1.0, 2.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert sampling.pixels_to_uint8(values)[0, :, :, 0].flatten().tolist() == [0, 128, 255, 255]
    assert sampling.pixels_to_uint8(values, "official")[0, :, :, 0].flatten().tolist() == [0, 127, 255, 255]


def test_images_together_get_the_bits_that_each_gets_alone() -> None:
    torch.manual_seed(3)
    logits = torch.randn(4, 6, 5, 2) * 2
    seeds = [7, 0, 7, 2**40]
    together = sampling.sample_bits_together(logits, 0.9, [sampling.image_generator(seed) for seed in seeds])
    alone = [
        sampling.sample_bits(row, 0.9, sampling.image_generator(seed)) for row, seed in zip(logits, seeds, strict=True)
    ]
    assert together.dtype == torch.uint8 and torch.equal(together, torch.stack(alone))
    assert not torch.equal(together[0], together[2])
