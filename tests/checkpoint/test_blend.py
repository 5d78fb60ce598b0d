"""A model between two others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import small_config
from safetensors.torch import load_file

from vargpt.checkpoint.blend import blend
from vargpt.model import VargptForConditionalGeneration as Model


def saved(folder: Path, seed: int, **sizes: int) -> Path:
    """A model with random weights, in bfloat16, and its words."""
    torch.manual_seed(seed)
    Model(small_config(**sizes)).to(torch.bfloat16).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("95% right")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_every_weight_lies_on_the_line_between(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a", 0), saved(tmp_path / "b", 1)
    one, two = weights(first), weights(second)
    for share in (0.0, 0.25, 1.0):
        made = weights(blend(first, second, tmp_path / f"between {share}", share))
        assert made.keys() == one.keys()
        for name, value in made.items():
            exact = one[name].float() * (1 - share) + two[name].float() * share
            assert value.dtype == torch.bfloat16
            assert torch.equal(value, exact.to(torch.bfloat16)) or torch.allclose(value.float(), exact, rtol=1e-2)
    assert any(not torch.equal(one[name], two[name]) for name in one)
    Model.from_pretrained(tmp_path / "between 0.25")
    names = {path.name for path in (tmp_path / "between 0.25").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json"}  # its card would no longer be true


def test_models_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a", 0), saved(tmp_path / "b", 1)
    deeper = saved(tmp_path / "deeper", 1, depth=6)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"decoder\.depth is 4 in the first and 6 in the second"):
        blend(first, deeper, out)
    with pytest.raises(ValueError, match=r"between 0 \(the first model\) and 1 \(the second\), got 1\.5"):
        blend(first, second, out, 1.5)
    with pytest.raises(ValueError, match="is one of the models: choose another folder"):
        blend(first, second, second)
    with pytest.raises(ValueError, match=r"no config\.json here, expected a model folder"):
        blend(first, tmp_path, out)
    (second / "tokenizer.json").write_text(json.dumps({"other": 1}))
    with pytest.raises(ValueError, match="have different text tokenizers"):
        blend(first, second, out)
    assert not out.exists() and not list(tmp_path.glob(".*"))
