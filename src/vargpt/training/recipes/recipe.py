"""Recipes: the YAML files that say how a model is made, stage by stage (schema in `vargpt.training.recipes.schema`).

Invariant: a recipe that parses is complete (every default is filled in, and the resolved form is written beside the
results), and a key that the schema does not know is refused with the nearest name that it does.
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
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot read this recipe ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a recipe is a mapping with `name` and `stages`, got {type(data).__name__}")
    for override in overrides or []:
        _apply_override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{path}: {_explain(error)}") from error


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
