"""Loading and saving: both layouts, strictness, types, placement, atomic writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import official_tensors, small_config, write_official
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

import vargpt
from vargpt.checkpoint import pretrained, tensor_files
from vargpt.checkpoint.strict import shorten
from vargpt.configuration import Behaviour, VargptConfig
from vargpt.model import VargptForConditionalGeneration as Model


def equal_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_published_folder_loads_with_official_behaviour(official_folder: Path, config: VargptConfig) -> None:
    model = Model.from_pretrained(official_folder)
    tensors = load_file(official_folder / "model.safetensors")
    assert model.behaviour == Behaviour.official()
    assert not model.training
    assert torch.equal(model.start_embedding, tensors["sos_embedding.weight"][config.image_gen_start_token_id])
    pool = tensors["vargpt_gen.text_proj_for_sos.ca.mat_kv.weight"]
    assert torch.equal(model.decoder.start_value.weight, pool[pool.shape[0] // 2 :])
    offset = tensors["vargpt_gen.block_chunks.1.module.1.ada_gss"]
    assert torch.equal(model.get_parameter("decoder.blocks.3.modulation_offset"), offset[0, 0])


def test_a_longer_start_table_is_read_at_the_start_id(tmp_path: Path, config: VargptConfig) -> None:
    tensors = official_tensors(config)
    tensors["sos_embedding.weight"] = torch.randn(200, 128)
    model = Model.from_pretrained(write_official(tmp_path / "long", config, tensors))
    assert torch.equal(model.start_embedding, tensors["sos_embedding.weight"][90])


def test_buffers_may_be_absent(tmp_path: Path, config: VargptConfig) -> None:
    tensors = official_tensors(config)
    kept = {name: value for name, value in tensors.items() if "zero_k_bias" not in name and "lfq.mask" not in name}
    assert len(kept) < len(tensors)
    Model.from_pretrained(write_official(tmp_path / "no-buffers", config, kept))


@pytest.mark.parametrize("max_shard_size", ["5GB", "300KB", 100_000])
def test_round_trip_in_our_layout_is_exact(official_folder: Path, tmp_path: Path, max_shard_size: int | str) -> None:
    model = Model.from_pretrained(official_folder)
    model.save_pretrained(tmp_path / "ours", max_shard_size=max_shard_size)
    again = Model.from_pretrained(tmp_path / "ours")
    assert equal_weights(model, again)
    assert again.config.to_dict()["decoder"] == model.config.to_dict()["decoder"]
    assert again.behaviour == model.behaviour
    sharded = (tmp_path / "ours" / tensor_files.INDEX_NAME).exists()
    assert sharded == (max_shard_size != "5GB")


def test_our_files_are_ordinary_safetensors(official_folder: Path, tmp_path: Path) -> None:
    model = Model.from_pretrained(official_folder, dtype="bfloat16")
    model.save_pretrained(tmp_path / "ours")
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert torch.equal(file.get_tensor("lm_head.weight"), model.lm_head.weight)


def test_saving_again_drops_stale_shards(official_folder: Path, tmp_path: Path) -> None:
    model = Model.from_pretrained(official_folder)
    model.save_pretrained(tmp_path / "ours", max_shard_size="300KB")
    (tmp_path / "ours" / "tokenizer.json").write_text("{}")
    model.save_pretrained(tmp_path / "ours")
    assert {p.name for p in (tmp_path / "ours").iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert equal_weights(model, Model.from_pretrained(tmp_path / "ours"))


def test_a_failed_save_leaves_the_folder_as_it_was(
    official_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.from_pretrained(official_folder)
    model.save_pretrained(tmp_path / "ours")
    before = (tmp_path / "ours" / "model.safetensors").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(pretrained.tensor_files, "write_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        model.save_pretrained(tmp_path / "ours")
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["official", "ours"]


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_dtype_casts_weights_and_never_the_rotary_tables(official_folder: Path, dtype: str | torch.dtype) -> None:
    model = Model.from_pretrained(official_folder, dtype=dtype)
    wanted = torch.bfloat16 if dtype == "bfloat16" else torch.float16
    assert {p.dtype for p in model.parameters()} == {wanted}
    assert model.config.dtype == wanted
    reference = load_file(official_folder / "model.safetensors")["lm_head.weight"]
    assert torch.equal(model.lm_head.weight, reference.to(wanted))
    fresh = dict(Model(small_config()).named_buffers())
    for name, buffer in model.named_buffers():
        assert buffer.dtype == torch.float32
        assert torch.equal(buffer, fresh[name]), name
    assert len(fresh) == 4


def test_the_stored_type_is_kept_by_default(tmp_path: Path, config: VargptConfig) -> None:
    tensors = official_tensors(config, torch.bfloat16)
    model = Model.from_pretrained(write_official(tmp_path / "bf16", config, tensors))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_auto_classes_know_both_layouts(official_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(official_folder, dtype=torch.float32)
    assert type(model) is vargpt.VargptForConditionalGeneration
    model.save_pretrained(tmp_path / "ours")
    assert type(AutoConfig.from_pretrained(tmp_path / "ours")) is vargpt.VargptConfig
    assert type(AutoConfig.from_pretrained(official_folder)) is vargpt.VargptConfig
    assert equal_weights(AutoModel.from_pretrained(tmp_path / "ours"), model)


def test_device_map(official_folder: Path) -> None:
    whole = Model.from_pretrained(official_folder)
    assert equal_weights(Model.from_pretrained(official_folder, device_map="cpu"), whole)
    split = Model.from_pretrained(official_folder, device_map={"": "cpu", "decoder": "cpu", "lm_head": "cpu"})
    assert equal_weights(split, whole)
    pytest.importorskip("accelerate")
    assert equal_weights(Model.from_pretrained(official_folder, device_map="auto"), whole)


@pytest.mark.parametrize(
    "device_map, message",
    [
        ({"backbone": "cpu"}, "add an entry ''"),
        ({"": "cpu", "no.such": "cpu"}, "names 'no.such'"),
        ({"": "cpu", "decoder": "disk"}, "disk offload"),
        ("abacus", "is no device"),
    ],
)
def test_bad_device_maps(official_folder: Path, device_map: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Model.from_pretrained(official_folder, device_map=device_map)  # type: ignore[arg-type]


def test_missing_accelerate_is_explained(official_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(RuntimeError, match="pip install accelerate"):
        Model.from_pretrained(official_folder, device_map="auto")


def test_missing_and_unexpected_keys_stop_with_the_list(official_folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["vargpt_gen.head.bias"]
        for layer in (0, 1):
            del tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
        tensors["vargpt_gen.extra.weight"] = torch.zeros(2)

    rewrite(official_folder, change)
    with pytest.raises(ValueError, match="do not fit") as caught:
        Model.from_pretrained(official_folder)
    text = str(caught.value)
    assert "missing (3)" in text
    assert "vargpt_gen.head.bias" in text
    assert "model.layers.*.mlp.up_proj.weight (2 times)" in text
    assert "unexpected (1)" in text
    assert "vargpt_gen.extra.weight" in text


def test_our_layout_is_strict_too(official_folder: Path, tmp_path: Path) -> None:
    Model.from_pretrained(official_folder).save_pretrained(tmp_path / "ours")
    rewrite(tmp_path / "ours", lambda tensors: tensors.pop("start_embedding"))
    with pytest.raises(ValueError, match=r"missing \(1\):\n  start_embedding"):
        Model.from_pretrained(tmp_path / "ours")


def test_a_wrong_shape_is_named(official_folder: Path) -> None:
    rewrite(official_folder, lambda tensors: tensors.update({"vargpt_gen.head.weight": torch.zeros(5, 128)}))
    with pytest.raises(ValueError, match=r"vargpt_gen.head.weight: got \[5, 128\], expected \[16, 128\]"):
        Model.from_pretrained(official_folder)


def test_a_config_of_another_size_is_refused(official_folder: Path) -> None:
    path = official_folder / "config.json"
    values = json.loads(path.read_text())
    values["num_hidden_layers"] = 3
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"missing \(12\)"):
        Model.from_pretrained(official_folder)


@pytest.mark.parametrize("content", ['{"model_type": "llama"}', "{}", "not json", "[]"])
def test_a_config_of_another_model_is_refused(official_folder: Path, content: str) -> None:
    (official_folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"'llama' model, expected 'vargpt'|is not a model config"):
        Model.from_pretrained(official_folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000, -1])
def test_a_truncated_file_is_one_clear_message(official_folder: Path, keep: int) -> None:
    path = official_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors is (truncated|not a safetensors file)"):
        Model.from_pretrained(official_folder)


def test_a_missing_shard_is_named(official_folder: Path, tmp_path: Path) -> None:
    Model.from_pretrained(official_folder).save_pretrained(tmp_path / "ours", max_shard_size="300KB")
    shard = sorted((tmp_path / "ours").glob("model-00002-of-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(ValueError, match=shard.name):
        Model.from_pretrained(tmp_path / "ours")


def test_folders_without_a_model(tmp_path: Path, official_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        Model.from_pretrained(tmp_path)
    (official_folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        Model.from_pretrained(official_folder)
    with pytest.raises(ValueError, match="neither a folder here nor a model repository"):
        Model.from_pretrained("no-such-organisation/no-such-model", local_files_only=True)
    with pytest.raises(ValueError, match="is a file"):
        Model.from_pretrained(official_folder / "config.json")


def test_index_and_files_must_agree(official_folder: Path, tmp_path: Path) -> None:
    Model.from_pretrained(official_folder).save_pretrained(tmp_path / "ours", max_shard_size="300KB")
    first, second = sorted((tmp_path / "ours").glob("model-*.safetensors"))[:2]
    shutil.copy(first, second)
    with pytest.raises(ValueError, match="is both in"):
        Model.from_pretrained(tmp_path / "ours")


@pytest.mark.parametrize("size, wanted", [("5GB", 5 * 10**9), ("1.5 MiB", 1572864), (77, 77), ("10b", 10)])
def test_shard_sizes(size: int | str, wanted: int) -> None:
    assert tensor_files.parse_size(size) == wanted


@pytest.mark.parametrize("size", ["five", "5XB", 0, "-1GB"])
def test_bad_shard_sizes(size: int | str) -> None:
    with pytest.raises(ValueError, match="max_shard_size"):
        tensor_files.parse_size(size)


def test_long_lists_are_folded() -> None:
    assert shorten([f"a.{i}.b" for i in range(40)] + ["c"]) == ["a.*.b (40 times)", "c"]
    assert shorten([chr(65 + i % 26) * (i + 1) for i in range(40)])[-1] == "and 10 more kinds of keys"


def test_auto_processor(official_folder: Path, tmp_path: Path) -> None:
    Model.from_pretrained(official_folder).save_pretrained(tmp_path / "ours")
    processor = vargpt.VargptProcessor.train(["draw a red heart", "what is this?"], 300)
    processor.save_pretrained(tmp_path / "ours")
    again = AutoProcessor.from_pretrained(tmp_path / "ours")
    assert type(again) is vargpt.VargptProcessor
    assert again.special == processor.special
