"""Conversion between the layouts, bit-exact both ways."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_helpers import official_tensors, small_config, write_official
from safetensors.torch import load_file

from vargpt.checkpoint.convert import convert, official_config
from vargpt.configuration import VargptConfig
from vargpt.model import VargptForConditionalGeneration as Model


def folder_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in folder.glob("model*.safetensors") for name, value in load_file(path).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_bit_exact(tmp_path: Path, config: VargptConfig, dtype: torch.dtype) -> None:
    tensors = official_tensors(config, dtype)
    tensors["sos_embedding.weight"] = torch.randn(120, 128).to(dtype)  # longer than needed: all of it comes back
    official = write_official(tmp_path / "official", config, tensors)
    (official / "tokenizer.json").write_text("{}")
    ours = convert(official, tmp_path / "ours", max_shard_size="300KB")
    back = convert(ours, tmp_path / "back", to="official")
    got = folder_tensors(back)
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[name], value) and got[name].dtype == value.dtype for name, value in tensors.items())
    assert (back / "config.json").read_bytes() == (official / "config.json").read_bytes()
    assert (back / "tokenizer.json").exists()


def test_converted_weights_are_those_that_load(official_folder: Path, tmp_path: Path) -> None:
    direct = Model.from_pretrained(official_folder).state_dict()
    converted = Model.from_pretrained(convert(official_folder, tmp_path / "ours")).state_dict()
    assert direct.keys() == converted.keys()
    assert all(torch.equal(direct[name], converted[name]) for name in direct)


def test_trained_weights_override_what_was_kept(official_folder: Path, tmp_path: Path, config: VargptConfig) -> None:
    ours = convert(official_folder, tmp_path / "ours")
    model = Model.from_pretrained(ours)
    torch.nn.init.constant_(model.start_embedding, 7.0)
    model.save_pretrained(ours)
    back = folder_tensors(convert(ours, tmp_path / "back", to="official"))
    original = folder_tensors(official_folder)
    row = config.image_gen_start_token_id
    assert torch.equal(back["sos_embedding.weight"][row], torch.full((128,), 7.0))
    assert torch.equal(back["sos_embedding.weight"][:row], original["sos_embedding.weight"][:row])


def test_export_without_side_files_fills_initial_values(tmp_path: Path) -> None:
    config = small_config()
    torch.manual_seed(0)
    model = Model(config)
    model.save_pretrained(tmp_path / "ours")
    back = folder_tensors(convert(tmp_path / "ours", tmp_path / "back", to="official"))
    assert torch.equal(back["image_gen_projector.ln_q.weight"], torch.ones(128))
    assert torch.equal(back["vargpt_gen.text_proj_for_ca.0.bias"], torch.zeros(128))
    assert torch.equal(back["vae_local.quantizer.lfq.mask"], torch.tensor([128, 64, 32, 16, 8, 4, 2, 1]))
    assert 0.015 < float(back["sos_embedding.weight"][:90].std()) < 0.025
    assert torch.equal(back["sos_embedding.weight"][90], model.start_embedding)
    again = Model.from_pretrained(tmp_path / "back")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_flat_config_means_the_same(config: VargptConfig) -> None:
    again = VargptConfig.from_dict(official_config(config))
    assert again.to_dict() == {**config.to_dict(), "num_scales": again.num_scales, "dtype": again.dtype}


def test_wrong_requests(official_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already in the official layout"):
        convert(official_folder, tmp_path / "x", to="official")
    with pytest.raises(ValueError, match="to is 'vargpt' or 'official'"):
        convert(official_folder, tmp_path / "x", to="diffusers")
    with pytest.raises(ValueError, match="is the source"):
        convert(official_folder, official_folder)
    assert not (tmp_path / "x").exists()
