"""Where weights come from before the first stage: whole models, a Qwen2-VL folder, files with published names."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from vargpt.checkpoint.official_keys import decoder_entries, image_tokenizer_entries
from vargpt.data.instructions import edit_conversation
from vargpt.model import VargptForConditionalGeneration
from vargpt.processing.text import train_text_tokenizer
from vargpt.scales import ScaleSchedule
from vargpt.training.recipes.schema import Recipe
from vargpt.training.weights import adapters
from vargpt.training.weights.init_weights import make_model, make_processor, weight_dtype, with_new_rows
from vargpt.training.weights.trainable import set_trainable

LOOP = {"steps": 2, "batch_size": 2, "learning_rate": 0.01}
STAGE: dict[str, Any] = {"kind": "sft", "loop": LOOP, "data": [{"task": "draw"}], "trainable": "generation"}
SIZES: dict[str, Any] = {
    "image_tokenizer": {"bits": 8, "base_channels": 32, "channel_multipliers": [1, 1], "stride": 2},
    "vision": {"depth": 1, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4, "image_side": 32},
    "backbone": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
                 "num_key_value_heads": 1, "mrope_section": [2, 3, 3]},
    "decoder": {"hidden_size": 128, "num_heads": 2, "depth": 4},
}  # fmt: skip
TOKENS = 307
"""Words and Qwen2-VL's special tokens; the drawing tokens are the three after."""
TEXTS = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefgh"] * 2


def recipe_with(vocabulary: int = TOKENS + 3, **changes: Any) -> Recipe:
    sections = {"text_tokenizer": {"vocab_size": vocabulary}, "model": SIZES, "stages": [STAGE], **changes}
    return Recipe.model_validate({"name": "init", "seed": 3, **sections})


def write_backbone(folder: Path, rows: int, tied: bool = False) -> dict[str, Tensor]:
    """A tiny random Qwen2-VL with its tokenizer and image processor, as transformers saves it."""
    text = {**SIZES["backbone"], "vocab_size": rows, "bos_token_id": 0, "eos_token_id": 1, "rms_norm_eps": 1e-6}
    sections = text.pop("mrope_section")
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    vision = {name: value for name, value in SIZES["vision"].items() if name != "image_side"}
    config = Qwen2VLConfig(text_config=text, vision_config={**vision, "hidden_size": 32}, tie_word_embeddings=tied)
    torch.manual_seed(1)
    model = Qwen2VLForConditionalGeneration(config)
    model.save_pretrained(folder)
    core = train_text_tokenizer(TEXTS, TOKENS + 3)
    state = json.loads(core.backend_tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:-3]  # Qwen2-VL has no drawing tokens
    (folder / "tokenizer.json").write_text(json.dumps(state))
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).save_pretrained(folder)
    Qwen2VLImageProcessorPil(patch_size=4).save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def scratch() -> VargptForConditionalGeneration:
    """A model of the recipe's sizes from its seed alone."""
    return make_model(recipe_with(), make_processor(recipe_with(), TEXTS))


def published_decoder(model: VargptForConditionalGeneration, chunks: int) -> dict[str, Tensor]:
    """The model's decoder under published names, random, with the tensors that have no effect."""
    model.config.decoder.num_chunks = chunks
    generator = torch.Generator().manual_seed(0)
    return {
        entry.official.removeprefix("vargpt_gen."): torch.randn(entry.official_shape, generator=generator)
        for entry in decoder_entries(model.config)
    }


