"""What a row of docs/ablations.md is measured by: scenes of the part set aside, drawn, asked about and edited.

Invariant: examples and seeds are the same for every row, so that rows are compared example by example. Answering needs
the model and is quick on a GPU; judging needs the CPU alone and can be done later and elsewhere, from the bits.
"""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

import numpy as np
import torch
from ablation_rows import ASK, EDIT, PLAIN
from PIL import Image

from vargpt.data.instructions import draw_prompt, edit_prompt
from vargpt.data.scenes.checker import asserted, read, score_edit
from vargpt.data.scenes.facts import share_that_holds
from vargpt.data.scenes.render import render_image
from vargpt.data.scenes.sampler import Kind
from vargpt.data.scenes.source import SceneExample, SceneTask, scene_example
from vargpt.evaluation.subject import Subject
from vargpt.image_tokenizer import ImageTokenizer
from vargpt.inference.pipeline import VargptPipeline
from vargpt.preferences.sample import ModelPainter, draw_samples, picture_seed
from vargpt.processing.images import target_pixels
from vargpt.sampling import Sampling, pixels_to_uint8
from vargpt.scales import ScaleSchedule

KINDS: tuple[Kind, ...] = ("single",)
COUNTS = {"draw": 200, PLAIN: 200, ASK: 150, EDIT: 120}
"""Examples of each part."""

SEEN_AT = 64
"""Side in pixels of pictures that are asked about or edited."""

GUIDED = Sampling(guidance_scale=2.0, temperature=0.2, top_p=1.0)
UNGUIDED = Sampling(guidance_scale=1.0, temperature=0.2, top_p=1.0)
_BATCH = 50


@cache
def examples(part: str, count: int) -> list[SceneExample]:
    """The examples of a part; kinds take turns."""
    task: SceneTask = "question" if part == ASK else "edit" if part == EDIT else "draw"
    return [
        scene_example("ablations", index, task, height=SEEN_AT, width=SEEN_AT, split="validation",
                      kind=KINDS[index % len(KINDS)], variety=0.0)
        for index in range(count)
    ]  # fmt: skip


@torch.no_grad()
def answer(pipeline: VargptPipeline, part: str, schedule: ScaleSchedule, count: int) -> dict[str, Any]:
    """Let a model answer the examples of a part: words, or bits of pictures (JSON values)."""
    wanted = examples(part, count)
    if part == ASK:
        subject = Subject(pipeline, batch_size=_BATCH)
        asked = [_question(pipeline, example) for example in wanted]
        return {"words": subject.answers(asked, max_new_tokens=12)}
    if part == EDIT:
        requests = [edit_prompt(render_image(example.scene, SEEN_AT, SEEN_AT), example.prompt) for example in wanted]
    else:
        requests = [draw_prompt(example.prompt) for example in wanted]
    painter = ModelPainter(pipeline, UNGUIDED if part == PLAIN else GUIDED, schedule)
    bits: list[torch.Tensor | None] = [None] * len(requests)
    seeds = [[picture_seed(0, number, 0)] for number in range(len(requests))]
    for batch in draw_samples(painter, requests, seeds, _BATCH):
        for number, drawing in batch:
            bits[number] = drawing.bits_Ld
    return _packed(torch.stack([one for one in bits if one is not None]))


def _question(pipeline: VargptPipeline, example: SceneExample) -> Any:
    conversation = example.conversation
    return conversation.model_copy(update={"messages": conversation.messages[:-1]})


@torch.no_grad()
def judge(
    answers: dict[str, Any], part: str, tokenizer: ImageTokenizer, schedule: ScaleSchedule
) -> dict[str, list[float]]:
    """One number per example for each measure of a part.

    Returns:
        `facts` (share of the asserted facts that a drawing shows) and `right` (all of them); `understanding` (exact
        match); `done` and `kept` of edits.
    """
    if part == ASK:
        wanted = examples(part, len(answers["words"]))
        said = zip(answers["words"], wanted, strict=True)
        return {"understanding": [float(_same(words, example)) for words, example in said]}
    pictures = decode(answers, tokenizer, schedule)
    wanted = examples(part, len(pictures))
    if part == EDIT:
        scores = [score_edit(picture, _edit(example)) for picture, example in zip(pictures, wanted, strict=True)]
        return {"done": [float(score.asked) for score in scores], "kept": [round(score.kept, 4) for score in scores]}
    shares = [
        share_that_holds(read(picture).judge(asserted(example.prompt)))
        for picture, example in zip(pictures, wanted, strict=True)
    ]
    return {"facts": [round(share, 4) for share in shares], "right": [float(share == 1.0) for share in shares]}


@torch.no_grad()
def limit(tokenizer: ImageTokenizer, schedule: ScaleSchedule, count: int) -> dict[str, list[float]]:
    """What `judge` finds when the pictures are not drawn but real ones, encoded: no row can do better."""
    scenes = [example.scene for example in examples("draw", count)]
    pixels = torch.stack([target_pixels(render_image(scene, *schedule.image_size), schedule) for scene in scenes])
    bits = torch.cat([tokenizer.encode(part, schedule).labels_BLd for part in pixels.split(50)]).to(torch.uint8)
    return judge(_packed(bits), "draw", tokenizer, schedule)


def _packed(bits_nLd: torch.Tensor) -> dict[str, Any]:
    packed = base64.b64encode(np.packbits(bits_nLd.numpy())).decode()
    return {"bits": packed, "shape": list(bits_nLd.shape)}


def _same(words: str, example: SceneExample) -> bool:
    assert example.question is not None
    return words.strip().casefold() == example.question.answer.strip().casefold()


def _edit(example: SceneExample) -> Any:
    assert example.edit is not None
    return example.edit


def decode(answers: dict[str, Any], tokenizer: ImageTokenizer, schedule: ScaleSchedule) -> list[Image.Image]:
    """The pictures of bits."""
    shape = answers["shape"]
    flat = np.unpackbits(np.frombuffer(base64.b64decode(answers["bits"]), dtype=np.uint8))[: int(np.prod(shape))]
    pictures: list[Image.Image] = []
    for bits_BLd in torch.from_numpy(flat.reshape(shape)).split(50):
        pixels = pixels_to_uint8(tokenizer.decode(tokenizer.canvas(bits_BLd, schedule)))
        pictures += [Image.fromarray(picture) for picture in pixels.numpy()]
    return pictures
