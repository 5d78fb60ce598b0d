"""Prompts from files and folders, worded as the model knows them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from PIL import Image

from vargpt.configuration import Behaviour
from vargpt.data.folder import read_folder
from vargpt.inference.habits import Habits
from vargpt.inference.pipeline import VargptPipeline
from vargpt.preferences.prompts import folder_prompts, folder_sha256, read_prompts, spoken, take


def test_prompts_are_worded_by_habit_and_by_training(pipeline: VargptPipeline, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "in.png")
    lines = [{"prompt": "A fox."}, {"prompt": "make it blue", "image": "in.png", "caption": "a blue thing"}]
    (tmp_path / "p.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines))
    file = read_prompts(tmp_path / "p.jsonl")
    ours = file.prompts(pipeline.model.config, Habits(bare_names=True))
    assert [(prompt.key, spoken(prompt.prompt), prompt.answer, prompt.caption) for prompt in ours] == [
        ("p.jsonl:1", "draw fox", "", "fox"),
        ("p.jsonl:3", "make it blue", "", "a blue thing"),
    ]
    config = copy.deepcopy(pipeline.model.config)
    config.behaviour = Behaviour.official()
    published = file.prompts(config, Habits())
    assert [(spoken(prompt.prompt), prompt.answer, prompt.caption) for prompt in published] == [
        ("I need a designed image of A fox.", "I have designed a drawing of A fox.", "A fox."),
        ("make it blue", "The output image is: ", "a blue thing"),
    ]
    assert [len(prompt.sources()) for prompt in published] == [0, 1]
    assert published[0].request.messages[-1].role == "assistant"


def test_edits_of_a_folder_know_what_their_result_shows(pipeline: VargptPipeline, tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(40)]
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    lines = [{"file_name": name, "text": f"thing {name}"} for name in names]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    edits = [{"source": a, "target": b, "instruction": "change it"} for a, b in zip(names, names[1:], strict=False)]
    (tmp_path / "edits.jsonl").write_text("\n".join(json.dumps(edit) for edit in edits))
    folder = read_folder(tmp_path, 0.2)
    config = pipeline.model.config
    drawn = folder_prompts(folder, "draw", config, Habits())
    assert [prompt.key for prompt in drawn] == [record.file_name for record in folder.split_images("train")]
    assert 20 < len(drawn) < 40  # what is set aside is never a prompt
    edited = folder_prompts(folder, "edit", config, Habits(), 3)
    train = folder.split_edits("train")
    assert [prompt.target for prompt in edited] == [tmp_path / edit.target for edit in take(train, 3)]
    assert [prompt.caption for prompt in edited] == [f"thing {edit.target}" for edit in take(train, 3)]
    assert folder_sha256(folder) != folder_sha256(read_folder(tmp_path, 0.1))


def test_a_limit_is_spread_evenly() -> None:
    assert take([0, 1, 2, 3, 4, 5, 6], 3) == [0, 2, 4]
    assert take([0, 1], 5) == [0, 1]