@pytest.mark.parametrize("spare", [0, 5])
def test_a_backbone_brings_its_weights_and_the_drawing_tokens_start_as_the_mean(tmp_path: Path, spare: int):
    stored = write_backbone(tmp_path, TOKENS + 3 * (spare > 0) + spare)
    recipe = recipe_with(TOKENS + 3 + spare, init={"backbone": str(tmp_path)})
    processor = make_processor(recipe, [])
    model = make_model(recipe, processor)
    assert processor.special.image_gen_start == TOKENS
    own = dict(model.named_parameters())
    for published, ours in (
        ("visual.merger.mlp.0.weight", "backbone.visual.merger.mlp.0.weight"),
        ("model.layers.1.self_attn.q_proj.bias", "backbone.language_model.layers.1.self_attn.q_proj.bias"),
    ):
        assert torch.equal(own[ours], stored[published])
    for published, ours in (
        ("model.embed_tokens.weight", "backbone.language_model.embed_tokens.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ):
        table = own[ours]
        assert table.shape == (TOKENS + 3 + spare, 32)
        assert torch.equal(table[:TOKENS], stored[published][:TOKENS])
        assert torch.equal(table[TOKENS : TOKENS + 3], stored[published][:TOKENS].mean(0).expand(3, -1))
        assert torch.equal(table[TOKENS + 3 :], stored[published][TOKENS + 3 :])
    assert model.config.backbone.text_config.rope_parameters["rope_theta"] == 1e6
    assert model.config.behaviour == processor.behaviour and processor.behaviour.image_slot_multiple == 1


def test_what_no_file_gives_is_drawn_from_the_seed(tmp_path: Path, scratch: VargptForConditionalGeneration):
    write_backbone(tmp_path, TOKENS)
    models: list[dict[str, Tensor]] = []
    for seed in (3, 3, 4):
        recipe = recipe_with(init={"backbone": str(tmp_path)}, seed=seed)
        torch.manual_seed(len(models))
        models.append(make_model(recipe, make_processor(recipe, [])).state_dict())
    first, again, other = models
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("decoder.blocks.1.ffn.fc1.weight", "in_projector.fc2.weight", "start_embedding"):
        assert not torch.equal(first[name], other[name])
    same = scratch.state_dict()
    sizes = {name: (float(first[name].std()), float(same[name].std())) for name in same if same[name].numel() > 400}
    wrong = {name: pair for name, pair in sizes.items() if not 0.8 < (pair[0] + 1e-9) / (pair[1] + 1e-9) < 1.25}
    assert not wrong  # every part is initialised as in a new model
    tokenizer = [name for name in first if name.startswith("image_tokenizer.")]
    assert all(torch.equal(first[name], same[name]) for name in tokenizer)


def test_an_initial_model_computes_like_any_other(tmp_path: Path):
    """Buffers are filled: a forward gives what the saved and reloaded model gives."""
    write_backbone(tmp_path / "qwen", TOKENS)
    recipe = recipe_with(init={"backbone": str(tmp_path / "qwen")})
    processor = make_processor(recipe, [])
    model = make_model(recipe, processor)
    batch = processor.prompt([{"role": "user", "content": "fox"}]).inputs
    model.save_pretrained(tmp_path / "saved")
    loaded = VargptForConditionalGeneration.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        logits, again = model(batch).text_logits_BTV, loaded(batch).text_logits_BTV
    assert logits.isfinite().all() and torch.equal(logits, again)


def test_a_tied_head_becomes_a_copy(tmp_path: Path):
    stored = write_backbone(tmp_path, TOKENS, tied=True)
    assert "lm_head.weight" not in stored
    recipe = recipe_with(init={"backbone": str(tmp_path)})
    model = make_model(recipe, make_processor(recipe, []))
    assert torch.equal(model.lm_head.weight[:TOKENS], stored["model.embed_tokens.weight"])
    assert model.config.backbone.tie_word_embeddings is False
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["safetensors", "torch", "group"])
def test_parts_come_from_files_with_published_names(tmp_path: Path, scratch: VargptForConditionalGeneration, kind: str):
    tensors = published_decoder(scratch, chunks=2)
    eyes = {
        entry.official.removeprefix("vae_local."): torch.randn(entry.official_shape)
        for entry in image_tokenizer_entries(scratch.config)
        if entry.ours is not None  # the published mask is a buffer and may be absent
    }
    paths = {"decoder": tmp_path / "decoder.pth", "image_tokenizer": tmp_path / "image_tokenizer.pth"}
    for path, content in zip(paths.values(), (tensors, eyes), strict=True):
        if kind == "safetensors":
            save_file(content, path.with_suffix(".safetensors"))
        else:
            torch.save({"vae": content, "step": 3} if kind == "group" else content, path)
    names = {
        "safetensors": {part: str(path.with_suffix(".safetensors")) for part, path in paths.items()},
        "torch": {part: str(path) for part, path in paths.items()},
        "group": {part: f"{path}#vae" for part, path in paths.items()},
    }[kind]
    recipe = recipe_with(init=names)
    model = make_model(recipe, make_processor(recipe, TEXTS))
    torch.manual_seed(99)
    again = make_model(recipe, make_processor(recipe, TEXTS)).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    own = dict(model.named_parameters())
    fc1 = tensors["block_chunks.1.module.1.ffn.fc1.weight"]
    assert torch.equal(own["decoder.blocks.3.ffn.fc1.weight"], fc1)
    value = tensors["text_proj_for_sos.ca.mat_kv.weight"][128:]
    assert torch.equal(own["decoder.start_value.weight"], value)
    assert torch.equal(own["image_tokenizer.encoder.conv_in.weight"], eyes["encoder.conv_in.conv.weight"])
    assert model.config.decoder.num_chunks == 2
    backbone = "backbone.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(own[backbone].isfinite(), torch.ones(48, 32, dtype=torch.bool))
    assert float(own[backbone].detach().std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("layout", ["ours", "published"])
def test_the_image_tokenizer_of_a_models_folder(tmp_path: Path, scratch: VargptForConditionalGeneration, layout: str):
    weights = {}
    for entry in image_tokenizer_entries(scratch.config):
        if entry.ours is not None:
            name = entry.ours if layout == "ours" else entry.official
            weights[name] = torch.randn(entry.official_shape)
    other = "lm_head.weight"  # the rest of the model is left where it is
    save_file({**weights, other: torch.zeros(3, 3)}, tmp_path / "model.safetensors")
    recipe = recipe_with(init={"image_tokenizer": str(tmp_path)})
    own = dict(make_model(recipe, make_processor(recipe, TEXTS)).named_parameters())
    for entry in image_tokenizer_entries(scratch.config):
        if entry.ours is not None:
            assert torch.equal(own[entry.ours], weights[entry.ours if layout == "ours" else entry.official])
    gone = next(iter(weights))
    save_file({name: value for name, value in weights.items() if name != gone}, tmp_path / "model.safetensors")
    assert "missing" in refusal(recipe)


def test_a_whole_model_comes_with_its_processor(tmp_path: Path, scratch: VargptForConditionalGeneration):
    recipe = recipe_with()
    scratch.to(torch.float32).save_pretrained(tmp_path)
    make_processor(recipe, TEXTS).save_pretrained(tmp_path)
    again = recipe_with(init={"model": str(tmp_path)}, frozen_dtype="bfloat16")
    model = make_model(again, make_processor(again, []))
    own = dict(model.named_parameters())
    for name, value in scratch.named_parameters():
        assert torch.equal(own[name], value.to(own[name].dtype))
    types = {name.split(".")[0]: value.dtype for name, value in own.items() if value.ndim > 1 or "start_emb" in name}
    assert types == {
        "backbone": torch.bfloat16, "lm_head": torch.bfloat16, "image_tokenizer": torch.float32,
        "decoder": torch.float32, "in_projector": torch.float32, "out_projector": torch.float32,
        "start_embedding": torch.float32,
    }  # fmt: skip


def test_switches_hold_for_a_model_that_is_given(tmp_path: Path, scratch: VargptForConditionalGeneration):
    scratch.save_pretrained(tmp_path / "model")
    make_processor(recipe_with(), TEXTS).save_pretrained(tmp_path / "model")
    sizes = {**SIZES, "behaviour": {"image_loss_weights": "official"}}
    recipe = recipe_with(init={"model": str(tmp_path / "model")}, model=sizes)
    processor = make_processor(recipe, [])
    assert make_model(recipe, processor).behaviour == processor.behaviour
    assert processor.behaviour == replace(scratch.behaviour, image_loss_weights="official") != scratch.behaviour


def test_a_model_draws_at_the_size_that_the_recipe_trains(tmp_path: Path, scratch: VargptForConditionalGeneration):
    scratch.save_pretrained(tmp_path / "model")
    make_processor(recipe_with(), TEXTS).save_pretrained(tmp_path / "model")
    scales = scratch.config.num_scales
    cases: list[tuple[dict[str, Any], int]] = [({}, scales), ({"schedule": {"num_scales": scales + 1}}, scales + 1)]
    for asked, got in cases:
        recipe = recipe_with(init={"model": str(tmp_path / "model")}, **asked)
        assert make_model(recipe, make_processor(recipe, [])).config.num_scales == got


def test_only_what_no_stage_trains_may_be_kept_small():
    stages = [
        {**STAGE, "name": "a", "trainable": "projectors"},
        {**STAGE, "name": "b", "trainable": "language_and_merger"},
    ]
    recipe = recipe_with(frozen_dtype="bfloat16", stages=stages)
    kept = {
        name: weight_dtype(recipe, name, axes)
        for name, axes in (
            ("backbone.visual.blocks.0.mlp.fc1.weight", 2), ("backbone.visual.blocks.0.mlp.fc1.bias", 1),
            ("backbone.visual.merger.mlp.0.weight", 2), ("lm_head.weight", 2), ("decoder.head.weight", 2),
            ("in_projector.fc1.weight", 2), ("image_tokenizer.encoder.conv_in.weight", 4),
        )
    }  # fmt: skip
    small = {"backbone.visual.blocks.0.mlp.fc1.weight", "decoder.head.weight"}
    assert {name for name, dtype in kept.items() if dtype == torch.bfloat16} == small
    assert {weight_dtype(recipe_with(stages=stages), name, 2) for name in kept} == {torch.float32}


@pytest.mark.parametrize("trainable", ["none", "generation", "language"])
def test_small_frozen_weights_train_under_autocast(trainable: str):
    """Norms and residual streams of every part take the mixed types, forward and backward."""
    lora = {"rank": 2, "targets": r"backbone\.language_model\..*q_proj"}
    recipe = recipe_with(frozen_dtype="bfloat16", stages=[{**STAGE, "name": "s", "trainable": trainable, "lora": lora}])
    processor = make_processor(recipe, TEXTS)
    model = make_model(recipe, processor)
    adapters.inject_all(model, recipe)
    set_trainable(model, trainable)  # type: ignore[arg-type]
    adapters.activate(model, recipe, "s")
    schedule = ScaleSchedule(1.0, 3, 2)
    pictures = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    edit = edit_conversation(pictures[0], pictures[1], "bluer", random.Random(0), 0.0)
    rows = [processor.encode(edit, schedule)]
    inputs = processor.collate(rows).inputs
    targets = rows[0].targets[0]
    assert targets is not None
    bits = model.image_tokenizer.encode(targets[None], schedule)
    inputs = replace(inputs, labels_ILd=bits.labels_BLd, next_inputs_IMd=bits.next_inputs_BMd)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(inputs, text_logits="targets")
        loss = output.target_logits_SV.float().square().mean() + output.bit_logits_ILd2.float().square().mean()
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is None or gradient.dtype == torch.float32 for gradient in gradients)
    assert sum(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients) > 1


def test_new_rows_are_the_mean_of_the_rows_before_them():
    table = torch.tensor([[1.0, 0.0], [3.0, 4.0], [9.0, 9.0]])  # the last row is spare
    assert with_new_rows(table.clone(), 4, [2, 3]).tolist() == [[1, 0], [3, 4], [2, 2], [2, 2]]
    assert with_new_rows(table.clone(), 3, [2]).tolist() == [[1, 0], [3, 4], [2, 2]]


def refusal(recipe: Recipe) -> str:
    with pytest.raises(ValueError) as caught:
        make_model(recipe, make_processor(recipe, TEXTS))
    return str(caught.value)


def test_sizes_that_differ_from_the_backbones_are_named(tmp_path: Path):
    write_backbone(tmp_path, TOKENS)
    init = {"backbone": str(tmp_path)}
    other = {**SIZES, "backbone": {**SIZES["backbone"], "intermediate_size": 64}}
    text = refusal(recipe_with(init=init, model=other))
    assert "set model.backbone.intermediate_size: 48 (the recipe says 64)" in text and ";" not in text.split("set ")[1]
    assert "text_tokenizer.vocab_size: 310 (the recipe says 1024)" in refusal(recipe_with(1024, init=init))
    convolving = recipe_with(init=init)
    convolving.model.vision.stem = "convolution"
    assert "set model.vision.stem: patch (the recipe says convolution)" in refusal(convolving)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert "is a 'llama' model, expected 'qwen2_vl'" in refusal(recipe_with(init=init))


def test_files_that_do_not_fit_are_named(tmp_path: Path, scratch: VargptForConditionalGeneration):
    tensors = published_decoder(scratch, chunks=1)
    del tensors["cfg_uncond"], tensors["text_proj_for_ca.0.weight"]  # the second has no effect and may be absent
    tensors["extra"] = torch.ones(1)
    tensors["head.bias"] = torch.ones(5)
    save_file(tensors, tmp_path / "decoder.safetensors")
    text = refusal(recipe_with(init={"decoder": str(tmp_path / "decoder.safetensors")}))
    assert "missing (1):\n  cfg_uncond" in text and "unexpected (1):\n  extra" in text
    assert "head.bias: got [5], expected [16]" in text and "the recipe's model.decoder" in text
    torch.save({"ema": tensors}, tmp_path / "groups.pth")
    assert "as in groups.pth#ema" in refusal(recipe_with(init={"decoder": str(tmp_path / "groups.pth")}))
    assert "it has ema" in refusal(recipe_with(init={"decoder": str(tmp_path / "groups.pth#vae")}))
    assert "is not a file" in refusal(recipe_with(init={"image_tokenizer": str(tmp_path / "absent.pth")}))
    (tmp_path / "text.pth").write_text("no tensors")
    assert "is not a PyTorch file" in refusal(recipe_with(init={"decoder": str(tmp_path / "text.pth")}))
    torch.save({"a": Path("x")}, tmp_path / "code.pth")
    assert "is not a PyTorch file of nothing but tensors" in refusal(
        recipe_with(init={"decoder": str(tmp_path / "code.pth")})
    )


def test_float32_stages_need_float32_weights():
    stage = {**STAGE, "loop": {**LOOP, "precision": "fp32"}}
    assert "set frozen_dtype: float32" in refusal(recipe_with(frozen_dtype="bfloat16", stages=[stage]))


def test_a_whole_model_and_parts_exclude_each_other():
    with pytest.raises(ValueError, match=r"init\.model is a whole model"):
        recipe_with(init={"model": "a", "decoder": "b"})
