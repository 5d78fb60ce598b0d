"""Positions of the text model against the recordings, literal arrays and transformers' own rope index."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import Qwen2VLConfig, Qwen2VLModel

from vargpt.processing.positions import mrope_positions, sequential_positions

IMAGE = 99


@pytest.fixture(scope="module")
def rope_model() -> Qwen2VLModel:
    with torch.device("meta"):
        return Qwen2VLModel(
            Qwen2VLConfig(
                text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 128},
                vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2},
                image_token_id=IMAGE,
            )
        )


def test_literal_positions_of_a_left_padded_row():
    ids = torch.tensor([[0, 0, 5, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
    positions, deltas = mrope_positions(ids, mask, [(1, 4, 6)], IMAGE)
    assert positions[:, 0].tolist() == [
        [1, 1, 0, 1, 1, 1, 1, 1, 1, 4, 5],
        [1, 1, 0, 1, 1, 1, 2, 2, 2, 4, 5],
        [1, 1, 0, 1, 2, 3, 1, 2, 3, 4, 5],
    ]
    assert deltas.tolist() == [[6 - 11]]


def test_sequential_positions_ignore_everything():
    assert sequential_positions(2, 3).tolist() == [[[0, 1, 2], [0, 1, 2]]] * 3


@pytest.mark.parametrize("name", ["single", "batch"])
def test_understanding_positions_match_the_recording(goldens: Path, name: str):
    recorded = load_file(goldens / "understand.safetensors")
    grids = [tuple(grid) for grid in recorded[f"{name}.image_grid_thw"].tolist()]
    positions, deltas = mrope_positions(
        recorded[f"{name}.input_ids"], recorded[f"{name}.attention_mask"], grids, image_token_id=503
    )
    assert torch.equal(positions, recorded[f"{name}.position_ids"])
    assert torch.equal(deltas, recorded[f"{name}.rope_deltas"])


def test_editing_positions_match_the_recording(goldens: Path):
    recorded = load_file(goldens / "train_edit.safetensors")
    ids, mask = recorded["input_ids"].long(), recorded["attention_mask"]
    grids = [tuple(grid) for grid in recorded["image_grid_thw"].tolist()]
    positions, _ = mrope_positions(ids, mask, grids, image_token_id=503)
    assert torch.equal(positions, recorded["mrope_position_ids_not_used"].long())
    assert torch.equal(sequential_positions(*ids.shape), recorded["llm_position_ids"].long())


ROW = st.lists(st.one_of(st.integers(1, 5), st.tuples(st.integers(1, 4), st.integers(1, 4))), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=3), st.booleans())
def test_equal_to_the_library(rope_model: Qwen2VLModel, rows: list[list[int | tuple[int, int]]], left: bool):
    sequences, grids = [], []
    for row in rows:
        ids: list[int] = []
        for item in row:
            if isinstance(item, int):
                ids += [7] * item
            else:
                grids.append((1, 2 * item[0], 2 * item[1]))
                ids += [3, *[IMAGE] * (item[0] * item[1]), 4]
        sequences.append(ids)
    length = max(map(len, sequences))
    padded = [[0] * (length - len(ids)) + ids if left else ids + [0] * (length - len(ids)) for ids in sequences]
    input_ids = torch.tensor(padded)
    mask = (input_ids != 0).long()
    positions, deltas = mrope_positions(input_ids, mask, grids, IMAGE)
    expected, _ = rope_model.get_rope_index(
        input_ids, (input_ids == IMAGE).int(), torch.tensor(grids) if grids else None, attention_mask=mask
    )
    kept = mask.bool()
    assert torch.equal(positions[:, kept], expected[:, kept])
    assert (positions[:, ~kept] == 1).all()
    for index, keep in enumerate(kept):
        assert deltas[index, 0] == positions[:, index, keep].max() + 1 - length


def test_images_and_grids_must_agree():
    ids, mask = torch.tensor([[IMAGE, IMAGE, 7]]), torch.ones(1, 3)
    with pytest.raises(ValueError, match="2 image tokens for a grid"):
        mrope_positions(ids, mask, [(1, 4, 4)], IMAGE)
    with pytest.raises(ValueError, match="more images than the 0 grids"):
        mrope_positions(ids, mask, [], IMAGE)
    with pytest.raises(ValueError, match="2 grids were given, but the ids hold 1"):
        mrope_positions(ids, mask, [(1, 2, 4), (1, 2, 4)], IMAGE)
