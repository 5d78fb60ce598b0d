"""Preference training straight from the published JSON, and latents kept on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_helpers import LOOP, recipe_with, require_same, sft_task, write_recipe

from vargpt.data.sources.open import open_preferences
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.loop.journal import read_journal
from vargpt.training.run import train
from vargpt.training.samples.image_cache import ImageCache
from vargpt.training.stages.published_pairs import PublishedPairs
from vargpt.training.weights.build import build_model

SOURCES = {"pairs": {"format": "official-preferences", "path": "pairs.json"}}
DPO = {"kind": "dpo", "pairs": "pairs", "loop": {**LOOP, "learning_rate": 1e-3}}


@pytest.fixture
def with_pairs(data: Path) -> Path:
    """The data folder with six pairs in the published format."""
    records = [
        {
            "conversations": [{"from": "human", "value": f"Can you draw colour {number}?"}],
            "chosen": {"from": "gpt", "value": f"I have drawn colour {number}. <image_gen>"},
            "rejected": {"from": "gpt", "value": f"I have drawn colour {number}. <image_gen>"},
            "images": [f"{number}.png", f"{number + 6}.png"],
        }
        for number in range(6)
    ]
    (data / "pairs.json").write_text(json.dumps(records))
    return data


def test_published_records_become_pairs_of_the_stages_size(with_pairs: Path, processor: VargptProcessor):
    recipe = recipe_with(sources=SOURCES)
    records = open_preferences("pairs", recipe.sources["pairs"], with_pairs)
    pairs = PublishedPairs(records, processor, ScaleSchedule(1.0, 2))
    assert len(pairs) == 6 and pairs[2].answer == "I have drawn colour 2."
    assert pairs[2].chosen.image().size == (32, 32) and pairs[2].chosen.bits is None
    assert pairs[2].chosen.image().getpixel((1, 1)) == (255, 0, 60)
    assert pairs[2].chosen.png == pairs[2].chosen.png != pairs[2].rejected.png


def test_a_recipe_trains_on_the_published_json(with_pairs: Path, tmp_path: Path):
    path = write_recipe(tmp_path / "dpo.yaml", sources=SOURCES, stages=[DPO])
    train(path, with_pairs, tmp_path / "out")
    entries = [entry for entry in read_journal(tmp_path / "out" / "dpo" / "journal.jsonl") if "loss" in entry]
    assert entries[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-12)
    assert entries[-1]["loss"] < entries[0]["loss"]


def test_latents_on_disk_change_nothing_and_are_found_again(
    data: Path, recipe_file: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cached = [f"latent_cache={tmp_path / 'latents'}"]
    train(recipe_file, data, tmp_path / "first", cached)
    require_same(uninterrupted, tmp_path / "first")
    assert list((tmp_path / "latents").glob("*/*.latents"))
    encoded: list[torch.Tensor] = []
    encode = ImageCache._encode

    def counted(self: ImageCache, pixels: torch.Tensor) -> torch.Tensor:
        encoded.append(pixels)
        return encode(self, pixels)

    monkeypatch.setattr(ImageCache, "_encode", counted)
    train(recipe_file, data, tmp_path / "second", cached)
    require_same(uninterrupted, tmp_path / "second")
    assert not encoded


def test_another_encoder_does_not_find_the_latents(data: Path, processor: VargptProcessor, tmp_path: Path):
    schedule, path = ScaleSchedule(1.0, 2), data / "1.png"
    values = []
    for seed in (0, 1):
        cache = ImageCache(processor, build_model(recipe_with(seed=seed), processor).image_tokenizer, tmp_path)
        values.append(cache.latent(path, schedule))
        cache.flush()
    assert not torch.equal(values[0], values[1])
    assert sft_task(recipe_with(), data, processor).batch(0)
