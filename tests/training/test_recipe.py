"""Recipes: what parses, and what is said about what does not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from training_helpers import recipe_with, write_recipe

from vargpt.configuration import Behaviour
from vargpt.training.recipes.recipe import load_recipe, save_recipe
from vargpt.training.recipes.schema import DataEntry, SftStage, TokenizerStage
from vargpt.training.stage_data import StageData
from vargpt.training.weights.build import build_model, build_processor


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ValueError) as caught:
        load_recipe(path, list(overrides))
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "tiny.yaml")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("nam=x", "unknown key 'nam'; did you mean 'name'?"),
        ("stages.0.loop.step=3", "unknown key 'stages.0.loop.step'; did you mean 'steps'?"),
        ("stages.2.data.1.wieght=1", "unknown key 'stages.2.data.1.wieght'; did you mean 'weight'?"),
        ("stages.2.lora={rnk: 1}", "unknown key 'stages.2.lora.rnk'; did you mean 'rank'?"),
        ("sources.pictures.formt=folder", "unknown key 'sources.pictures.formt'; did you mean 'format'?"),
        ("stages.2.zoom=0.1", "unknown key 'stages.2.zoom'; known here: name, resolution, keep, kind, loop, trainable"),
        ("model.decoder.depths=3", "unknown key 'model.decoder.depths'; did you mean 'depth'?"),
        ("stages.0.loop.steps=0", "stages.0.loop.steps: Input should be greater than 0, got 0"),
        ("stages.0.loop.steps=many", "stages.0.loop.steps: Input should be a valid integer"),
        ("stages.0.zoom=1", "stages.0.zoom: Input should be less than 1, got 1"),
        ("stages.0.loop={steps: 3, batch_size: 1}", "'stages.0.loop.learning_rate' is missing"),
        ("stages.0.kind=sfx", "stages.0: Input tag 'sfx' found using 'kind' does not match any of the expected tags"),
        ("stages.2.data=[]", "stages.2.data: List should have at least 1 item"),
        ("stages.2.data.0.weight=0", "stages.2.data.0.weight: Input should be greater than 0, got 0"),
        ("stages.2.data.0.source=laion", "stage sft: no source 'laion'; known: data"),
        ("stages.0.data.0.task=caption", "the image tokenizer needs pictures drawn, not caption"),
        ("stages.2.resolution=48", "stage sft: resolution must be one of 16, 32, 64, 96, 128, 192, 256, 320"),
        (
            "stages.2={kind: dpo, pairs: names, loop: {steps: 1, batch_size: 1, learning_rate: 1}}",
            "stage dpo: 'names' is no pairs stage before it",
        ),
        (
            "stages.2={kind: dpo, pairs: x, reference: adapters, loop: {steps: 1, batch_size: 1, learning_rate: 1}}",
            "reference: adapters needs lora and trainable: none",
        ),
        (
            "stages.2={kind: dpo, pairs: x, loss: hinge, label_smoothing: 0.1, "
            "loop: {steps: 1, batch_size: 1, learning_rate: 1}}",
            "label_smoothing is defined for the sigmoid loss only",
        ),
        ("stages.2={kind: pairs, num_prompts: 4, data: [{task: draw}]}", "need a scorer and num_samples of at least 2"),
        ("stages.0.name=sft", "stage names must differ"),
        ("stages.0.name=model", "none may be 'model'"),
        ("stages.0.name=../x", "stages.0.name: String should match pattern"),
        ("stages=[]", "stages: List should have at least 1 item"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("model.preset=best", "model.preset: Input should be 'vargpt' or 'official', got 'best'"),
        ("stages.3.zoom=0", "expected an index 0..2, got '3'"),
        ("stages.first.zoom=0", "expected an index 0..2, got 'first'"),
        ("stages.0.zoom", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("name.x=3", "'x' is not inside a mapping or a list"),
        ("stages.0.zoom=[", "the value is not YAML"),
    ],
)
def test_a_mistake_is_named_in_one_line(path: Path, override: str, expected: str):
    text = message(path, override)
    assert expected in text and "\n" not in text


def test_files_that_are_no_recipe(tmp_path: Path):
    assert "cannot read this recipe (No such file" in message(tmp_path / "absent.yaml")
    assert "cannot read this recipe (Is a directory)" in message(tmp_path)
    (tmp_path / "list.yaml").write_text("- a")
    assert "a recipe is a mapping with `name` and `stages`, got list" in message(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    assert "not valid YAML" in message(tmp_path / "broken.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x80")
    assert "not valid YAML" in message(tmp_path / "bytes.yaml")


def test_a_recipe_extends_another(path: Path):
    child = path.with_name("child.yaml")
    child.write_text(
        "extends: tiny.yaml\nname: child\nmodel: {decoder: {depth: 2}}\nstages:\n- tokenizer\n"
        "- {name: sft, loop: {steps: 9}, data: [{task: draw}]}\n"
        "- {name: more, kind: sft, data: [{task: caption}], loop: {steps: 1, batch_size: 1, learning_rate: 1}}\n"
    )
    base, recipe = load_recipe(path), load_recipe(child)
    assert [stage.name for stage in recipe.stages] == ["tokenizer", "sft", "more"] and recipe.name == "child"
    assert recipe.stages[0] == base.stages[0]
    changed = base.stages[2].model_copy(deep=True)
    assert isinstance(changed, SftStage)
    changed.loop.steps, changed.data = 9, [DataEntry(task="draw")]
    assert recipe.stages[1] == changed
    assert recipe.model.decoder == base.model.decoder.model_copy(update={"depth": 2})
    assert recipe.model.backbone == base.model.backbone
    grandchild = path.with_name("grandchild.yaml")
    grandchild.write_text("extends: child.yaml\nstages: [more]")
    assert load_recipe(grandchild, ["seed=3"]).stages == [recipe.stages[2]]
    assert load_recipe(grandchild, ["seed=3"]).seed == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stages: [tokenzier]", "has no stage 'tokenzier'; did you mean 'tokenizer'? (a new stage needs its kind)"),
        ("stages: [{name: xyz, loop: {steps: 3}}]", "has no stage 'xyz'; it has tokenizer, names, sft"),
        ("stages: [7]", "has no stage '7'; it has tokenizer"),
        ("stages: sft", "stages is a list of names of stages and of changes to them, got 'sft'"),
        ("nam: x", "unknown key 'nam'; did you mean 'name'?"),
        ("stages: [{name: sft, lop: {}}]", "unknown key 'stages.0.lop'; did you mean 'loop'?"),
    ],
)
def test_a_mistake_in_a_recipe_that_extends(path: Path, text: str, expected: str):
    child = path.with_name("child.yaml")
    child.write_text(f"extends: tiny.yaml\n{text}")
    assert expected in message(child).replace("stage 7;", "stage '7';")


def test_recipes_to_extend_that_are_none(path: Path):
    child = path.with_name("child.yaml")
    child.write_text("extends: [tiny.yaml]")
    assert "extends names the file of another recipe, got ['tiny.yaml']" in message(child)
    child.write_text("extends: absent.yaml")
    assert "absent.yaml: cannot read this recipe" in message(child)
    child.write_text("extends: other.yaml")
    path.with_name("other.yaml").write_text("extends: child.yaml")
    assert "extends child.yaml, which extends this recipe" in message(child)


def test_switches_of_behaviour_go_on_top_of_the_preset(path: Path):
    plain = load_recipe(path, ["model.behaviour={image_loss_weights: official}"]).model
    assert plain.switched() == Behaviour(image_loss_weights="official")
    official = load_recipe(path, ["model={preset: official, behaviour: {image_slot_multiple: 4}}"]).model
    assert official.switched() == replace(Behaviour.official(), image_slot_multiple=4)
    assert plain.switched(Behaviour.official()) == Behaviour.official()
    assert "unknown behaviour switch 'image_los_weights'; did you mean image_loss_weights" in message(
        path, "model.behaviour={image_los_weights: official}"
    )
    assert "behaviour.text_targets must be one of official, assistant, got 'all'" in message(
        path, "model.behaviour={text_targets: all}"
    )


def test_overrides_reach_into_lists_and_missing_sections(path: Path):
    recipe = load_recipe(
        path,
        ["stages.0.loop.steps=7", "stages.2.data=[{task: draw}]", "stages.1.data.0.weight=3", "schedule.template=0.75",
         "stages.0.loop.learning_rate=1e-3", "model.image_tokenizer.channel_multipliers.0=2"],
    )  # fmt: skip
    tokenizer, names, sft = recipe.stages
    assert isinstance(tokenizer, TokenizerStage) and isinstance(names, SftStage) and isinstance(sft, SftStage)
    assert tokenizer.loop.steps == 7 and tokenizer.loop.learning_rate == 0.001
    assert sft.data == [DataEntry(task="draw")] and names.data[0].weight == 3
    assert recipe.schedule.template == 0.75
    assert recipe.model.image_tokenizer.channel_multipliers == [2]


def test_a_resolved_recipe_reads_back_equal(tmp_path: Path):
    recipe = recipe_with(stages__0__loop__betas=[0.8, 0.99])
    save_recipe(recipe, tmp_path / "resolved.yaml")
    assert load_recipe(tmp_path / "resolved.yaml") == recipe
    assert [item.name for item in tmp_path.iterdir()] == ["resolved.yaml"]


@pytest.mark.parametrize("name", ["emoji-small"])
def test_a_small_recipe_builds(name: str, repo_root: Path):
    recipe = load_recipe(repo_root / "recipes" / f"{name}.yaml")
    model = build_model(recipe, build_processor(recipe, StageData(recipe, repo_root / "examples").texts()))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{name}: {millions:.2f}M parameters, {len(recipe.stages)} stages")
    assert 1 < millions < 25
    assert model.config.schedule().num_scales == recipe.schedule.num_scales


def test_one_setting_gives_the_resolution():
    recipe = recipe_with(stages__2__resolution=64, stages__1__resolution=None)
    schedules = [recipe.stage_schedule(stage) for stage in recipe.stages]
    assert [schedule.image_size for schedule in schedules] == [(32, 32), (32, 32), (64, 64)]
    assert schedules[2].num_tokens == 1 + 4 + 16


def test_the_documented_overrides_fit_the_shipped_recipe(repo_root: Path):
    text = (repo_root / "docs" / "training.md").read_text()
    overrides = re.findall(r"--set '?([\w.]+=(?:[\w.]+|\[[^\]]*\]))", text)
    assert len(overrides) >= 3
    for override in overrides:
        load_recipe(repo_root / "recipes" / "emoji-small.yaml", [override])
