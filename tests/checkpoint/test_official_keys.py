"""The key table: every published key, both ways, at any size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import small_config

from vargpt.checkpoint.official_keys import is_official, official_key_table
from vargpt.configuration import VargptConfig
from vargpt.model import VargptForConditionalGeneration


def model_shapes(config: VargptConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = VargptForConditionalGeneration(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_all_published_keys_map_at_full_size(shared: Path) -> None:
    manifest = json.loads((shared / "goldens" / "manifest.json").read_text())["state_dict"]
    config = VargptConfig.from_dict(json.loads((shared / "goldens" / "full-size-config.json").read_text()))
    table = {entry.official: entry for entry in official_key_table(config)}

    assert len(table) == 1706
    assert {name: tuple(value["shape"]) for name, value in manifest.items()} == {
        name: entry.official_shape for name, entry in table.items()
    }
    assert {name for name, value in manifest.items() if value["kind"] == "buffer"} == {
        name for name, entry in table.items() if entry.buffer
    }
    ours = {entry.ours: entry.shape for entry in table.values() if entry.ours is not None}
    assert ours == model_shapes(config)


@pytest.mark.parametrize("depth", [2, 4])
def test_the_table_has_exactly_the_weights_of_the_model(depth: int) -> None:
    config = small_config(depth=depth)
    entries = [entry for entry in official_key_table(config) if entry.ours is not None]
    assert {entry.ours: entry.shape for entry in entries} == model_shapes(config)
    assert len({entry.ours for entry in entries}) == len(entries)


def test_entries_invert_each_other(config: VargptConfig) -> None:
    for entry in official_key_table(config):
        if entry.ours is None:
            continue
        official = torch.randn(entry.official_shape)
        rows = official if entry.rows is None else official[slice(*entry.rows)]
        ours = entry.from_official(rows)
        assert tuple(ours.shape) == entry.shape
        assert torch.equal(entry.to_official(ours, official), official), entry.official
        changed = entry.to_official(ours + 1, official)
        assert changed.shape == official.shape
        assert not torch.equal(changed, official)


def test_only_the_start_row_and_the_value_rows_are_read(config: VargptConfig) -> None:
    rows = {entry.ours: entry.rows for entry in official_key_table(config) if entry.rows is not None}
    assert rows == {"start_embedding": (90, 91), "decoder.start_value.weight": (128, 256)}


def test_unused_published_names_are_known(config: VargptConfig) -> None:
    unused = {entry.official for entry in official_key_table(config) if entry.ours is None and not entry.buffer}
    assert unused == {
        "vargpt_gen.text_proj_for_sos.ca.mat_q",
        *(f"vargpt_gen.text_proj_for_ca.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
        *(f"image_gen_projector{out}.ln_q.{kind}" for out in ("", "_out") for kind in ("weight", "bias")),
    }


def test_layouts_are_told_apart_by_their_keys(config: VargptConfig) -> None:
    table = official_key_table(config)
    assert is_official(entry.official for entry in table)
    assert not is_official(entry.ours for entry in table if entry.ours is not None)


def test_a_model_the_published_layout_cannot_express_is_refused() -> None:
    config = small_config()
    config.image_tokenizer.patch_size = 2
    with pytest.raises(ValueError, match="patch_size 1, got 2"):
        official_key_table(config)
