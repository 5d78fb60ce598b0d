"""The ablations: recipes and tables belong together, rows share what they have in common, intervals are right."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vargpt.training.planning.plan import Devices, make_plan
from vargpt.training.recipes.recipe import load_recipe


@pytest.fixture(scope="module")
def rows(repo_root: Path) -> ModuleType:
    """`benchmarks/ablation_rows.py`, with paths that do not depend on the current folder."""
    sys.path.insert(0, str(repo_root / "benchmarks"))
    module = importlib.import_module("ablation_rows")
    module.RECIPES = repo_root / "recipes" / "ablations"  # type: ignore[attr-defined]
    return module


@pytest.fixture(scope="module")
def report(rows: ModuleType) -> ModuleType:
    return importlib.import_module("ablation_report")


def test_every_recipe_is_a_row_and_every_table_has_a_place(rows: ModuleType, repo_root: Path):
    used = {row.recipe for ablation in rows.ABLATIONS for row in ablation.rows}
    assert used | {"base"} == {path.stem for path in rows.RECIPES.glob("*.yaml")}
    text = (repo_root / "docs" / "ablations.md").read_text()
    for ablation in rows.ABLATIONS:
        assert f"## {ablation.number}. {ablation.title}\n" in text
        assert text.count(f"<!-- table {ablation.number} -->\n") == 1


def test_rows_of_a_table_have_equal_compute(rows: ModuleType):
    operations = {}
    for path in rows.RECIPES.glob("*.yaml"):
        plan = make_plan(load_recipe(path), Devices(count=1))
        operations[path.stem] = sum(s.total_flops for s in plan.stages if not s.name.startswith("tokenizer"))
    for ablation in rows.ABLATIONS:
        spent = [operations[row.recipe] for row in ablation.rows]
        assert max(spent) / min(spent) < 1.05, (ablation.number, spent)


def test_what_rows_have_in_common_is_trained_once(rows: ModuleType):
    work = rows.plan_work([3, 7], 2)
    stages = [(node.stage, node.seed) for node in work.nodes.values()]
    for seed in (0, 1):
        mine = sorted(stage for stage, other in stages if other == seed)
        assert mine == ["dpo", "dpo", "pairs", "sft-first", "sft-second", "start"]
    ends = {tuple(result.rows): result.node for result in work.results.values() if result.seed == 1}
    assert len(ends) == 6  # the four of table 7 are drawn from one model
    assert len({ends[(name,)] for name in ("sft", "guidance-rows", "guidance-published")}) == 1
    for node in work.nodes.values():
        before = list(work.nodes)[: list(work.nodes).index(node.key)]
        assert {key for key in (node.parent, node.pairs) if key is not None} <= set(before)
        if node.stage == "dpo":
            assert work.nodes[node.pairs].stage == "pairs" and work.nodes[node.parent].stage == "sft-second"


def test_what_matters_most_comes_first_and_waits_for_what_it_needs(rows: ModuleType):
    work = rows.plan_work(list(rows.ORDER), 3)
    tasks = list(work.tasks)
    for number, (task, before) in enumerate(work.tasks.items()):
        assert set(before) <= set(tasks[:number]), task
    first = rows.plan_work([3], 3).tasks
    assert tasks[: len(first)] == list(first)  # all seeds of table 3 before anything else
    assert not [node for node in work.nodes.values() if node.stage == "sft-64"]  # table 2 has to be asked for
    assert [node.stage for node in rows.plan_work([2], 1).nodes.values()] == [
        "start",
        "sft-first",
        "sft-64",
        "sft-first",
    ]


def test_intervals_and_paired_differences(rows: ModuleType, report: ModuleType):
    constant = np.full((3, 50), 0.25)
    assert report.interval(constant) == (0.25, 0.25, 0.25)
    seeds = np.repeat([[0.0], [0.5], [1.0]], 40, axis=1)  # all that varies is the seed
    mean, low, high = report.interval(seeds)
    assert mean == 0.5 and low == 0.0 and high == 1.0
    half = np.tile([0.0, 1.0], (3, 200))  # all that varies is the example: 1.96 * 0.5 / sqrt(1200) = 0.028
    assert report.interval(half) == pytest.approx((0.5, 0.472, 0.528), abs=0.003)
    base = {"draw": {"facts": half.tolist(), "right": half.tolist()}, "ask": {"understanding": half.tolist()}}
    better = {**base, "draw": {"facts": (half + 0.1).tolist(), "right": half.tolist()}}
    made = report.table(rows.ABLATIONS[2], {"sft-dpo": base, "dpo-independent": better})
    lines = made.splitlines()
    assert lines[0] == "| row | recipe | facts drawn | all right | understanding |"
    assert "| 50.0 [4" in lines[2] and "<br>" not in lines[2]
    assert "<br>**+10.0 [+10.0, +10.0]** |" in lines[3] and "<br>+0.0 [+0.0, +0.0] |" in lines[3]
    assert "not run yet" in report.table(rows.ABLATIONS[2], {})
