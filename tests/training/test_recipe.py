"""Recipes: what parses, and what is said about what does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from training_helpers import recipe_with, write_recipe

from vargpt.data.folder import read_folder
from vargpt.training.build import build_model, build_processor
from vargpt.training.recipe import SftStage, load_recipe, save_recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


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
        ("stages.2.mixture.edits=1", "unknown key 'stages.2.mixture.edits'; did you mean 'edit'?"),
        ("stages.2.zoom=0.1", "unknown key 'stages.2.zoom'; known here: kind, name, loop, trainable, mixture"),
        ("model.decoder.depths=3", "unknown key 'model.decoder.depths'; did you mean 'depth'?"),
        ("stages.0.loop.steps=0", "stages.0.loop.steps: Input should be greater than 0, got 0"),
        ("stages.0.loop.steps=many", "stages.0.loop.steps: Input should be a valid integer"),
        ("stages.0.zoom=1", "stages.0.zoom: Input should be less than 1, got 1"),
        ("stages.0.loop={steps: 3, batch_size: 1}", "'stages.0.loop.learning_rate' is missing"),
        ("stages.0.kind=sfx", "stages.0: Input tag 'sfx' found using 'kind' does not match any of the expected tags"),
        ("stages.2.mixture={draw: 0, caption: 0, edit: 0}", "a share above 0 for draw, caption or edit"),
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


def test_overrides_reach_into_lists_and_missing_sections(path: Path):
    recipe = load_recipe(
        path,
        ["stages.0.loop.steps=7", "stages.2.mixture={draw: 1, caption: 0, edit: 0}", "schedule.template=0.75",
         "stages.0.loop.learning_rate=1e-3", "model.image_tokenizer.channel_multipliers.0=2"],
    )  # fmt: skip
    assert recipe.stages[0].loop.steps == 7 and recipe.stages[0].loop.learning_rate == 0.001
    assert recipe.stages[2].model_dump()["mixture"] == {"draw": 1, "caption": 0, "edit": 0}
    assert recipe.schedule.template == 0.75
    assert recipe.model.image_tokenizer.channel_multipliers == [2]


def test_a_resolved_recipe_reads_back_equal(tmp_path: Path):
    recipe = recipe_with(stages__0__loop__betas=[0.8, 0.99])
    save_recipe(recipe, tmp_path / "resolved.yaml")
    assert load_recipe(tmp_path / "resolved.yaml") == recipe
    assert [item.name for item in tmp_path.iterdir()] == ["resolved.yaml"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_parses_and_builds(path: Path, repo_root: Path):
    recipe = load_recipe(path)
    processor = build_processor(recipe, read_folder(repo_root / "examples", recipe.validation_fraction))
    model = build_model(recipe, processor)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"{path.name}: {millions:.2f}M parameters, {len(recipe.stages)} stages")
    assert 1 < millions < 25
    assert model.config.schedule().num_scales == recipe.schedule.num_scales


def test_the_documented_overrides_fit_the_shipped_recipe(repo_root: Path):
    text = (repo_root / "docs" / "training.md").read_text()
    overrides = re.findall(r"--set ([\w.]+=[\w.]+)", text)
    assert len(overrides) >= 3
    recipe = load_recipe(repo_root / "recipes" / "emoji-small.yaml", overrides)
    edits = [stage.mixture.edit for stage in recipe.stages if isinstance(stage, SftStage)]
    assert not any(edits) and recipe.seed == 1
