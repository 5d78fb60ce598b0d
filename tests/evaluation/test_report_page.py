"""The pages: they stand alone, escape what models say, choose and shrink pictures, and draw what the numbers say."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from vargpt.evaluation.harness import Suite, SuiteResult
from vargpt.evaluation.report.comparison import differing_conditions, unit_reaches, write_comparison
from vargpt.evaluation.report.examples import Group, groups, picture_source, spread
from vargpt.evaluation.report.page import bar_tops, card, interval_text, measure_table, page, short_title, write_page
from vargpt.evaluation.report.plots import forest_row, histogram, histogram_counts, interval_bar, nice_ticks
from vargpt.evaluation.report.style import flattened
from vargpt.evaluation.task import Judged, Measure, Task

NAMING = (Measure("naming", "Naming"), Measure("naming/hard", "Naming: hard ones"))
CLOSENESS = (Measure("psnr", "Pictures: PSNR", "dB"),)
DISTANCE = (Measure("distance", "Distance", "number", False),)


class Listed:
    """A task as the page sees it."""

    def __init__(self, name: str, title: str, measures: Sequence[Measure]) -> None:
        self.name, self.title, self.measures = name, title, measures


def noise(seed: int, side: int = 48) -> torch.Tensor:
    return torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def entry(measure: Measure, task: str, mean: float, low: float, high: float, n: int = 10) -> dict[str, Any]:
    return {"title": measure.title, "unit": measure.unit, "higher_is_better": measure.higher_is_better, "task": task,
            "mean": mean, "low": low, "high": high, "n": n}  # fmt: skip


def result(count: int = 40, side: int = 48) -> SuiteResult:
    tasks = [Listed("naming", "Naming", NAMING), Listed("pictures", "Pictures", CLOSENESS)]
    naming = [
        Judged(f"n{index}", {"naming": float(index % 4 != 0)}, f"what <is> {index}?", f"<b>thing {index}</b>", "a & b",
               {"source": noise(index, side)})
        for index in range(count)
    ]  # fmt: skip
    pictures = [
        Judged(f"p{index}", {"psnr": 20.0 + index / 10}, f"picture {index}.", pictures={
            "original": noise(index, side), "reconstruction": noise(index + 1, side)})
        for index in range(count)
    ]  # fmt: skip
    document = {
        "suite": "tiny", "title": "A tiny suite",
        "measures": {
            "naming": entry(NAMING[0], "naming", 0.75, 0.6, 0.875, count),
            "psnr": entry(CLOSENESS[0], "pictures", 21.95, 21.5, 22.4, count),
        },
        "tasks": {task.name: {"title": task.title, "examples": count, "seconds": 1.25} for task in tasks},
        "conditions": {"model": "x<y", "parameters": 19_300_000, "image_size": [64, 96], "scales": 3, "seconds": 61.4,
                       "versions": {"torch": "2.13", "commit": None}},
    }  # fmt: skip
    suite = Suite("tiny", "A tiny suite", cast("list[Task]", tasks), ("naming", "missing"), footnotes=("One <note>.",))
    return SuiteResult(suite, document, {"naming": naming, "pictures": pictures})


class Elements(HTMLParser):
    """Collects attributes, and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(text: str) -> Elements:
    elements = Elements()
    elements.feed(text)
    assert elements.open == []
    return elements


