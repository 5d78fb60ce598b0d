"""A whole recipe on a dozen pictures: it learns, it can be stopped anywhere, and its result can be used."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import (
    LOOP,
    STAGES,
    recipe_with,
    require_same,
    result_of,
    sft_task,
    step_values,
    tokenizer_task,
    write_data,
    write_recipe,
)

from vargpt import VargptForConditionalGeneration, VargptProcessor
from vargpt.checkpoint import tensor_files
from vargpt.inference.habits import FILE_NAME as HABITS_FILE
from vargpt.inference.habits import read_habits
from vargpt.inference.pipeline import VargptPipeline
from vargpt.model.modeling import VargptForConditionalGeneration as Model
from vargpt.training.loop.journal import read_journal
from vargpt.training.loop.trainer import TimeLimitReached, Trainer, build_optimizers
from vargpt.training.recipes.schema import SftStage, TokenizerStage
from vargpt.training.run import set_trainable_for, train
from vargpt.training.stages.tokenizer_stage import TokenizerTask
from vargpt.training.weights.build import build_model
from vargpt.training.weights.trainable import set_trainable

UNDERSTANDING = ("backbone.", "lm_head.")
PROJECTORS = ("in_projector.", "out_projector.")
GENERATION = ("decoder.", *PROJECTORS, "start_embedding")


def test_a_run_leaves_recipe_facts_journals_checkpoints_and_model(uninterrupted: Path):
    assert sorted(path.name for path in uninterrupted.iterdir()) == sorted(
        ["model", "processor", "recipe.yaml", "run.json", *STAGES]
    )
    facts = json.loads((uninterrupted / "run.json").read_text())
    assert facts["data"]["data"]["draw"] == 8 and facts["torch"] == torch.__version__
    for stage, steps in zip(STAGES, (3, 2, 3), strict=True):
        entries = read_journal(uninterrupted / stage / "journal.jsonl")
        assert [entry["step"] for entry in entries if "loss" in entry] == list(range(1, steps + 1))
        assert any(name.startswith("validation/") for entry in entries for name in entry)
        assert (uninterrupted / stage / f"step-{steps:08d}" / "manifest.json").is_file()
    last = next(e for e in read_journal(uninterrupted / "sft" / "journal.jsonl") if e["step"] == 3)
    for name in ("text_loss", "image_loss", "bit_loss/scale0", "bit_accuracy/scale1", "grad_norm", "learning_rate"):
        assert name in last


def test_the_result_loads_draws_and_answers(uninterrupted: Path, data: Path):
    folder = uninterrupted / "model"
    model = VargptForConditionalGeneration.from_pretrained(folder)
    assert not model.training and VargptProcessor.from_pretrained(folder).image_processor.patch_size == 8
    pipeline = VargptPipeline.from_pretrained(folder)
    picture = pipeline.draw("colour 3", seed=1).images[0]
    assert picture.size == (32, 32)
    assert "stages" in (folder / "recipe.yaml").read_text()


def test_training_lowers_the_losses(data: Path, tmp_path: Path):
    loop = {**LOOP, "steps": 60, "log_every": 60, "evaluate_every": 1000}
    path = write_recipe(
        tmp_path / "longer.yaml", stages__0__loop=loop, stages__2__loop=loop, stages__0__zoom=0,
    )  # fmt: skip
    train(path, data, tmp_path / "out", overrides=["stages.0.loop.log_every=1", "stages.2.loop.log_every=1"])
    for stage, name, factor in (("tokenizer", "l2", 0.5), ("sft", "text_loss", 0.7), ("sft", "image_loss", 0.95)):
        values = [entry[name] for entry in read_journal(tmp_path / "out" / stage / "journal.jsonl") if name in entry]
        assert sum(values[-3:]) < factor * sum(values[:3]), (stage, name, values)


def test_a_finished_run_is_not_repeated_and_saves_the_same_model(uninterrupted: Path, recipe_file: Path, data: Path):
    before = result_of(uninterrupted)
    checkpoint = (uninterrupted / "sft" / "step-00000003").stat().st_mtime_ns
    assert train(recipe_file, data, uninterrupted) == uninterrupted / "model"
    after = result_of(uninterrupted)
    assert before[1] == after[1] and all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert (uninterrupted / "sft" / "step-00000003").stat().st_mtime_ns == checkpoint
    assert not [path for path in uninterrupted.iterdir() if path.name.startswith(".")]


def test_stopped_after_every_step_equals_uninterrupted(
    uninterrupted: Path, recipe_file: Path, data: Path, tmp_path: Path
):
    calls = 0
    while True:
        calls += 1
        try:
            train(recipe_file, data, tmp_path, time_limit=1e-9)
            break
        except TimeLimitReached:
            assert not (tmp_path / "model").exists()
    assert calls == 6  # 8 steps, and a stage's last step goes on to the next stage
    require_same(uninterrupted, tmp_path)


def test_sigterm_at_the_last_step_of_a_stage_stops_before_the_next(
    uninterrupted: Path, recipe_file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each stage listened for itself: a signal at its end was lost, and the next stage ran on."""
    batch = TokenizerTask.batch

    def terminated(self: TokenizerTask, step: int) -> list[torch.Tensor]:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, step)

    monkeypatch.setattr(TokenizerTask, "batch", terminated)
    with pytest.raises(TimeLimitReached, match="stopped by SIGTERM before stage names; run again to go on"):
        train(recipe_file, data, tmp_path)
    assert (tmp_path / "tokenizer" / "step-00000003").is_dir() and not (tmp_path / "names").exists()
    monkeypatch.undo()
    monkeypatch.setattr("vargpt.training.loop.trainer.plot_curves", lambda directory: None)
    train(recipe_file, data, tmp_path)
    require_same(uninterrupted, tmp_path)


