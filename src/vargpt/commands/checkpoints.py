"""`vargpt convert`, `blend` and `verify`: weights in both layouts, between two models, and their proof."""

from __future__ import annotations

from pathlib import Path


def convert(source: str, destination: Path, to: str, max_shard_size: str) -> None:
    """Write a model in the other layout and print the folder."""
    from vargpt.checkpoint.convert import convert as run

    print(run(source, destination, to, max_shard_size))


def blend(first: str, second: str, destination: Path, share: float) -> None:
    """Write a model between two and print the folder."""
    from vargpt.checkpoint.blend import blend as run

    print(run(first, second, destination, share))


def verify(goldens: Path) -> int:
    """Print the comparison with a goldens folder; 0 when every tensor agrees, else 1."""
    if not goldens.is_dir():
        raise ValueError(f"{goldens}: no such folder")
    from vargpt.verification.report import run

    return run(goldens)
