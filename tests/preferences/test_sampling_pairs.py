"""Seeds and batches: which pictures are drawn depends on (seed, prompt, sample) alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vargpt.data.instructions import draw_prompt, edit_prompt
from vargpt.inference.pipeline import VargptPipeline
from vargpt.preferences.sample import Drawing, ModelPainter, draw_samples, model_fingerprint, picture_seed
from vargpt.processing.conversation import Conversation, Message, TextPart, user
from vargpt.processing.images import open_image, target_pixels
from vargpt.sampling import Sampling

WILD = Sampling(guidance_scale=2.0, temperature=1.0, top_p=1.0)


def requests(repo_root: Path) -> list[Conversation]:
    """Two drawings of different length, one with a system turn, and an edit."""
    system = Message(role="system", content=(TextPart(text="You draw."),))
    return [
        draw_prompt("fox"),
        draw_prompt("a very large green heart"),
        Conversation(messages=(system, user("draw fox"))),
        edit_prompt(repo_root / "examples" / "fox.png", "make it blue"),
    ]


def seeds_of(count: int, copies: int) -> list[list[int]]:
    return [[picture_seed(5, prompt, sample) for sample in range(copies)] for prompt in range(count)]


def draw(painter: ModelPainter, asked: Sequence[Conversation], copies: int, batch_size: int) -> list[list[Drawing]]:
    rows: list[list[Drawing]] = [[] for _ in asked]
    for batch in draw_samples(painter, asked, seeds_of(len(asked), copies), batch_size):
        assert len(batch) <= batch_size
        for number, drawing in batch:
            rows[number].append(drawing)
    return rows


def test_seeds_are_a_function_of_three_numbers() -> None:
    assert picture_seed(0, 0, 0) == 2802046128130290202
    assert picture_seed(0, 12, 3) == 3452229460909420097
    many = {picture_seed(seed, prompt, sample) for seed in range(3) for prompt in range(30) for sample in range(12)}
    assert len(many) == 3 * 30 * 12
    assert all(0 <= seed < 2**63 for seed in many)


def test_pictures_do_not_depend_on_the_batch(pipeline: VargptPipeline, repo_root: Path) -> None:
    painter, asked = ModelPainter(pipeline, WILD), requests(repo_root)
    alone = draw(painter, asked, 3, 1)
    for batch_size in (2, 3, 7, 12):
        together = draw(painter, asked, 3, batch_size)
        for row, other in zip(alone, together, strict=True):
            assert [drawing.seed for drawing in other] == [drawing.seed for drawing in row]
            for one, two in zip(row, other, strict=True):
                assert torch.equal(one.bits_Ld, two.bits_Ld)
                assert np.abs(np.asarray(one.image, int) - np.asarray(two.image, int)).max() <= 1
    assert len({drawing.bits_Ld.numpy().tobytes() for row in alone for drawing in row}) == 12


def test_each_prompt_is_guided_away_from_its_own_system_turn(pipeline: VargptPipeline) -> None:
    """Bits of a batch with different system turns equal those drawn alone; the prompt-free branch differs."""
    system = Message(role="system", content=(TextPart(text="x " * 40),))
    plain, other = draw_prompt("fox"), Conversation(messages=(system, user("draw fox")))
    painter = ModelPainter(pipeline, Sampling(guidance_scale=8.0, temperature=1.0, top_p=1.0))
    both = painter.draw([plain, other], [[3], [3]])
    assert torch.equal(both[0][0].bits_Ld, painter.draw([plain], [[3]])[0][0].bits_Ld)
    assert torch.equal(both[1][0].bits_Ld, painter.draw([other], [[3]])[0][0].bits_Ld)


def test_a_seed_draws_its_picture_again_by_the_pipeline(pipeline: VargptPipeline) -> None:
    seed = picture_seed(0, 4, 2)
    drawing = ModelPainter(pipeline).draw([draw_prompt("fox")], [[seed]])[0][0]
    again = pipeline.draw("fox", seed=seed).images[0]
    assert drawing.seed == seed
    assert np.array_equal(np.asarray(drawing.image), np.asarray(again))


def test_bits_are_those_of_the_picture(pipeline: VargptPipeline) -> None:
    painter = ModelPainter(pipeline, WILD)
    drawing = painter.draw([draw_prompt("fox")], [[1]])[0][0]
    assert drawing.bits_Ld.shape == (21, 8)
    assert drawing.bits_Ld.dtype == torch.uint8
    tokenizer = pipeline.model.image_tokenizer
    with torch.no_grad():
        decoded = tokenizer.decode(tokenizer.canvas(drawing.bits_Ld[None], painter.schedule))
    assert np.array_equal(np.asarray(pipeline.to_output(list(decoded), "pil")[0]), np.asarray(drawing.image))


def test_a_given_picture_is_written_by_the_models_tokenizer(pipeline: VargptPipeline, repo_root: Path) -> None:
    painter, path = ModelPainter(pipeline), repo_root / "examples" / "fox.png"
    drawing = painter.encode(path)
    assert drawing.image.size == (64, 64)
    assert drawing.seed is None
    pixels = target_pixels(open_image(path), painter.schedule)
    expected = pipeline.model.image_tokenizer.encode(pixels[None], painter.schedule).labels_BLd[0]
    assert torch.equal(drawing.bits_Ld, expected)
    again = painter.encode(drawing.image)
    assert torch.equal(again.bits_Ld, drawing.bits_Ld)
    assert torch.equal(painter.encode(pixels).bits_Ld, expected)
    wide = Image.new("RGB", (128, 64), "red")
    wide.paste("blue", (32, 0, 96, 64))
    assert painter.encode(wide).image.getcolors() == [(64 * 64, (0, 0, 255))]  # cropped to the frame
    with pytest.raises(ValueError, match=r"must be \(3, 64, 64\), got \(3, 8, 8\)"):
        painter.encode(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="no such file"):
        painter.encode(Path("nothing.png"))


def test_what_decides_the_pictures_is_described(pipeline: VargptPipeline) -> None:
    facts = ModelPainter(pipeline, WILD).describe()
    assert facts["sampling"] == {"guidance_scale": 2.0, "temperature": 1.0, "top_p": 1.0}
    assert facts["schedule"] == {"template": 1.0, "num_scales": 3, "stride": 16}
    before = model_fingerprint(pipeline.model)
    assert facts["model"] == before
    weight = pipeline.model.lm_head.weight
    with torch.no_grad():
        weight[0, 0] += 1
        assert model_fingerprint(pipeline.model) != before
        weight[0, 0] -= 1


def test_guidance_one_runs_without_the_other_branch(pipeline: VargptPipeline) -> None:
    asked = [draw_prompt("fox")]
    assert ModelPainter(pipeline, WILD)._unconditional(asked) is not None
    assert ModelPainter(pipeline, Sampling(guidance_scale=[1.0, 1.0, 1.0]))._unconditional(asked) is None