def test_muon_resumes_bitwise_and_differs_from_adamw(
    uninterrupted: Path, recipe_file: Path, data: Path, tmp_path: Path
):
    path = write_recipe(tmp_path / "muon.yaml", stages__2__loop={**LOOP, "batch_size": 5, "optimizer": "muon"})
    train(path, data, tmp_path / "whole")
    train(path, data, tmp_path / "parts", stages=["tokenizer", "names"])
    for _ in range(2):
        with pytest.raises(TimeLimitReached):
            train(path, data, tmp_path / "parts", time_limit=1e-9)
    train(path, data, tmp_path / "parts", time_limit=1e-9)
    require_same(tmp_path / "whole", tmp_path / "parts")
    assert result_of(tmp_path / "whole")[1]["names"] == result_of(uninterrupted)[1]["names"]
    assert result_of(tmp_path / "whole")[1]["sft"] != result_of(uninterrupted)[1]["sft"]
    train(recipe_file, data, tmp_path / "adamw", stages=["tokenizer", "names"])
    with pytest.raises(TimeLimitReached):
        train(recipe_file, data, tmp_path / "adamw", time_limit=1e-9)
    shutil.rmtree(tmp_path / "parts" / "sft")
    shutil.copytree(tmp_path / "adamw" / "sft", tmp_path / "parts" / "sft")
    with pytest.raises(RuntimeError, match=r"a checkpoint of .*'AdamW'.* the recipe says .*'Muon'"):
        train(path, data, tmp_path / "parts")


