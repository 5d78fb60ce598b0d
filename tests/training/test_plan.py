"""The plan of a recipe: its arithmetic by hand, its text, and the command that prints it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from planning_helpers import small_model

from vargpt.cli import app
from vargpt.commands import training
from vargpt.training.planning.plan import Devices, Plan, planned_config
from vargpt.training.planning.plan import make_plan as plan_for
from vargpt.training.planning.plan_text import WIDTH, count, duration, number, render, table
from vargpt.training.recipes.schema import Recipe

LOOP: dict[str, Any] = {"steps": 10, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 0.01}
SFT: dict[str, Any] = {"kind": "sft", "loop": LOOP, "data": [{"task": "draw"}]}
LORA = {"rank": 2, "alpha": 4.0, "targets": r"backbone\.language_model\..*_proj"}
MODEL: dict[str, Any] = {
    "image_tokenizer": {"bits": 8, "base_channels": 32, "channel_multipliers": [1, 1, 1], "stride": 4},
    "vision": {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 4, "image_side": 40},
    "backbone": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "num_key_value_heads": 1, "mrope_section": [2, 3, 3]},
    "decoder": {"hidden_size": 128, "num_heads": 2, "depth": 2},
}  # fmt: skip


def recipe_with(*stages: dict[str, Any], **changes: Any) -> Recipe:
    base = {"name": "small", "text_tokenizer": {"vocab_size": 320}, "model": MODEL, "schedule": {"num_scales": 4}}
    return Recipe.model_validate({**base, "stages": list(stages), **changes})


def make_plan(recipe: Recipe, devices: Devices | None = None, only: tuple[str, ...] = ()) -> Plan:
    """On one GPU unless said otherwise."""
    return plan_for(recipe, devices or Devices(count=1), only)


def test_samples_and_tokens_follow_the_schedule_and_the_mixture():
    """Four scales of stride 4 are 57 tokens and 24 pixels; an image to read has (40 // 8)^2 = 25 tokens."""
    data = [{"task": "draw", "weight": 3}, {"task": "edit", "weight": 1}]
    plan = make_plan(recipe_with({**SFT, "data": data, "loop": {**LOOP, "stop_at": 4}}))
    (stage,) = plan.stages
    assert (stage.steps, stage.batch, stage.samples) == (4, 8, 32)
    assert (stage.height, stage.width, stage.image_tokens) == (24, 24, 57)
    draw, edit = 50 + 35 + 57 + 2, 45 + 25 + 10 + 57 + 2
    assert stage.tokens == pytest.approx(32 * (0.75 * draw + 0.25 * edit))


def test_official_behaviour_pads_slots_and_predicts_every_word():
    plan = make_plan(recipe_with(SFT, model={**MODEL, "preset": "official"}))
    assert plan.stages[0].tokens == 80 * (50 + 35 + 128 + 2)
    ours = make_plan(recipe_with(SFT))
    assert plan.stages[0].memory["logits"] > 2 * ours.stages[0].memory["logits"]


def test_a_resolution_has_its_own_tokens():
    plan = make_plan(recipe_with({**SFT, "name": "a", "resolution": 8}, {**SFT, "name": "b", "resolution": 24}))
    assert [(stage.height, stage.image_tokens) for stage in plan.stages] == [(8, 5), (24, 57)]


def test_hours_are_operations_over_what_the_devices_reach():
    recipe = recipe_with(SFT)
    stage = make_plan(recipe, Devices(count=2, peak=1e12, utilisation=0.5)).stages[0]
    assert stage.gpu_hours == pytest.approx(stage.total_flops / 0.5e12 / 3600)
    assert stage.total_flops == pytest.approx(sum(stage.flops.values())) and "recompute" not in stage.flops
    again = recipe_with({**SFT, "loop": {**LOOP, "activation_checkpointing": True}})
    stage_again = make_plan(again).stages[0]
    assert stage_again.flops["recompute"] > 0.5 * stage_again.flops["forward"]
    assert stage_again.memory["activations"] < 0.7 * stage.memory["activations"]


def test_preferences_cost_two_rows_and_a_reference():
    dpo: dict[str, Any] = {"kind": "dpo", "loop": LOOP, "pairs": "folder", "trainable": "generation"}
    sft = {**SFT, "name": "sft", "trainable": "generation"}
    trained, preferred = make_plan(recipe_with(sft, dpo)).stages
    assert preferred.flops["reference"] == preferred.flops["forward"]
    assert preferred.flops["forward"] == pytest.approx(2 * trained.flops["forward"], rel=0.05)  # no words predicted
    assert preferred.tokens == 2 * trained.tokens
    assert preferred.memory["reference"] == trained.memory["gradients"]  # one GPU: what is trained is copied
    assert preferred.memory["activations"] == pytest.approx(2 * trained.memory["activations"])
    numbers = make_plan(recipe_with({**dpo, "reference": "precomputed"})).stages[0]
    assert "reference" not in numbers.memory and numbers.flops["reference"] == preferred.flops["reference"]


def test_pairs_are_sampled_in_branches():
    pairs: dict[str, Any] = {"kind": "pairs", "num_prompts": 6, "data": [{"task": "draw"}], "chosen": "given",
                             "num_samples": 1}  # fmt: skip
    guided = {**pairs, "sampling": {"guidance_scale": 3.0}}
    many = {**pairs, "chosen": "sampled", "scorer": "a:b", "num_samples": 5}
    plain, two, five = (make_plan(recipe_with(stage)).stages[0] for stage in (pairs, guided, many))
    assert (plain.samples, plain.trained, plain.trainable) == (6, {}, "-")
    assert 1.7 < two.flops["sampling"] / plain.flops["sampling"] < 2
    assert five.flops["sampling"] == pytest.approx(5 * plain.flops["sampling"])
    assert five.flops["decode"] == pytest.approx(5 * plain.flops["decode"]) and "encode" not in five.flops
    assert two.memory["cache"] == 2 * plain.memory["cache"] and "gradients" not in {
        k for k, v in two.memory.items() if v
    }


def test_adapters_are_trained_parameters():
    stages = [
        {**SFT, "name": "a", "trainable": "none", "lora": LORA},
        {**SFT, "name": "b", "trainable": "generation", "lora": LORA},
    ]
    plan = make_plan(recipe_with(*stages))
    size = 2 * 2 * sum((32 + 32, 32 + 16, 32 + 16, 32 + 32, 3 * (32 + 64)))
    assert plan.stages[0].trained == {"adapters": size}
    assert plan.stages[1].trained["adapters"] == size and plan.stages[1].trainable == "generation + adapters"
    assert plan.stages[0].memory["gradients"] == 4 * size
    with pytest.raises(ValueError, match="no linear layer"):
        make_plan(recipe_with({**SFT, "lora": {**LORA, "targets": "x"}}))


def test_tokenizer_stages_train_all_or_the_decoder():
    tokenizer: dict[str, Any] = {"kind": "tokenizer", "loop": LOOP}
    whole, decoder = make_plan(
        recipe_with({**tokenizer, "name": "a"}, {**tokenizer, "name": "b", "trainable": "decoder"})
    ).stages
    assert whole.trained["image_tokenizer"] == make_plan(recipe_with(SFT)).parameters["image_tokenizer"]
    assert 0 < decoder.trained["image_tokenizer"] < whole.trained["image_tokenizer"]
    assert decoder.flops["forward"] == whole.flops["forward"] and decoder.flops["backward"] < whole.flops["backward"]


def test_most_is_how_many_samples_fit():
    recipe = recipe_with(SFT)
    stage = make_plan(recipe, Devices(count=1, memory=3e9)).stages[0]
    assert (stage.micro_batch, stage.most > 4) == (4, True)
    per_sample = (stage.memory["activations"] + stage.memory["logits"]) / 4
    fixed = stage.total_memory - 4 * per_sample
    assert stage.most == math.floor((3e9 - fixed) / per_sample)
    assert make_plan(recipe, Devices(count=1, memory=1e9)).stages[0].most == 0
    assert make_plan(recipe, Devices(count=8)).stages[0].micro_batch == 1


def test_a_folder_of_a_model_gives_its_own_sizes(tmp_path: Path):
    model = small_model()
    model.save_pretrained(tmp_path)
    recipe = recipe_with(SFT, init={"model": str(tmp_path)})
    assert planned_config(recipe).decoder.hidden_size == 96
    assert make_plan(recipe).parameters["decoder"] == sum(p.numel() for p in model.decoder.parameters())
    absent = make_plan(recipe_with(SFT, init={"model": "someone/absent"}))
    assert "someone/absent is not here" in absent.assumptions[-1]
    assert absent.parameters["decoder"] != make_plan(recipe).parameters["decoder"]


def test_impossible_devices_and_stages_are_refused():
    with pytest.raises(ValueError, match="at least one device"):
        Devices(count=0)
    with pytest.raises(ValueError, match="share of the peak"):
        Devices(utilisation=30)
    with pytest.raises(ValueError, match="no stage 'x' in this recipe; it has sft"):
        make_plan(recipe_with(SFT), only=("x",))
    assert [stage.name for stage in make_plan(recipe_with(SFT, {**SFT, "name": "b"}), only=("b",)).stages] == ["b"]


def test_text_fits_the_terminal_and_says_what_does_not_fit():
    stages = [{**SFT, "name": "a-stage-with-a-long-name", "lora": LORA}, {"kind": "tokenizer", "loop": LOOP}]
    text = render(make_plan(recipe_with(*stages), Devices(count=2, memory=2e9)))
    assert max(map(len, text.splitlines())) <= WIDTH
    for part in ("small on 2 GPUs of 2 GB", "in the published layout", "a-stage-with-a-long-name (all + adapters)",
                 "2.0 !", "! does not fit into 2 GB", "Assumptions"):  # fmt: skip
        assert part in text


def test_numbers_are_short():
    assert [count(v) for v in (0, 12, 999.6, 2048, 31.7e6, 1.26e21)] == ["-", "12", "1000", "2.05k", "31.7M", "1.26Z"]
    assert [number(v) for v in (0, 0.001, 0.31, 5.678, 4243.4)] == ["-", "<0.01", "0.31", "5.7", "4,243"]
    assert [duration(v) for v in (0.001, 0.5, 25, 265)] == ["<1 min", "30 min", "25.0 h", "11.0 d"]
    assert table(["a", "b"], [["xx", "1"], ["y", "200"]]) == "a     b\nxx    1\ny   200"


def test_the_command_needs_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(recipe_with(SFT, {**SFT, "name": "b"}).model_dump(mode="json")))
    app(["train", str(path), "--dry-run", "--gpus", "4", "--set", "name=other"], standalone_mode=False)
    assert capsys.readouterr().out.startswith("other on 4 GPUs of 80 GB\n")
    app(["train", str(path), "--dry-run", "--json", "--stages", "b", "--gpu-memory", "24"], standalone_mode=False)
    values = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in values["stages"]] == ["b"] and values["devices"]["memory"] == 24e9
    assert values["gpu_hours"] == pytest.approx(values["stages"][0]["total_flops"] / (990e12 * 0.3) / 3600)
    with pytest.raises(ValueError, match="belong to --dry-run"):
        app(["train", str(path), "--gpus", "4"], standalone_mode=False)
    with pytest.raises(ValueError, match="--stages is empty"):
        training.dry_run(path, [], ",", None, None, None, False)
