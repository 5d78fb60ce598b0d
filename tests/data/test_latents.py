"""The latent cache gives back what the encoder gave, bit for bit, or has it made again."""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vargpt.configuration import ImageTokenizerConfig
from vargpt.data.latents import LatentCache, encoder_fingerprint
from vargpt.image_tokenizer import ImageTokenizer
from vargpt.scales import ScaleSchedule


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    config = ImageTokenizerConfig(
        bits=4, base_channels=32, channel_multipliers=[1, 1], num_res_blocks=1, stride=16, patch_size=8
    )
    return ImageTokenizer(config).eval()


def pixels(seed: int, side: int = 32) -> Tensor:
    return torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def features(tokenizer: ImageTokenizer, image: Tensor) -> Tensor:
    return tokenizer.features(image[None])[0]


def refuse() -> Tensor:
    raise AssertionError("it should have been found")


def test_bits_from_the_cache_are_those_computed_afresh(tmp_path: Path, tokenizer: ImageTokenizer):
    schedule = ScaleSchedule(1.0, 2)
    flips = torch.rand(1, schedule.num_tokens, 4, generator=torch.Generator().manual_seed(1)) < 0.3
    name = encoder_fingerprint(tokenizer)
    with LatentCache(tmp_path, name) as cache, torch.no_grad():
        for seed in range(3):
            image = pixels(seed)
            cache.get(image, partial(features, tokenizer, image))
    again = LatentCache(tmp_path, name)
    assert len(again) == 3
    for seed in range(3):
        latent = again.get(pixels(seed), refuse)
        for flipped in (None, flips):
            fresh = tokenizer.encode(pixels(seed)[None], schedule, flipped)
            kept = tokenizer.quantize(latent[None], schedule, flipped)
            assert torch.equal(fresh.labels_BLd, kept.labels_BLd)
            assert torch.equal(fresh.next_inputs_BMd, kept.next_inputs_BMd)
            assert torch.equal(fresh.canvas_Bdhw, kept.canvas_Bdhw)
    assert (again.hits, again.misses) == (3, 0)


def test_the_key_is_the_pixels_and_the_encoder(tmp_path: Path, tokenizer: ImageTokenizer):
    with LatentCache(tmp_path, "one") as cache:
        cache.get(pixels(0), lambda: torch.zeros(4, 2, 2))
        changed = pixels(0)
        changed[0, 0, 0] += 1e-6
        assert cache.get(changed, lambda: torch.ones(4, 2, 2)).sum() == 16
        assert cache.get(pixels(0).reshape(3, 16, 64), lambda: torch.ones(4, 1, 4)).shape == (4, 1, 4)
    assert (cache.hits, cache.misses, len(cache)) == (0, 3, 3)
    assert len(LatentCache(tmp_path, "one")) == 3, "latents of any shape"
    assert len(LatentCache(tmp_path, "two")) == 0
    name = encoder_fingerprint(tokenizer)
    with torch.no_grad():
        tokenizer.encoder.conv_in.weight[0, 0, 0, 0] += 1e-6
        assert encoder_fingerprint(tokenizer) != name
        tokenizer.encoder.conv_in.weight[0, 0, 0, 0] -= 1e-6
        tokenizer.decoder.conv_in.weight[0, 0, 0, 0] += 1
    assert encoder_fingerprint(tokenizer.to(torch.bfloat16)) != name


def test_what_is_written_is_found_in_the_same_process_too(tmp_path: Path):
    cache = LatentCache(tmp_path, "x", flush_bytes=200)
    for seed in range(5):
        cache.get(pixels(seed), partial(torch.full, (4, 2, 2), float(seed)))
    assert len(list((tmp_path / "x").glob("*.latents"))) == 1, "four latents of 64 bytes reach the limit"
    for seed in range(5):
        assert cache.get(pixels(seed), refuse).mean() == seed
    cache.flush()
    assert len(LatentCache(tmp_path, "x")) == 5


def test_processes_share_a_folder(tmp_path: Path):
    one, two = LatentCache(tmp_path, "x"), LatentCache(tmp_path, "x")
    for number, cache in enumerate((one, two)):
        for seed in (number, 5):
            cache.get(pixels(seed), partial(torch.full, (4, 2, 2), float(seed)))
        cache.flush()
    both = LatentCache(tmp_path, "x")
    assert [both.get(pixels(seed), refuse).mean().item() for seed in (0, 1, 5)] == [0, 1, 5]


def test_threads_share_a_cache(tmp_path: Path):
    cache = LatentCache(tmp_path, "x", flush_bytes=500)
    wrong: list[int] = []

    def work() -> None:
        for seed in range(40):
            if cache.get(pixels(seed, 16), partial(torch.full, (4, 1, 1), float(seed))).mean() != seed:
                wrong.append(seed)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.flush()
    assert wrong == [] and cache.hits + cache.misses == 160
    again = LatentCache(tmp_path, "x")
    assert [again.get(pixels(seed, 16), refuse).mean().item() for seed in range(40)] == list(range(40))


@pytest.mark.parametrize(
    "damage, kept",
    [
        (lambda data: data[:-1], 0),
        (lambda data: b"junk" + data[4:], 0),
        (lambda data: b"", 0),
        (lambda data: data[:-3] + b"\xff" + data[-2:], 1),
        (lambda data: data[:8] + b"\xff\xff\xff\x7f" + data[12:], 0),
    ],
)
def test_a_damaged_file_is_made_again(tmp_path: Path, damage, kept: int, capsys: pytest.CaptureFixture[str]):
    with LatentCache(tmp_path, "x") as cache:
        for seed in range(2):
            cache.get(pixels(seed), partial(torch.full, (4, 2, 2), float(seed)))
    (path,) = (tmp_path / "x").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    again = LatentCache(tmp_path, "x")
    assert [again.get(pixels(seed), partial(torch.full, (4, 2, 2), float(seed))).mean() for seed in range(2)] == [0, 1]
    assert again.hits == kept
    assert ("damaged" in capsys.readouterr().err) == (kept == 0)


def test_a_file_that_vanishes_is_made_again(tmp_path: Path):
    with LatentCache(tmp_path, "x") as cache:
        cache.get(pixels(0), lambda: torch.zeros(4, 2, 2))
    again = LatentCache(tmp_path, "x")
    for path in (tmp_path / "x").iterdir():
        os.unlink(path)
    assert again.get(pixels(0), lambda: torch.ones(4, 2, 2)).sum() == 16


def test_where_nothing_can_be_written_training_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "x").write_text("in the way")
    with LatentCache(tmp_path, "x", flush_bytes=1) as cache:
        for seed in range(3):
            assert cache.get(pixels(seed), lambda: torch.ones(4, 2, 2)).sum() == 16
    assert capsys.readouterr().err.count("latents are not kept any more") == 1


def test_only_float32_is_kept(tmp_path: Path):
    with pytest.raises(ValueError, match=r"must be float32, got torch.bfloat16"):
        LatentCache(tmp_path, "x").get(pixels(0), lambda: torch.ones(4, 2, 2, dtype=torch.bfloat16))
