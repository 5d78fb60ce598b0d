"""Comparing results: paired, in literal numbers, and only like with like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vargpt.evaluation.compare import compare, paired_difference, pairs_of_results, read_recorded, verdict
from vargpt.evaluation.intervals import Estimate
from vargpt.evaluation.tables import comparison_table, number, results_table

MEASURES: dict[str, dict[str, Any]] = {
    "right": {"title": "Right", "unit": "percent", "higher_is_better": True},
    "odd": {"title": "Odd", "unit": "percent", "higher_is_better": False},
    "entropy": {"title": "Entropy", "unit": "number", "higher_is_better": None},
}


def write(folder: Path, values: dict[str, dict[str, float]], suite: str = "scenes", **conditions: Any) -> Path:
    """Results of a suite with these values by example."""
    folder.mkdir(parents=True)
    measures = {name: {**entry, "mean": 0.5, "low": 0.25, "high": 1.0, "n": 4} for name, entry in MEASURES.items()}
    document = {"suite": suite, "title": "T", "measures": measures, "tasks": {}, "conditions": {"model": folder.name,
                "seed": 0, **conditions}}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(document))
    lines = [json.dumps({"task": "t", "key": key, "values": row}) for key, row in values.items()]
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def rows(right: list[int], start: int = 0) -> dict[str, dict[str, float]]:
    return {str(start + index): {"right": float(value), "odd": float(value)} for index, value in enumerate(right)}


def test_the_difference_is_paired():
    """The same eight gains among forty: apart they would drown in the spread of the values."""
    a = [0.0, 1.0] * 20
    b = [1.0] * 16 + [0.0, 1.0] * 12
    difference = paired_difference(a, b)
    assert difference.mean == pytest.approx(8 / 40) and difference.count == 40
    assert difference.low == pytest.approx(0.075, abs=0.03) and difference.high == pytest.approx(0.325, abs=0.03)
    assert paired_difference([1.0, 2.0], [1.5, 2.5]) == Estimate(0.5, 0.5, 0.5, 2)


def test_a_word_is_said_only_where_the_interval_excludes_zero():
    gain, loss, open_ = Estimate(0.2, 0.1, 0.3, 9), Estimate(-0.2, -0.3, -0.1, 9), Estimate(0.1, 0.0, 0.2, 9)
    assert [verdict(gain, better) for better in (True, False, None)] == ["better", "worse", "higher"]
    assert [verdict(loss, better) for better in (True, False, None)] == ["worse", "better", "lower"]
    assert [verdict(open_, better) for better in (True, False, None)] == ["no difference shown"] * 3


def test_only_shared_examples_count(tmp_path: Path):
    a = write(tmp_path / "a", rows([0, 0, 0, 0, 1, 1]))
    b = write(tmp_path / "b", rows([1, 1, 1, 1, 0], start=2))
    document = compare(read_recorded(a), read_recorded(b / "results.json"))
    assert document["measures"]["right"]["n"] == 4  # examples 2 to 5
    found = document["measures"]["right"]
    assert (found["a"], found["b"], found["difference"]) == (0.5, 1.0, 0.5)
    assert document["measures"]["odd"]["difference"] == 0.5
    assert document["not_paired"] == ["entropy"]
    assert document["a"] == f"a ({a})" and document["suite"] == "scenes"
    none, all_ = (read_recorded(write(tmp_path / name, rows([right] * 9))) for name, right in (("c", 0), ("d", 1)))
    clear = compare(none, all_)
    assert clear["measures"]["right"]["verdict"] == "better" and clear["measures"]["odd"]["verdict"] == "worse"
    table = comparison_table(clear).splitlines()
    assert table[2] == "| Right | 0.0% | 100.0% | +100.0 [+100.0, +100.0] | 9 | better |"


def test_an_example_that_now_asks_something_else_is_not_the_same(tmp_path: Path):
    a, b = (write(tmp_path / name, rows([right] * 3)) for name, right in (("a", 0), ("b", 1)))
    for folder, words in ((a, ["one", "two", "three"]), (b, ["one", "2", "three"])):
        file = folder / "examples.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [json.dumps({**record, "prompt": word}) for record, word in zip(records, words, strict=True)]
        file.write_text("\n".join(lines))
    assert compare(read_recorded(a), read_recorded(b))["measures"]["right"]["n"] == 2


def test_unlike_results_are_refused(tmp_path: Path):
    a = read_recorded(write(tmp_path / "a", rows([1, 0])))
    other = read_recorded(write(tmp_path / "b", rows([1, 0]), suite="emoji"))
    with pytest.raises(ValueError, match=r"is of suite scenes, .* of emoji"):
        compare(a, other)
    with pytest.raises(ValueError, match="have no example in common"):
        compare(a, read_recorded(write(tmp_path / "c", rows([1, 0], start=7))))
    with pytest.raises(ValueError, match=r"different examples: seed is 0 in .* and 3 in"):
        compare(a, read_recorded(write(tmp_path / "d", rows([1, 0]), seed=3)))


def test_folders_of_several_suites_are_compared_by_suite(tmp_path: Path):
    for model in ("a", "b"):
        for suite in ("scenes", "emoji"):
            write(tmp_path / model / suite, rows([1, 0]), suite=suite)
    write(tmp_path / "b" / "tokenizer", rows([1]), suite="tokenizer")
    pairs = pairs_of_results(tmp_path / "a", tmp_path / "b")
    assert [(one.document["suite"], two.document["suite"]) for one, two in pairs] == [("emoji",) * 2, ("scenes",) * 2]
    assert len(pairs_of_results(tmp_path / "a" / "emoji", tmp_path / "b" / "emoji")) == 1
    write(tmp_path / "c" / "tokenizer", rows([1]), suite="tokenizer")
    with pytest.raises(ValueError, match=r"no suite in common: .* has emoji, scenes, .* has tokenizer"):
        pairs_of_results(tmp_path / "a", tmp_path / "c")


def test_files_that_are_not_results_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no results\.json here; expected a folder that"):
        pairs_of_results(tmp_path, tmp_path)
    folder = write(tmp_path / "a", rows([1]))
    (folder / "examples.jsonl").write_text("{broken\n")
    with pytest.raises(ValueError, match="not results of `vargpt eval`, or broken"):
        read_recorded(folder)
    (folder / "examples.jsonl").unlink()
    with pytest.raises(ValueError, match=r"no examples\.jsonl here"):
        read_recorded(folder)


def test_tables_have_units_intervals_and_counts():
    entry = {"title": "PSNR", "unit": "dB", "mean": 20.126, "low": 19.0, "high": 21.0, "n": 3}
    table = results_table({"measures": {"psnr": entry}}).splitlines()
    assert table[2] == "| PSNR | 20.13 dB [19.00 dB, 21.00 dB] | 3 |"
    assert (number(0.1234, "percent"), number(0.1234, "number")) == ("12.3%", "0.123")