def assert_stands_alone(text: str) -> None:
    elements = parsed(text)
    assert not {tag for tag, _ in elements.seen} & {"script", "link", "iframe", "object"}
    for tag, attributes in elements.seen:
        for name in ("src", "href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("data:image/", "#")), (tag, address)
    assert not re.search(r"url\(|@import|http", text)


def test_the_page_stands_alone_and_escapes_what_was_said(tmp_path: Path):
    path = write_page(result(), tmp_path / "report")
    assert path == tmp_path / "report" / "index.html" and [file.name for file in path.parent.iterdir()] == [
        "index.html"
    ]
    text = path.read_text(encoding="utf-8")
    assert_stands_alone(text)
    assert "<b>thing" not in text and "&lt;b&gt;thing 4&lt;/b&gt;" in text and "what &lt;is&gt; 4?" in text
    assert "x&lt;y" in text and "a &amp; b" in text and "One &lt;note&gt;." in text


def test_the_page_shows_numbers_intervals_and_conditions():
    text = page(result())
    assert "75.0%" in text and "60.0 to 87.5%" in text and "n = 40" in text
    assert "21.95 dB" in text and "21.50 to 22.40 dB" in text
    assert "80 examples" in text and "19.3M parameters" in text and "96×64 pixels" in text and "61 s" in text
    assert "<dt>versions: torch</dt><dd>2.13</dd>" in text and "<dt>versions: commit</dt><dd>not known</dd>" in text
    assert text.count('<svg class="histogram"') == 1 and "mean 21.95 dB" in text
    assert "12 of 30, evenly spread" in text and "all 10" in text  # 30 of 40 right, 10 wrong
    assert "picture 39." in text and "picture 0." in text and "picture 19." in text and "picture 9." not in text


def test_many_large_pictures_make_a_small_page():
    text = page(result(1500, 200))
    assert len(text) < 5_000_000 and text.count("<img") == 12 + 12 + 3 * 8 * 2


def judged(values: Sequence[float], measure: str = "naming") -> list[Judged]:
    return [Judged(str(index), {measure: value}, answer="x") for index, value in enumerate(values)]


def keys(found: Sequence[Group]) -> list[tuple[str, list[str], int]]:
    return [(group.title, [example.key for example in group.examples], group.total) for group in found]


def test_right_and_wrong_ones_are_spread_over_all():
    found = groups(judged([1, 1, 0, 1, 1, 1, 1, 1]), NAMING, shown=3)
    assert keys(found) == [("Wrong", ["2"], 1), ("Right", ["0", "3", "5"], 7)]
    assert keys(groups(judged([1.0, 1.0]), NAMING)) == [("Right", ["0", "1"], 2)]


def test_the_best_the_middle_and_the_worst_are_chosen():
    values = [3.0, 9.0, 1.0, 7.0, 5.0, 2.0, 8.0, 4.0, 6.0]
    found = groups(judged(values, "psnr"), CLOSENESS, shown=3)
    assert keys(found) == [("Best", ["1", "6"], 9), ("Around the median", ["8", "4"], 9), ("Worst", ["5", "2"], 9)]
    assert keys(groups(judged(values, "distance"), DISTANCE, shown=3))[0] == ("Best", ["2", "5"], 9)
    assert keys(groups(judged([0.5, 0.75]), NAMING)) == [("From best to worst", ["1", "0"], 2)]


def test_an_example_counts_with_the_first_measure_that_it_has():
    mixed = [
        Judged("a", {"naming": 1.0, "naming/hard": 0.0}, answer="x"),
        Judged("b", {"naming/hard": 0.0}, answer="x"),
        Judged("c", {}, answer="x"),
        Judged("d", {"naming": 0.0}),
    ]
    assert keys(groups(mixed, NAMING)) == [("Wrong", ["b"], 1), ("Right", ["a"], 1)]  # d has nothing to show
    assert groups([Judged("d", {"naming": 0.0})], NAMING) == []


def test_spread():
    assert [example.key for example in spread(judged([0] * 10), 4)] == ["0", "2", "5", "7"]


def decoded(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


def test_pictures_are_small_and_in_the_smaller_format():
    flat = picture_source(torch.full((64, 48, 3), 200, dtype=torch.uint8))
    assert flat.startswith("data:image/png;base64,") and decoded(flat).size == (48, 64)
    busy = picture_source(noise(0, 300))
    assert busy.startswith("data:image/jpeg;base64,") and decoded(busy).size == (144, 144)


def test_a_card_says_what_was_expected_and_what_came():
    asked = card(Judged("a", {"naming": 0.0}, "what?", "", "a fox", {"source": noise(0)}), NAMING)
    assert (
        ">expected</dt>" in asked and ">a fox</dd>" in asked and ">answer</dt>" in asked and ">(nothing)</dd>" in asked
    )
    pictures = {"source": noise(0), "target": noise(1), "result": noise(2)}
    edited = card(
        Judged("a", {"naming": 1.0, "naming/hard": 0.25}, "make it red", "a ring", "a red ring", pictures), NAMING
    )
    assert "expected" not in edited and ">read as</dt>" in edited  # the target picture says what was expected
    assert edited.count("<figcaption>") == 3 and "hard ones 25.0%" in edited and "Naming 100" not in edited


def test_a_card_tells_what_is_good_or_bad_and_leaves_out_the_rest():
    measures = (
        *CLOSENESS,
        Measure("read", "Pictures: read right"),
        Measure("length", "Pictures: length", "number", None),
    )
    text = card(Judged("a", {"psnr": 20.0, "read": 0.0, "length": 7.0}, "a star"), measures)
    assert "PSNR 20.00 dB" in text and '<span class="no">✗</span> read right' in text and "7.0" not in text


def test_titles_below_their_task_are_short():
    assert short_title("Understanding: colour", "Understanding") == "Colour"
    assert short_title("Drawing, all", "Drawing") == "All"
    assert short_title("Edits done", "Editing") == "Edits done"


def test_bars_of_numbers_end_at_the_greatest_of_their_family():
    tokens = [Measure(f"t/tokens/{i}", f"T: entropy of a token, scale {i}", "number", None) for i in (1, 2, 3)]
    others = [Measure("t/ssim", "T: SSIM", "number"), Measure("t/share", "T: share"), *CLOSENESS]
    others += [Measure(f"t/{name}", f"T: {name}", "number") for name in ("frechet", "other")]  # no family
    entries = {m.name: entry(m, "t", index, index - 0.5, index + 0.5) for index, m in enumerate([*others, *tokens], 1)}
    assert bar_tops(entries) == {"t/share": 1.0, "t/tokens/1": 8.5, "t/tokens/2": 8.5, "t/tokens/3": 8.5}
    assert measure_table(entries, "T").count("<svg") == 4 and measure_table({}, "T") == ""


@pytest.mark.parametrize(
    "unit, low, high, text",
    [
        ("percent", 0.1, 0.25, "10.0 to 25.0%"),
        ("dB", -1.0, 2.0, "-1.00 to 2.00 dB"),
        ("number", 0.5, 1, "0.500 to 1.000"),
    ],
)
def test_intervals_in_words(unit: str, low: float, high: float, text: str):
    assert interval_text({"unit": unit, "low": low, "high": high}) == text


def numbers(svg: str, attribute: str) -> list[float]:
    return [float(value) for value in re.findall(rf' {attribute}="(-?[\d.]+)"', svg)]


def test_a_bar_is_as_long_as_its_mean():
    svg = interval_bar(1.0, 0.5, 3.0, 2.0)
    assert numbers(svg, "width") == [100.0, 50.0]
    assert numbers(svg, "x1") == [25.0, 25.0, 100.0]  # the interval ends with the track
    assert numbers(interval_bar(0.0, 0.0, 0.0, 0.0), "width") == [100.0, 0.0]


def test_a_difference_stands_on_its_side_of_zero():
    svg = forest_row(-0.5, -1.0, 0.5, 2.0, "red")
    assert numbers(svg, "x1") == [50.0, 25.0, 37.5] and numbers(svg, "x2")[1] == 62.5 and 'stroke="red"' in svg


def test_histograms_count_all_values():
    assert histogram_counts([0.0, 0.1, 0.49, 0.5, 1.0], 2) == [3, 2]
    assert histogram([2.0, 2.0], "dB") == ""
    heights = numbers(histogram([1.0, 1.1, 1.2, 4.0], "dB", bins=3), "height")
    assert heights == [78.0, 26.0]


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (18.2, 31.4, [20, 25, 30]),
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3, 3, [-2, 0, 2]),
        (98, 1010, [200, 400, 600, 800, 1000]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]):
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_conditions_are_set_out_one_by_one():
    assert flattened({"a_b": {"c": [1, 2]}, "n": 1_234_567, "t": True, "s": None}) == [
        ("a b: c", "1, 2"), ("n", "1,234,567"), ("t", "True"), ("s", "not known"),
    ]  # fmt: skip


