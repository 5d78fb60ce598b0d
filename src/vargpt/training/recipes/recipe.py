"""Recipes: the YAML files that say how a model is made, stage by stage (schema in `vargpt.training.recipes.schema`).

Invariant: a recipe that parses is complete (every default is filled in, and the resolved form is written beside the
results), and a key that the schema does not know is refused with the nearest name that it does.

A recipe may extend another one (`extends: base.yaml`, beside it): mappings are merged, anything else replaces what is
there. `stages` is then the whole list in its order; an entry is the name of a stage of the base, or the changes to one
(`{name: sft, loop: {steps: 100}}`), or a new stage (with its `kind`).
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from vargpt.training.recipes.schema import STAGE_KINDS, Recipe


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe, applying overrides of the form `stages.0.loop.steps=100` (values are YAML).

    Raises:
        ValueError: for a file that is not there or not YAML, an unknown key, a wrong value or a bad override.
    """
    path = Path(path)
    data = _read(path, [])
    for override in overrides or []:
        _apply_override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{path}: {_explain(error)}") from error


def _read(path: Path, extended_by: list[Path]) -> dict[str, Any]:
    """A recipe's own words, put over those of the recipe that it extends."""
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot read this recipe ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a recipe is a mapping with `name` and `stages`, got {type(data).__name__}")
    if "extends" not in data:
        return data
    base = data.pop("extends")
    if not isinstance(base, str):
        raise ValueError(f"{path}: extends names the file of another recipe, got {base!r}")
    chain = [*extended_by, path.resolve()]
    if (path.parent / base).resolve() in chain:
        raise ValueError(f"{path}: extends {base}, which extends this recipe: take one of them out")
    return _extended(_read(path.parent / base, chain), data, path)


def _extended(base: dict[str, Any], changes: dict[str, Any], path: Path) -> dict[str, Any]:
    stages = changes.pop("stages", None)
    merged = _merged(base, changes)
    if stages is not None:
        known = {
            stage["name"]: stage for stage in base.get("stages") or [] if isinstance(stage, dict) and "name" in stage
        }
        if not isinstance(stages, list):
            raise ValueError(f"{path}: stages is a list of names of stages and of changes to them, got {stages!r}")
        merged["stages"] = [_extended_stage(known, stage, path) for stage in stages]
    return merged


def _extended_stage(known: dict[str, Any], stage: Any, path: Path) -> Any:
    name = stage.get("name") if isinstance(stage, dict) else stage
    if name in known:
        return _merged(known[name], stage) if isinstance(stage, dict) else known[name]
    if isinstance(stage, dict) and "kind" in stage:
        return stage
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none with a name'}"
    raise ValueError(f"{path}: the recipe that it extends has no stage {name!r}; {hint} (a new stage needs its kind)")


def _merged(old: Any, new: Any) -> Any:
    """`new` over `old`: key by key where both are mappings."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    os.replace(partial, path)


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"override {override!r}: expected KEY=VALUE such as stages.0.loop.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r}: the value is not YAML") from error
    target: Any = data
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(target, list):
            target = target[_list_index(target, part, override)]
        elif isinstance(target, dict):
            target = target.setdefault(part, {})
        else:
            raise ValueError(f"override {override!r}: {part!r} is not inside a mapping or a list")
    if isinstance(target, list):
        target[_list_index(target, last, override)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise ValueError(f"override {override!r}: {last!r} is not inside a mapping or a list")


def _list_index(items: list[Any], part: str, override: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise ValueError(f"override {override!r}: expected an index 0..{len(items) - 1}, got {part!r}")
    return int(part)


def _explain(error: ValidationError) -> str:
    """All that is wrong, each with its place as `--set` would write it."""
    messages = []
    for item in error.errors():
        place, section = _locate(item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(item["loc"][-1]), sorted(section.model_fields), n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(section.model_fields)}"
            messages.append(f"unknown key {place!r}; {hint}")
        elif item["type"] == "missing":
            messages.append(f"{place!r} is missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            got = "" if isinstance(item["input"], dict) else f", got {item['input']!r}"
            messages.append(f"{place}: {message}{got}"[:300] if place else message)
    return "; ".join(messages)


def _locate(loc: tuple[int | str, ...]) -> tuple[str, type[BaseModel]]:
    """A pydantic location as a dotted path, and the innermost section that it passes through."""
    section: type[BaseModel] = Recipe
    place: list[str] = []
    for part in loc:
        if part in STAGE_KINDS and place and place[-1].isdecimal():
            section = STAGE_KINDS[str(part)]  # the tag of the union, which is no part of the path
            continue
        place.append(str(part))
        field = section.model_fields.get(str(part))
        if field is not None:
            section = next((kind for kind in _named_types(field.annotation) if issubclass(kind, BaseModel)), section)
    return ".".join(place), section


def _named_types(annotation: Any) -> list[type]:
    """All classes inside an annotation such as `list[DataEntry]` or `LoraSection | None`."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _named_types(argument)]
