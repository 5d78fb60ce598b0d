"""`vargpt train`: run a recipe on a folder of pictures, or go on with it."""

from __future__ import annotations

from pathlib import Path


def train(recipe: Path, data: Path, output: Path, overrides: list[str]) -> None:
    """Train all stages of a recipe; the folder of the finished model is printed on stdout."""
    if not recipe.is_file():
        raise ValueError(f"{recipe}: no such recipe; the bundled one is recipes/emoji-small.yaml")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file, expected a folder for checkpoints")
    from vargpt.training.run import train as run

    print(run(recipe, data, output, overrides))