def comparison() -> dict[str, Any]:
    shared = {"unit": "percent", "higher_is_better": True, "n": 50}
    return {
        "suite": "tiny", "title": "A tiny suite", "a": "<old>", "b": "new",
        "measures": {
            "naming": {"title": "Naming", **shared, "a": 0.5, "b": 0.7, "difference": 0.2, "low": 0.1, "high": 0.3,
                       "verdict": "better"},
            "hard": {"title": "Hard", **shared, "a": 0.5, "b": 0.48, "difference": -0.02, "low": -0.4, "high": 0.05,
                     "verdict": "no difference shown"},
        },
        "not_paired": ["frechet"],
        "conditions": {
            "a": {"seed": 0, "model": "<old>", "seconds": 1},
            "b": {"seed": 0, "model": "new", "seconds": 2},
        },
    }  # fmt: skip


def test_the_comparison_is_a_forest_of_differences(tmp_path: Path):
    given = comparison()
    before = json.dumps(given)
    text = write_comparison([given], tmp_path / "compare.html").read_text(encoding="utf-8")
    assert_stands_alone(text)
    assert "<old>" not in text and "&lt;old&gt;" in text and json.dumps(given) == before
    assert "2 measures" in text and "1 better, 1 no difference shown" in text and "frechet" in text
    assert "+20.0" in text and "+10.0 to +30.0" in text and "-2.0" in text and "▲ better" in text
    assert text.count('<svg class="forest"') == 2
    assert numbers(text, "x1")[:3] == [50.0, 62.5, 75.0]  # all rows end at 40 points


def test_rows_of_a_unit_share_their_scale():
    entries = [{"unit": "dB", "low": -2.0, "high": 1.0}, {"unit": "dB", "low": 0.0, "high": 3.0},
               {"unit": "percent", "low": 0.0, "high": 0.1}]  # fmt: skip
    assert unit_reaches(entries) == {"dB": 3.0, "percent": 0.1}


def test_conditions_that_differ_are_named():
    text = differing_conditions(comparison()["conditions"])
    assert "<td>model</td>" in text and "seed" not in text and "seconds" not in text
    same = {"a": {"seed": 1, "seconds": 1}, "b": {"seed": 1, "seconds": 2}}
    assert "same conditions" in differing_conditions(same)
