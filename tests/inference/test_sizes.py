"""Sizes and aspects: what a model draws, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vargpt.configuration import VargptConfig
from vargpt.inference.sizes import available_schedules, choose_schedule, describe_sizes, parse_aspect
from vargpt.scales import ScaleSchedule


def config(num_scales: int) -> Any:
    """The fields that sizes depend on."""
    return SimpleNamespace(
        num_scales=num_scales,
        image_tokenizer=SimpleNamespace(stride=16),
        schedule=lambda: ScaleSchedule.from_template(1.0, num_scales),
    )


@pytest.mark.parametrize(
    "text, ratio", [("4:3", 4 / 3), ("16:9", 16 / 9), ("1", 1.0), ("0.5", 0.5), (1.5, 1.5), ("2x3", 2 / 3)]
)
def test_aspects_read_width_to_height(text: str | float, ratio: float) -> None:
    assert parse_aspect(text) == pytest.approx(ratio)


@pytest.mark.parametrize("text", ["", "wide", "4:", "4:0", "0:3", "-1", "nan", "inf", "1:2:3"])
def test_other_aspects_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="width:height"):
        parse_aspect(text)


@pytest.mark.parametrize(
    "scales, aspect, size",
    [
        (10, "1:1", (512, 512)),
        (10, "4:3", (432, 576)),
        (10, "3:4", (576, 432)),
        (10, "16:9", (384, 672)),
        (7, "3:1", (144, 432)),
        (3, "4:3", (48, 64)),
    ],
)
def test_aspect_picks_a_template(scales: int, aspect: str, size: tuple[int, int]) -> None:
    assert choose_schedule(config(scales), aspect_ratio=aspect).image_size == size


def test_no_request_is_a_square() -> None:
    assert choose_schedule(config(3)).image_size == (64, 64)


@pytest.mark.parametrize("scales, size", [(10, (512, 512)), (10, (256, 256)), (10, (576, 432)), (3, (48, 64))])
def test_a_size_the_model_draws_is_taken_as_it_is(scales: int, size: tuple[int, int]) -> None:
    assert choose_schedule(config(scales), height=size[0], width=size[1]).image_size == size


def test_a_size_the_model_lacks_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"no size 512x500 .*64x64 \(1:1\).*64x48 \(4:3\)"):
        choose_schedule(config(3), height=500, width=512)


@pytest.mark.parametrize("aspect", ["5:4", "7:4", "9:1"])
def test_three_scales_of_these_templates_are_squares_and_so_refused(aspect: str) -> None:
    """5:4 with three scales ends in a 3x3 grid: a square that calls itself 5:4."""
    with pytest.raises(ValueError, match="no aspect"):
        choose_schedule(config(3), aspect_ratio=aspect)


@pytest.mark.parametrize(
    "request_", [{"height": 64}, {"width": 64}, {"height": 64, "width": 64, "aspect_ratio": "1:1"}]
)
def test_half_a_size_or_both_ways_at_once_is_refused(request_: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give"):
        choose_schedule(config(3), **request_)


def test_the_published_budgets_below_the_models_own_are_offered() -> None:
    sizes = {schedule.image_size for schedule in available_schedules(config(10))}
    assert {(512, 512), (256, 256)} <= sizes
    assert (768, 768) not in sizes


def test_the_list_names_every_size_once() -> None:
    names = describe_sizes(config(3)).split(", ")
    assert len(names) == len(set(names)) == 11


def test_sizes_work_on_a_real_configuration() -> None:
    assert choose_schedule(VargptConfig(num_scales=7)).image_size == (256, 256)
