"""Imports point one way: a module may use only layers above its own in `LAYERS`, or its own package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

LAYERS = (
    "scales",
    "configuration",
    "sampling",
    "losses",
    "inputs",
    "image_tokenizer",
    "processing",
    "checkpoint",  # names, shapes and files of weights; knows no modules
    "model",
    "data",
    "inference",
    "preferences",
    "training",
    "verification",
    "evaluation",
    "serving",
)
"""Foundations first; each layer sees the ones before it."""

SEES_ALL = ("cli", "__main__", "commands", "demo")
"""Entry points, which nothing else may import."""

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "vargpt"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer_of(path: Path, package: Path) -> str:
    """First component of a module's name below `vargpt`."""
    return path.relative_to(package).with_suffix("").parts[0]


def imported_layers(source: str, path: Path, package: Path) -> set[str]:
    """Names of the layers of `vargpt` that a source file imports, at the top or inside functions."""
    found = set()
    here = ("vargpt", *path.relative_to(package).parent.parts)
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names = [f"vargpt.{alias.name}" for alias in node.names] if module == "vargpt" else [module]
        found |= {name.split(".")[1] for name in names if name.startswith("vargpt.")}
    return found


def violations(source: str, path: Path, package: Path) -> list[str]:
    """Imports that point the wrong way, as readable lines."""
    own = layer_of(path, package)
    if own in SEES_ALL:
        return []
    if own not in LAYERS:
        return [f"{path.name}: layer {own!r} is not in LAYERS; place it there"]
    allowed = {own, *LAYERS[: LAYERS.index(own)]}
    wrong = {name for name in imported_layers(source, path, package) - allowed if name in LAYERS or name in SEES_ALL}
    return [f"{path.relative_to(package)} imports vargpt.{name}, which is below it" for name in sorted(wrong)]


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_imports_point_upward(path: Path) -> None:
    assert violations(path.read_text(), path, PACKAGE) == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("scales.py", "from vargpt.losses import text_loss"),
        ("model/decoder.py", "def f():\n    import vargpt.training.run"),
        ("data/schema.py", "from vargpt import cli"),
        ("data/schema.py", "from ..inference import pipeline"),
        ("novel.py", "import torch"),
    ],
)
def test_a_wrong_import_is_seen(module: str, source: str) -> None:
    assert violations(source, PACKAGE / module, PACKAGE)


def test_a_right_import_passes() -> None:
    source = "import torch\nfrom vargpt.scales import ScaleSchedule\nfrom .blocks import Block"
    assert violations(source, PACKAGE / "model" / "decoder.py", PACKAGE) == []
