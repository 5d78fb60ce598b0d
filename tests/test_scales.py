"""Scale schedules: literal masks and positions, and the published tables."""

import json
from pathlib import Path

import pytest
import torch

from vargpt.scales import BUDGETS, TEMPLATES, ScaleSchedule, nearest_template


def test_small_schedule_derives_everything_from_its_grids():
    schedule = ScaleSchedule.from_template(1.0, 3)
    assert schedule.sizes == ((1, 1), (2, 2), (4, 4))
    assert schedule.lengths == (1, 4, 16)
    assert schedule.offsets == (0, 1, 5, 21)
    assert schedule.image_size == (64, 64)
    assert schedule.padded_length(1) == 21 and schedule.padded_length(16) == 32
    assert schedule.scale_ids().tolist() == [0, *[1] * 4, *[2] * 16]
    assert schedule.slice(1) == slice(1, 5)


def test_block_causal_mask_literal():
    mask = ScaleSchedule.from_template(1.0, 2).block_causal_mask(7)
    expected = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0],
    ]
    assert mask.int().tolist() == expected


def test_rope_positions_round_half_to_even():
    # Template 1.25, the scale with 20 rows: factor 3.5, so 1.5 -> 4 (3.5 rounds up), 10.5 -> 10 (half to even).
    schedule = ScaleSchedule.from_template(1.25, 13)
    rows, _, _ = schedule.rope_positions()
    start = schedule.offsets[6]
    assert rows[start : start + 20 * 16 : 16][:9].tolist() == [0, 4, 7, 10, 14, 18, 21, 24, 28]


def test_padding_slots_take_the_following_positions_then_none():
    schedule = ScaleSchedule.from_template(1.0, 13)
    padded = schedule.padded_length(128)
    rows, columns, valid = schedule.rope_positions(padded)
    assert valid.sum() == schedule.num_tokens and not rows[~valid].any() and not columns[~valid].any()
    short = ScaleSchedule.from_template(1.0, 2)
    rows, _, valid = short.rope_positions(9)
    assert valid.all() and rows[5:].tolist() == [0.0, 0.0, 0.0, 0.0]  # first row of the 4x4 scale


@pytest.mark.parametrize(("height", "width", "key"), [(512, 512, 1.0), (9, 16, 0.571), (16, 9, 1.75), (1, 10, 0.333)])
def test_nearest_template(height, width, key):
    assert nearest_template(height, width) == key


def test_inverse_keys_are_truncated_and_ordered():
    assert list(TEMPLATES) == [
        1.0, 1.25, 0.8, 1.333, 0.75, 1.5, 0.666, 1.75, 0.571, 2.0, 0.5, 2.5, 0.4, 3.0, 0.333,
    ]  # fmt: skip
    assert TEMPLATES[0.75][6] == (15, 20) and TEMPLATES[1.333][6] == (20, 15)


def test_errors_name_what_is_possible():
    with pytest.raises(ValueError, match=r"unknown aspect template 1\.1: expected one of 1, 1\.25"):
        ScaleSchedule.from_template(1.1, 7)
    with pytest.raises(ValueError, match=r"num_scales must be 1\.\.13, got 14"):
        ScaleSchedule.from_template(1.0, 14)
    with pytest.raises(ValueError, match="must be positive"):
        nearest_template(0, 5)
    with pytest.raises(ValueError, match="shorter than the 21 tokens"):
        ScaleSchedule.from_template(1.0, 3).block_causal_mask(20)


def test_all_published_schedules(shared: Path):
    tables = json.loads((shared / "goldens" / "schedules.json").read_text())["templates"]
    assert [float(key) for key in tables] == list(TEMPLATES)
    for key, table in tables.items():
        for budget, expected in table["budgets"].items():
            schedule = ScaleSchedule.from_template(float(key), BUDGETS[budget])
            assert [list(size) for size in schedule.sizes] == expected["scales"]
            assert schedule.num_tokens == expected["tokens"]
            assert schedule.padded_length(128) == expected["padded"]
            assert schedule.image_size == (expected["height"], expected["width"])
        full = ScaleSchedule.from_template(float(key), 13)
        rows, columns, _ = full.rope_positions()
        for k, (height, width) in enumerate(full.sizes):
            grid_rows = rows[full.slice(k)].view(height, width)
            grid_columns = columns[full.slice(k)].view(height, width)
            assert torch.equal(grid_rows[:, 0], torch.tensor(table["rope_rows"][k], dtype=torch.float32))
            assert torch.equal(grid_columns[0], torch.tensor(table["rope_columns"][k], dtype=torch.float32))