def test_muon_takes_the_matrices_inside_blocks_and_projectors(processor: VargptProcessor):
    model = build_model(recipe_with(), processor)
    set_trainable(model, "all")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = recipe_with(stages__2__loop={**LOOP, "optimizer": "muon"}).stages[2].loop.settings(0)
    (muon, share), (adamw, other_share) = build_optimizers(model, settings)
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    left = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert (share, other_share) == (1.0, 0.4)
    assert taken | left == {name for name in names.values() if not name.startswith("image_tokenizer.")}
    assert not taken & left and all(model.get_parameter(name).ndim == 2 for name in taken)
    assert {"decoder.blocks.1.ffn.fc1.weight", "in_projector.fc2.weight", "backbone.visual.merger.mlp.0.weight",
            "backbone.language_model.layers.0.self_attn.q_proj.weight"} <= taken  # fmt: skip
    assert {"lm_head.weight", "decoder.head.weight", "decoder.word_embed.weight", "decoder.shared_modulation.weight",
            "decoder.blocks.0.modulation_offset", "backbone.language_model.embed_tokens.weight"} <= left  # fmt: skip


def test_stages_one_by_one_equal_all_at_once(uninterrupted: Path, recipe_file: Path, data: Path, tmp_path: Path):
    for stage in STAGES:
        train(recipe_file, data, tmp_path, stages=[stage])
    require_same(uninterrupted, tmp_path)
    with pytest.raises(ValueError, match=r"no stage 'dpo' in .*; it has \['tokenizer', 'names', 'sft'\]"):
        train(recipe_file, data, tmp_path, stages=["dpo"])


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("seed=1", "seed"), ("model.decoder.depth=3", "model"), ("schedule.num_scales=3", "schedule"),
        ("validation_fraction=0.5", "validation_fraction"), ("stages.2.variety=0.9", "stage sft"),
        ("text_tokenizer.vocab_size=310", "text_tokenizer"),
    ],
)  # fmt: skip
def test_an_output_of_another_recipe_is_refused(uninterrupted: Path, recipe_file: Path, data: Path, override, what):
    before = (uninterrupted / "recipe.yaml").read_text()
    with pytest.raises(ValueError, match=f"was begun with another {what}: .* choose another output folder"):
        train(recipe_file, data, uninterrupted, overrides=[override])
    assert (uninterrupted / "recipe.yaml").read_text() == before


def test_the_refusal_names_the_setting_alone(uninterrupted: Path, recipe_file: Path, data: Path):
    with pytest.raises(ValueError, match=r"another stage sft: loop batch_size \d+ there, 99 now; choose"):
        train(recipe_file, data, uninterrupted, overrides=["stages.2.loop.batch_size=99"])


def test_other_data_is_refused(uninterrupted: Path, recipe_file: Path, tmp_path: Path):
    """The text tokenizer comes from the data: other captions would give the same ids to other words."""
    other = write_data(tmp_path / "other")
    text = (other / "metadata.jsonl").read_text()
    (other / "metadata.jsonl").write_text(text.replace("colour 3", "purple"))
    with pytest.raises(ValueError, match="was begun with another data"):
        train(recipe_file, other, uninterrupted)


