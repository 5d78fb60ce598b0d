"""Which rows the tables of docs/ablations.md have, and what has to be trained for them.

Invariant: a node is one stage of one recipe with one seed after the same stages before it; its key is a hash of all
that decides its weights, so what rows have in common is trained once. All start from the same image tokenizer.

    recipe + seed ── chain of nodes: start ─► sft-first ─► sft-second ─► pairs ─► dpo ── result: parts that are measured
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vargpt.training.recipes.recipe import load_recipe
from vargpt.training.recipes.schema import PairsStage, Recipe

RECIPES = Path("recipes/ablations")
TOKENIZER = "tokenizer"
"""Folder of the image tokenizer that all rows share, made by the first stages of base.yaml."""

AT_SAMPLING = ("guidance_backbone", "guidance_context")
"""Behaviour switches that training does not look at: rows that differ in them alone share their weights."""

DRAW, ASK, EDIT, PLAIN = "draw", "ask", "edit", "plain"
"""Parts of a measurement: drawings with guidance, answers, edits, drawings without guidance."""


@dataclass(frozen=True)
class Row:
    """A line of a table: what it is called and the recipe in `recipes/ablations`."""

    label: str
    recipe: str


@dataclass(frozen=True)
class Ablation:
    """A table: rows are compared with the first one; `parts` is what is measured of every row."""

    number: int
    title: str
    rows: tuple[Row, ...]
    parts: tuple[str, ...] = (DRAW, ASK)


_SFT, _SFT_DPO = "sft", "sft-dpo"
ABLATIONS = (
    Ablation(1, "Supervised only, then preferences, or in turns", (
        Row("SFT only", "sft-only"),
        Row("SFT → DPO", _SFT_DPO),
        Row("SFT ⇄ DPO in turns", "iterative"),
    )),
    Ablation(2, "Low resolution only, or rising", (
        Row("rising, 32 px then 64 px", "rising"),
        Row("32 px only (measured at 32 px)", "low-only"),
    )),
    Ablation(3, "Bit errors of policy and reference in DPO", (
        Row("shared", _SFT_DPO),
        Row("independent (published)", "dpo-independent"),
    )),
    Ablation(4, "Log-probabilities in DPO", (
        Row("means per scale, beta 2", _SFT_DPO),
        Row("sum, equal pull per bit", "dpo-sum"),
        Row("sum, beta 0.1 (published)", "dpo-sum-published"),
    )),
    Ablation(5, "Weights of the image loss", (
        Row("1/√tokens per scale", _SFT),
        Row("none (published)", "loss-unweighted"),
    )),
    Ablation(6, "What is dropped in training for guidance", (
        Row("prompt, context and start vector", _SFT),
        Row("start vector only", "drop-start"),
        Row("start vector only, drawn with the published guidance", "drop-start-published"),
    ), (DRAW, ASK, PLAIN)),
    Ablation(7, "The other branch of guidance", (
        Row("history, its hidden states as context", _SFT),
        Row("history, learned rows as context", "guidance-rows"),
        Row("no history, its hidden states as context", "guidance-no-history"),
        Row("neither (published)", "guidance-published"),
    ), (DRAW,)),
    Ablation(8, "Editing data", (
        Row("none", "sft-only"),
        Row("half of the last stage", "edit"),
    ), (DRAW, ASK, EDIT)),
    Ablation(9, "Who judges the pairs", (
        Row("the checker", _SFT_DPO),
        Row("the model itself", "self-judged"),
        Row("nobody (SFT only)", "sft-only"),
    )),
)  # fmt: skip
ORDER = (3, 4, 1, 7, 9, 8, 5, 6)
"""Tables from the most important on; what is cut off by a limit is the last. Table 2 needs more compute than all of
them and has to be asked for."""


@dataclass(frozen=True)
class Node:
    """A stage to train.

    Attributes:
        recipe: resolved, with this stage alone; None for the start, which has the random weights of a seed.
        parent: key of the node whose model it starts from; the start has none.
        pairs: key of the node that made its pairs, for DPO.
    """

    key: str
    seed: int
    stage: str
    recipe: Recipe
    parent: str | None
    pairs: str | None


@dataclass
class Result:
    """What is measured of a row with one seed: `node` has the model, `recipe` the settings, `rows` its names."""

    key: str
    seed: int
    node: str
    recipe: Recipe
    rows: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)


@dataclass
class Work:
    """All nodes and results by key, and all tasks in the order of their importance, each after what it needs.

    Attributes:
        tasks: the tasks that each waits for: `train KEY`, `answer KEY PART`, `judge KEY PART`.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    tasks: dict[str, list[str]] = field(default_factory=dict)


