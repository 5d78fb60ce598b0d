"""Which rows the tables of docs/ablations.md have, and what has to be trained for them.

Invariant: a node is one stage of one recipe with one seed after the same stages before it; its key is a hash of all
that decides its weights, so what rows have in common is trained once. All start from the same image tokenizer.

    recipe + seed ── chain of nodes: start ─► sft-32 ─► sft-64 ─► pairs-64 ─► dpo-64 ── result: parts that are measured
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vargpt.training.recipes.recipe import load_recipe
from vargpt.training.recipes.schema import PairsStage, Recipe, Stage

RECIPES = Path("recipes/ablations")
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
    """A table: rows are compared with the first one. `also` are parts beside drawings and answers."""

    number: int
    title: str
    rows: tuple[Row, ...]
    also: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """What is measured of every row."""
        return (DRAW, ASK, *self.also)


_RISING, _SFT_DPO = "rising", "sft-dpo"
ABLATIONS = (
    Ablation(1, "Supervised only, then preferences, or in turns", (
        Row("SFT only (32 px, 64 px, more 64 px)", "sft-only"),
        Row("SFT → DPO at 64 px", _SFT_DPO),
        Row("SFT ⇄ DPO at 32 px and 64 px", "iterative"),
    )),
    Ablation(2, "Low resolution only, or rising", (
        Row("rising, 32 px then 64 px", _RISING),
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
        Row("1/√tokens per scale", _RISING),
        Row("none (published)", "loss-unweighted"),
    )),
    Ablation(6, "What is dropped in training for guidance", (
        Row("prompt, context and start vector", _RISING),
        Row("start vector only", "drop-start"),
        Row("start vector only, drawn with the published guidance", "drop-start-published"),
    ), (PLAIN,)),
    Ablation(7, "The other branch of guidance", (
        Row("history, its hidden states as context", _RISING),
        Row("history, learned rows as context", "guidance-rows"),
        Row("no history, its hidden states as context", "guidance-no-history"),
        Row("neither (published)", "guidance-published"),
    ), (PLAIN,)),
    Ablation(8, "Editing data", (
        Row("none", "sft-only"),
        Row("half of the last stage", "edit"),
    ), (EDIT,)),
    Ablation(9, "Who judges the pairs", (
        Row("the checker", _SFT_DPO),
        Row("the model itself", "self-judged"),
        Row("nobody (SFT only)", "sft-only"),
    )),
)  # fmt: skip


@dataclass(frozen=True)
class Node:
    """A stage to train.

    Attributes:
        recipe: resolved, with this stage alone; None for the start, which has the random weights of a seed.
        parent: key of the node whose model it starts from; the start has none.
        pairs: key of the node that made its pairs, for DPO.
        work: relative cost, to plan with.
    """

    key: str
    seed: int
    stage: str
    recipe: Recipe
    parent: str | None
    pairs: str | None
    work: float


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
    """All nodes and results by key, each after what it needs."""

    nodes: dict[str, Node] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)


def plan_work(numbers: list[int], seeds: int, scale: float = 1.0) -> Work:
    """Work out what the tables with these numbers need.

    Args:
        seeds: how many, from 0 on.
        scale: multiplies steps and prompts.
    """
    work = Work()
    for seed in range(seeds):
        for ablation in (ablation for ablation in ABLATIONS if ablation.number in numbers):
            for row in ablation.rows:
                recipe = row_recipe(row.recipe, seed, scale)
                node = _chain(work, recipe)
                key = _hash({"node": node, "behaviour": recipe.model.behaviour})
                result = work.results.setdefault(key, Result(key, seed, node, recipe))
                result.rows += [row.recipe] if row.recipe not in result.rows else []
                result.parts += [part for part in ablation.parts if part not in result.parts]
    return work


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
    work.nodes.setdefault(start, Node(start, recipe.seed, "start", recipe, None, None, 1.0))
    model, pairs, key = start, {}, start
    for number, stage in enumerate(recipe.stages):
        stages = [other.model_dump(mode="json") for other in recipe.stages[: number + 1]]
        key = _hash({"common": common, "stages": stages})
        alone = recipe.model_copy(deep=True, update={"stages": [stage.model_copy(deep=True)]})
        alone.model.behaviour = common["model"]["behaviour"]
        made_by = pairs.get(stage.pairs) if stage.kind == "dpo" else None
        work.nodes.setdefault(key, Node(key, recipe.seed, stage.name, alone, model, made_by, _cost(stage)))
        if isinstance(stage, PairsStage):
            pairs[stage.name] = key
        else:
            model = key
    return model


def _cost(stage: Stage) -> float:
    """About how many samples of supervised training take as long."""
    if isinstance(stage, PairsStage):
        return 6.0 * stage.num_prompts * stage.num_samples
    return stage.loop.steps * stage.loop.batch_size * (3.0 if stage.kind == "dpo" else 1.0)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