def test_a_stage_without_its_data_is_refused_before_the_first_stage(recipe_file: Path, tmp_path: Path):
    """The missing edits were noticed only when the tokenizer had been trained."""
    bare = write_data(tmp_path / "bare")
    (bare / "edits.jsonl").unlink()
    with pytest.raises(
        ValueError, match=r"stage sft, data\.2: source .* has no samples for the task .edit.; .* take the entry out"
    ):
        train(recipe_file, bare, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stage_alone_needs_its_own_data_only(data: Path, tmp_path: Path):
    other = write_data(tmp_path / "other")
    path = write_recipe(
        tmp_path / "two.yaml",
        sources={"more": {"format": "folder", "path": str(other)}},
        stages__2__data__0__source="more",
    )
    train(path, data, tmp_path / "out", stages=["tokenizer"])
    shutil.rmtree(other)
    train(path, data, tmp_path / "out", stages=["names"])
    with pytest.raises(ValueError, match="other: no such folder"):
        train(path, data, tmp_path / "out")


def test_all_checkpoints_broken_is_an_error_and_no_restart(
    uninterrupted: Path, recipe_file: Path, data: Path, tmp_path: Path
):
    output = tmp_path / "out"
    shutil.copytree(uninterrupted, output)
    for path in (output / "names").glob("step-*/*.distcp"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RuntimeError, match=r"none of the 1 checkpoints in .*names can be read"):
        train(recipe_file, data, output)


def test_a_failed_save_keeps_the_model_that_was_there(
    uninterrupted: Path, recipe_file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Model and processor were saved one after the other into the final folder."""
    output = tmp_path / "out"
    shutil.copytree(uninterrupted, output)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(VargptProcessor, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        train(recipe_file, data, output)
    assert {path.name for path in output.iterdir()} == {"model", "processor", "recipe.yaml", "run.json", *STAGES}
    require_same(uninterrupted, output)


def test_export_type(uninterrupted: Path, recipe_file: Path, data: Path, tmp_path: Path):
    output = tmp_path / "out"
    shutil.copytree(uninterrupted, output)
    train(recipe_file, data, output, overrides=["export_dtype=bfloat16"])
    stored = tensor_files.list_folder(output / "model")
    assert {entry.dtype for entry in stored.values()} == {torch.bfloat16}


def test_the_finished_model_has_the_recipes_habits(uninterrupted: Path, recipe_file: Path, data: Path, tmp_path: Path):
    assert not (uninterrupted / "model" / HABITS_FILE).exists()
    output = tmp_path / "out"
    shutil.copytree(uninterrupted, output)
    overrides = ["habits.draft=true", "habits.temperature=0.2", "habits.memory=picture", "habits.domains=[scenes]"]
    train(recipe_file, data, output, overrides=overrides)
    habits = read_habits(output / "model")
    assert (habits.draft, habits.memory, habits.domains) == (True, "picture", ("scenes",))
    assert (habits.sampling.temperature, habits.sampling.guidance_scale) == (0.2, 3.0)
    with pytest.raises(ValueError, match=r"habits\.temprature"):
        train(recipe_file, data, output, overrides=["habits.temprature=0.2"])


def parts_that_change(model: Model, train_steps: Any) -> tuple[set[str], set[str]]:
    """Names of the parameters that changed, and of those that did not."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train_steps()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    return changed, set(before) - changed


@pytest.mark.parametrize(
    ("preset", "prefixes"),
    [
        ("all", (*UNDERSTANDING, *GENERATION)),
        ("understanding", UNDERSTANDING),
        ("generation", GENERATION),
        ("projectors", PROJECTORS),
    ],
)
def test_a_trainable_set_changes_and_everything_else_stays(
    data: Path, processor: VargptProcessor, tmp_path: Path, preset: Any, prefixes: tuple[str, ...]
):
    recipe = recipe_with(stages__2__trainable=preset)
    stage = recipe.stages[2]
    assert isinstance(stage, SftStage)
    model = build_model(recipe, processor)
    set_trainable_for(model, recipe, stage)
    task = sft_task(recipe, data, processor, model)
    trainer = Trainer("sft", task, stage.loop.settings(0), tmp_path)
    changed, unchanged = parts_that_change(model, trainer.run)
    assert changed and all(name.startswith(prefixes) for name in changed)
    for name in unchanged:
        unused = ("decoder.unconditional", "decoder.level_embedding")
        assert not name.startswith(prefixes) or name.startswith(unused), f"{name} was to be trained"
    assert any(name.startswith("image_tokenizer.") for name in unchanged)


@pytest.mark.parametrize(
    ("trainable", "prefix"), [("all", "image_tokenizer."), ("decoder", "image_tokenizer.decoder.")]
)
def test_a_tokenizer_stage_changes_the_tokenizer_only(
    data: Path, processor: VargptProcessor, tmp_path: Path, trainable: str, prefix: str
):
    recipe = recipe_with(stages__0__trainable=trainable)
    model = build_model(recipe, processor)
    stage = recipe.stages[0]
    assert isinstance(stage, TokenizerStage)
    set_trainable_for(model, recipe, stage)
    task = tokenizer_task(recipe, data, processor, model)
    changed, _ = parts_that_change(model, Trainer("t", task, stage.loop.settings(0), tmp_path).run)
    assert changed == {name for name, _ in model.named_parameters() if name.startswith(prefix)}


def test_the_image_loss_weight_by_numbers(data: Path, processor: VargptProcessor):
    for weight in (3.0, 0.5, 0.0):
        values = step_values(sft_task(recipe_with(stages__2__image_loss_weight=weight), data, processor))
        assert values["loss"] == pytest.approx(values["text_loss"] + weight * values["image_loss"], rel=1e-5)


def test_every_tokenizer_loss_weight_of_a_recipe_counts(data: Path, processor: VargptProcessor):
    zero = dict.fromkeys(("l1", "laplacian", "commitment", "entropy"), 0.0)

    def loss(**weights: float) -> float:
        recipe = recipe_with(stages__0__loss={**zero, **weights})
        return step_values(tokenizer_task(recipe, data, processor))["loss"]

    values = [loss(), *(loss(**{name: 1.0}) for name in zero), loss(entropy=1.0, entropy_temperature=3.0)]
    assert len({round(value, 6) for value in values}) == 6


def test_the_text_loss_over_conversations_is_a_mean_of_their_means(data: Path, processor: VargptProcessor):
    loop = {**LOOP, "batch_size": 6, "micro_batch_size": 1}
    changes: dict[str, Any] = {"stages__2__loop": loop, "model__decoder__drop_path_rate": 0.0}
    task = sft_task(recipe_with(**changes), data, processor)
    batch = task.batch(0)
    rows, tokens = [], []
    for micro in batch:  # one conversation each
        tokens.append(micro.num_targets)
        rows.append(float(task.loss(micro, {"targets": float(micro.num_targets), "images": 1.0})[1]["text_loss"]))
    assert len(rows) == 6 and len(set(tokens)) > 1
    by_token = sum(n * row for n, row in zip(tokens, rows, strict=True)) / sum(tokens)
    assert step_values(task)["text_loss"] == pytest.approx(by_token, rel=1e-5)
    changes["stages__2__text_loss_over"] = "conversations"
    mean = step_values(sft_task(recipe_with(**changes), data, processor))["text_loss"]
    assert mean == pytest.approx(sum(rows) / 6, rel=1e-5) and mean != pytest.approx(by_token, rel=1e-3)


@pytest.mark.parametrize("over", ["tokens", "conversations"])
@pytest.mark.parametrize("limit", [{"micro_batch_size": 2}, {"micro_batch_size": 1}, {"micro_batch_tokens": 60}])
def test_micro_batches_do_not_change_the_loss(data: Path, processor: VargptProcessor, limit: dict[str, int], over: str):
    """Means are over all targets of the step, not means of means."""
    changes: dict[str, Any] = {"stages__2__flip_strength": 0.3, "model__decoder__drop_path_rate": 0.0}
    changes["stages__2__text_loss_over"] = over
    loop = {**LOOP, "batch_size": 11}
    whole = step_values(sft_task(recipe_with(**changes, stages__2__loop=loop), data, processor))
    task = sft_task(recipe_with(**changes, stages__2__loop={**loop, **limit}), data, processor)
    assert len(task.batch(0)) > 2 and step_values(task) == pytest.approx(whole, rel=1e-4)


def test_the_official_preset_trains(data: Path, tmp_path: Path):
    """Its processor was once built with the other preset, and no batch fitted the model."""
    path = write_recipe(tmp_path / "official.yaml", model__preset="official")
    model = VargptForConditionalGeneration.from_pretrained(train(path, data, tmp_path / "out"))
    assert model.behaviour.image_slot_multiple == 128
    assert VargptProcessor.from_pretrained(tmp_path / "out" / "model").behaviour == model.behaviour