def plan_work(numbers: list[int], seeds: int, scale: float = 1.0) -> Work:
    """Work out what the tables with these numbers need.

    Args:
        seeds: how many, from 0 on.
        scale: multiplies steps and prompts.
    """
    work = Work(tasks={f"train {TOKENIZER}": []})
    for ablation in sorted((a for a in ABLATIONS if a.number in numbers), key=_importance):
        for seed in range(seeds):
            for row in ablation.rows:
                recipe = row_recipe(row.recipe, seed, scale)
                node = _chain(work, recipe)
                key = _hash({"node": node, "behaviour": recipe.model.behaviour})
                result = work.results.setdefault(key, Result(key, seed, node, recipe))
                result.rows += [row.recipe] if row.recipe not in result.rows else []
                result.parts += [part for part in ablation.parts if part not in result.parts]
                for part in ablation.parts:
                    work.tasks[f"answer {key} {part}"] = [f"train {node}"]
                    work.tasks[f"judge {key} {part}"] = [f"answer {key} {part}"]
    return work


def _importance(ablation: Ablation) -> int:
    return ORDER.index(ablation.number) if ablation.number in ORDER else len(ORDER)


def row_recipe(name: str, seed: int, scale: float = 1.0) -> Recipe:
    """A row's recipe with a seed, without the stages of the image tokenizer, and with scaled budgets."""
    recipe = load_recipe(RECIPES / f"{name}.yaml", [f"seed={seed}"])
    recipe.stages = [stage for stage in recipe.stages if stage.kind != "tokenizer"]
    for stage in recipe.stages:
        if isinstance(stage, PairsStage):
            stage.num_prompts = max(8, round(scale * stage.num_prompts))
        else:
            stage.loop.steps = max(2, round(scale * stage.loop.steps))
    return recipe


def _chain(work: Work, recipe: Recipe) -> str:
    """Add the nodes of a recipe that are not there yet and return the last one's key."""
    common = recipe.model_dump(mode="json", exclude={"name", "description", "stages"})
    common["model"]["behaviour"] = {
        name: value for name, value in common["model"]["behaviour"].items() if name not in AT_SAMPLING
    }
    start = _hash({"start": recipe.seed, "model": recipe.model.model_dump(mode="json", exclude={"behaviour"})})
    _add(work, Node(start, recipe.seed, "start", recipe, None, None))
    model, pairs, key = start, {}, start
    for number, stage in enumerate(recipe.stages):
        stages = [other.model_dump(mode="json") for other in recipe.stages[: number + 1]]
        key = _hash({"common": common, "stages": stages})
        alone = recipe.model_copy(deep=True, update={"stages": [stage.model_copy(deep=True)]})
        alone.model.behaviour = common["model"]["behaviour"]
        made_by = pairs.get(stage.pairs) if stage.kind == "dpo" else None
        _add(work, Node(key, recipe.seed, stage.name, alone, model, made_by))
        if isinstance(stage, PairsStage):
            pairs[stage.name] = key
        else:
            model = key
    return model


def _add(work: Work, node: Node) -> None:
    before = [f"train {key}" for key in (node.parent, node.pairs) if key is not None]
    work.nodes.setdefault(node.key, node)
    work.tasks.setdefault(f"train {node.key}", before or [f"train {TOKENIZER}"])


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
