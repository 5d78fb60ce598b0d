"""Growing a trained model: deeper parts compute the same at first and then learn; another image tokenizer."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_init_weights import SIZES, TEXTS, recipe_with

from vargpt.data.instructions import edit_conversation
from vargpt.losses import image_loss
from vargpt.model import VargptForConditionalGeneration
from vargpt.model.modeling import VargptOutput
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.weights.growth import origins
from vargpt.training.weights.init_weights import make_model, make_processor

BITS = SIZES["image_tokenizer"]["bits"]
SCHEDULE = ScaleSchedule(1.0, 2, SIZES["image_tokenizer"]["stride"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model none of whose weights is zero, and its processor."""
    place = tmp_path_factory.mktemp("model")
    processor = make_processor(recipe_with(), TEXTS)
    model = make_model(recipe_with(), processor)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place


def grown(folder: Path, **changes: Any) -> tuple[VargptForConditionalGeneration, VargptProcessor]:
    sizes = changes.pop("model", SIZES)
    recipe = recipe_with(init={"model": str(folder), **changes}, model=sizes)
    processor = make_processor(recipe, [])
    return make_model(recipe, processor), processor


def edited(model: VargptForConditionalGeneration, processor: VargptProcessor) -> VargptOutput:
    """What a model says of a picture read and another one drawn."""
    first, second = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    conversation = edit_conversation(first, second, "ab", random.Random(0), 0.0)
    inputs = processor.collate([processor.encode(conversation, SCHEDULE)], multiple_of=1).inputs
    generator = torch.Generator().manual_seed(1)
    tokens, first_tokens = SCHEDULE.num_tokens, SCHEDULE.lengths[0]
    inputs.labels_ILd = torch.randint(0, 2, (1, tokens, BITS), generator=generator, dtype=torch.uint8)
    inputs.next_inputs_IMd = torch.randn(1, tokens - first_tokens, BITS, generator=generator)
    return model(inputs)


@pytest.mark.parametrize("depths", [{"vision": 3}, {"backbone": 5}, {"decoder": 6}], ids=str)
def test_a_deeper_model_computes_the_same_and_its_new_layers_learn(folder: Path, depths: dict[str, int]) -> None:
    plain, deep = grown(folder), grown(folder, depths=depths)
    expected, got = edited(*plain), edited(*deep)
    assert expected.bit_logits_ILd2 is not None and got.bit_logits_ILd2 is not None
    torch.testing.assert_close(got.hidden_BTD, expected.hidden_BTD)
    torch.testing.assert_close(got.bit_logits_ILd2, expected.bit_logits_ILd2)
    silent = {name: value for name, value in deep[0].named_parameters() if not value.any()}
    more = sum(value.numel() for value in deep[0].parameters()) - sum(value.numel() for value in plain[0].parameters())
    assert silent and more > sum(value.numel() for value in silent.values())
    image_loss(got.bit_logits_ILd2, torch.ones(1, SCHEDULE.num_tokens, BITS), SCHEDULE, "per_scale").backward()
    assert all(value.grad is not None and value.grad.any() for value in silent.values())


def test_added_layers_are_spread_evenly() -> None:
    assert origins(2, 4) == [(0, False), (0, True), (1, False), (1, True)]
    assert origins(4, 6) == [(0, False), (1, False), (1, True), (2, False), (3, False), (3, True)]
    assert origins(3, 3) == [(0, False), (1, False), (2, False)]


def test_another_image_tokenizer_makes_only_what_touches_bits_new(folder: Path, tmp_path: Path) -> None:
    sizes = {**SIZES, "image_tokenizer": {**SIZES["image_tokenizer"], "bits": 6}}
    other = make_model(recipe_with(model=sizes, seed=9), make_processor(recipe_with(), TEXTS))
    other.save_pretrained(tmp_path)
    old, (new, _) = grown(folder)[0].state_dict(), grown(folder, image_tokenizer=str(tmp_path), model=sizes)
    assert new.config.image_tokenizer.bits == 6
    for name, value in new.state_dict().items():
        if name.startswith("image_tokenizer."):
            assert torch.equal(value, other.state_dict()[name]), name
        elif name.startswith(("decoder.word_embed.", "decoder.head.")):
            assert value.shape != old[name].shape or not torch.equal(value, old[name]), name
        else:
            assert torch.equal(value, old[name]), name


def test_what_cannot_grow_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"init\.depths\.decoder: .* it has 4 layers and cannot be given fewer, got 3"):
        grown(folder, depths={"decoder": 3})
    with pytest.raises(ValueError, match=r"init\.depths are those of a whole model"):
        recipe_with(init={"depths": {"decoder": 6}})
    with pytest.raises(ValueError, match=r"init\.depths"):
        grown(folder, depths={"decoders": 6})
