"""The façade: sizes, seeds, batches, previews, masks, words, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vargpt.configuration import Behaviour
from vargpt.inference.dialogue import Dialogue
from vargpt.inference.habits import Habits, read_habits
from vargpt.inference.pipeline import VargptPipeline
from vargpt.inference.streams import TextStream, group_requests, with_drawings
from vargpt.sampling import Sampling


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> VargptPipeline:
    return VargptPipeline.from_pretrained(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def fox(repo_root: Path) -> Image.Image:
    with Image.open(repo_root / "examples" / "fox.png") as image:
        return image.convert("RGB")


def arrays(images: list[Any]) -> list[np.ndarray]:
    return [np.asarray(image) for image in images]


def test_draw_returns_pil_pictures_of_the_models_size(pipeline: VargptPipeline) -> None:
    result = pipeline.draw("fox")
    assert [image.size for image in result.images] == [(64, 64)]
    assert (result.prompts, result.seeds) == (["fox"], [0])


def test_aspect_ratio_is_width_to_height(pipeline: VargptPipeline) -> None:
    assert pipeline.draw("fox", aspect_ratio="4:3").images[0].size == (64, 48)
    assert pipeline.draw("fox", height=64, width=48).images[0].size == (48, 64)


def test_each_picture_equals_the_same_request_alone(pipeline: VargptPipeline) -> None:
    """Whatever batch it rides in: other prompts, other seeds, other batch sizes."""
    together = pipeline.draw(["fox", "a longer prompt: snail"], num_images_per_prompt=3, seed=5)
    assert together.prompts == ["fox"] * 3 + ["a longer prompt: snail"] * 3
    assert together.seeds == [5, 6, 7] * 2
    small_batches = pipeline.draw(["fox", "a longer prompt: snail"], num_images_per_prompt=3, seed=5, batch_size=2)
    assert all(map(np.array_equal, arrays(together.images), arrays(small_batches.images)))
    for image, prompt, seed in zip(together.images, together.prompts, together.seeds, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(pipeline.draw(prompt, seed=seed).images[0]))


def test_seeds_matter_and_can_be_listed(pipeline: VargptPipeline) -> None:
    first, second = arrays(pipeline.draw("fox", num_images_per_prompt=2, seed=[3, 9]).images)
    assert not np.array_equal(first, second)
    assert np.array_equal(second, np.asarray(pipeline.draw("fox", seed=9).images[0]))


def test_a_generator_gives_the_seeds(pipeline: VargptPipeline) -> None:
    results = [
        pipeline.draw("fox", num_images_per_prompt=2, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    ]
    assert results[0].seeds == results[1].seeds
    assert len(set(results[0].seeds)) == 2


@pytest.mark.parametrize(
    "change", [{"guidance_scale": 7.0}, {"temperature": [2.0, 2.0, 2.0]}, {"top_p": 0.5}, {"negative_prompt": "cat"}]
)
def test_every_setting_changes_the_picture(pipeline: VargptPipeline, change: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"guidance_scale": 3.0, "temperature": 1.0, "top_p": 1.0}
    several: dict[str, Any] = {"num_images_per_prompt": 6, "output_type": "pt"}  # one may come out alike by chance
    plain = pipeline.draw("fox", **settings, **several)
    changed = pipeline.draw("fox", **{**settings, **change}, **several)
    assert not all(torch.equal(a, b) for a, b in zip(plain.images, changed.images, strict=True))


def test_every_scale_is_reported_and_the_last_preview_is_the_picture(pipeline: VargptPipeline) -> None:
    seen: list[tuple[int, int, tuple[int, int], int, int]] = []
    previews: list[Image.Image] = []

    def note(pipe: VargptPipeline, step: int, timestep: int, values: dict[str, Any]) -> None:
        seen.append((step, timestep, values["grid"], values["first_image"], len(values["canvas"])))
        previews.extend(pipe.preview(values["canvas"]))

    result = pipeline.draw("fox", num_images_per_prompt=3, batch_size=2, callback_on_step_end=note)
    grids = [(1, 1), (2, 2), (4, 4)]
    assert seen == [
        *((step, 2 - step, grids[step], 0, 2) for step in range(3)),
        *((step, 2 - step, grids[step], 2, 1) for step in range(3)),
    ]
    for preview, image in ((previews[4], result.images[0]), (previews[-1], result.images[2])):
        assert np.abs(np.asarray(preview).astype(int) - np.asarray(image)).max() <= 1  # float order in convolutions


def test_output_types(pipeline: VargptPipeline) -> None:
    as_array = pipeline.draw("fox", output_type="np").images[0]
    assert as_array.shape == (64, 64, 3)
    assert as_array.dtype == np.uint8
    as_tensor = pipeline.draw("fox", output_type="pt").images[0]
    assert as_tensor.shape == (3, 64, 64)
    assert np.array_equal((as_tensor * 255).round().byte().permute(1, 2, 0).numpy(), as_array)


def test_edit_depends_on_picture_and_instruction(pipeline: VargptPipeline, fox: Image.Image) -> None:
    settings: Any = {"output_type": "pt", "guidance_scale": 50.0}  # an untrained model hardly listens
    blue = pipeline.edit(fox, "make it blue", **settings).images[0]
    red = pipeline.edit(fox, "make it red", **settings).images[0]
    other = pipeline.edit(fox.rotate(180), "make it blue", **settings).images[0]
    assert not torch.equal(blue, red)
    assert not torch.equal(blue, other)


def test_edit_takes_the_nearest_aspect_of_the_source(pipeline: VargptPipeline, fox: Image.Image) -> None:
    assert pipeline.edit(fox.resize((130, 100)), "make it blue").images[0].size == (64, 48)
    assert pipeline.edit(fox.resize((130, 100)), "make it blue", aspect_ratio=1).images[0].size == (64, 64)


def test_a_mask_keeps_the_original_where_it_is_black(pipeline: VargptPipeline, fox: Image.Image) -> None:
    mask = Image.new("L", fox.size, 0)
    mask.paste(255, (0, 0, 64, 128))
    edited = np.asarray(pipeline.edit(fox, "make it blue", mask=mask).images[0]).astype(int)
    free = np.asarray(pipeline.edit(fox, "make it blue").images[0]).astype(int)
    original = np.asarray(fox.resize((64, 64), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(edited[:, 40:] - original[:, 40:]).max() <= 1
    assert np.abs(edited[:, :24] - free[:, :24]).max() <= 1


def test_chat_streams_what_the_tokens_say(pipeline: VargptPipeline, fox: Image.Image) -> None:
    messages = [{"role": "user", "content": [fox, "what is this?"]}]
    pieces = list(pipeline.chat(messages, max_new_tokens=12))
    assert "".join(pieces) == "".join(pipeline.chat(messages, max_new_tokens=12))
    sampled = ["".join(pipeline.chat("hello", max_new_tokens=12, temperature=3.0, seed=seed)) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_text_comes_out_as_whole_characters(pipeline: VargptPipeline) -> None:
    tokenizer = pipeline.processor.tokenizer
    ids = tokenizer("héllo ❤ 漢字", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids] + [stream.close()]
    assert "".join(pieces) == "héllo ❤ 漢字"
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": ["fox", " "]}, "prompt is empty"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": "fox", "height": 512, "width": 512}, "no size 512x512"),
        ({"prompt": "fox", "num_images_per_prompt": 0}, "at least 1"),
        ({"prompt": "fox", "seed": -1}, "whole number"),
        ({"prompt": "fox", "seed": [1, 2]}, "one each"),
        ({"prompt": "fox", "seed": 1, "generator": torch.Generator()}, "not both"),
        ({"prompt": "fox", "guidance_scale": [1.0]}, "3 scales"),
        ({"prompt": "fox", "temperature": -1.0}, "negative"),
        ({"prompt": "fox", "output_type": "jpg"}, "pil, np, pt"),
        ({"prompt": "fox", "batch_size": 0}, "batch_size"),
    ],
)
def test_draw_refuses_in_one_line(pipeline: VargptPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline.draw(**arguments)


@pytest.mark.parametrize(
    "messages", [[], [{"role": "robot", "content": "x"}], [{"role": "assistant", "content": "x"}], 7, [7]]
)
def test_chat_refuses_what_is_no_conversation(pipeline: VargptPipeline, messages: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        list(pipeline.chat(messages))


def test_official_weights_refuse_a_negative_prompt_and_draw_without_one(tiny_model: Path) -> None:
    pipeline = VargptPipeline.from_pretrained(tiny_model, device="cpu", behaviour=Behaviour.official())
    assert pipeline.draw("fox").images[0].size == (64, 64)
    with pytest.raises(ValueError, match="negative prompt"):
        pipeline.draw("fox", negative_prompt="cat")


def test_the_folders_own_settings_are_the_defaults(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    habits = {"guidance_scale": 1.5, "top_p": 0.9, "bare_names": True, "memory": "picture", "other": 1}
    (folder / "generation_config.json").write_text(json.dumps(habits))
    pipeline = VargptPipeline.from_pretrained(folder, device="cpu")
    settings = pipeline.draw("fox").settings
    assert (settings.guidance_scale, settings.top_p, settings.temperature) == (1.5, 0.9, 0.5)
    assert Dialogue(pipeline).memory == "picture"
    bare, worded = arrays([pipeline.draw(text).images[0] for text in ("fox", "A fox.")])
    assert np.array_equal(bare, worded)
    assert VargptPipeline.from_pretrained(tiny_model, device="cpu").sampling == Sampling.official()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"memory": "some"}', '{"bare_names": 1}', '{"top_p": 7}', '{"top_p": "x"}', '{"domains": ["cats"]}',
     '{"domains": [[]]}', '{"domains": "scenes"}', '{"domains": 1}'],
)  # fmt: skip
def test_broken_settings_of_a_folder_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"generation_config\.json"):
        read_habits(tmp_path)


@pytest.mark.parametrize(
    "prompt, subject",
    [
        ("a green heart", "green heart"),
        ("An owl.", "owl"),
        ("the", "the"),
        ("A", "A"),
        ("anchor", "anchor"),
        (".", "."),
    ],
)
def test_bare_names_lose_article_and_full_stop(prompt: str, subject: str) -> None:
    assert Habits(bare_names=True).subject(prompt) == subject
    assert Habits().subject(prompt) == prompt


@pytest.mark.parametrize(
    "prompt, subject",
    [
        ("A red star.", "a red star"),
        ("A red star", "a red star"),
        ("a green heart", "a green heart"),
        ("There is a red star on a sky background.", "There is a red star on a sky background."),
        (
            "A red star and a blue ring. The star is above the ring.",
            "A red star and a blue ring. The star is above the ring.",
        ),
        ("an owl", "owl"),
    ],
)
def test_captions_of_scenes_keep_their_article(prompt: str, subject: str) -> None:
    """A model that learned scenes got "red star", which none of their captions says."""
    assert Habits(bare_names=True, domains=("scenes", "emoji")).subject(prompt) == subject


def test_domains_are_read(tmp_path: Path) -> None:
    assert read_habits(tmp_path).domains == ()
    (tmp_path / "generation_config.json").write_text('{"domains": ["scenes", "emoji"]}')
    assert read_habits(tmp_path).domains == ("scenes", "emoji")


@pytest.mark.parametrize(
    "prompts, copies, size, expected",
    [
        (1, 1, 8, [([0], 1, 0)]),
        (3, 2, 4, [([0, 1], 2, 0), ([2], 2, 0)]),
        (2, 3, 2, [([0], 2, 0), ([0], 1, 2), ([1], 2, 0), ([1], 1, 2)]),
    ],
)
def test_requests_are_grouped(prompts: int, copies: int, size: int, expected: list[Any]) -> None:
    groups = list(group_requests(prompts, list(range(copies)), size))
    assert [(group.prompts, len(group.seeds), group.first_copy) for group in groups] == expected


def test_drawn_bits_give_the_inputs_that_drawing_used(pipeline: VargptPipeline) -> None:
    """A picture in the history is fed to the model as it was when it was drawn."""
    schedule = pipeline.model.config.schedule()
    tokenizer = pipeline.model.image_tokenizer
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    encoded = tokenizer.encode(images, schedule)
    inputs = pipeline.inputs([pipeline_conversation()])
    filled = with_drawings(inputs, list(encoded.labels_BLd), tokenizer, schedule)
    assert filled.next_inputs_IMd is not None
    assert torch.equal(filled.next_inputs_IMd, encoded.next_inputs_BMd)
    assert with_drawings(inputs, [], tokenizer, schedule) is inputs


def pipeline_conversation() -> Any:
    from vargpt.data.instructions import draw_prompt

    return draw_prompt("fox")


def test_the_pipeline_keeps_nothing_between_calls(pipeline: VargptPipeline) -> None:
    before = {name: value.clone() for name, value in pipeline.model.state_dict().items()}
    attributes = set(vars(pipeline)) | set(vars(pipeline.model))
    pipeline.draw("fox")
    assert set(vars(pipeline)) | set(vars(pipeline.model)) == attributes
    assert all(torch.equal(before[name], value) for name, value in pipeline.model.state_dict().items())
    assert replace(pipeline.sampling) == Sampling.official()
