"""`vargpt convert` and `vargpt verify`: weights in both layouts, and their proof."""

from __future__ import annotations

from pathlib import Path


def convert(source: str, destination: Path, to: str, max_shard_size: str) -> None:
    """Write a model in the other layout and print the folder."""
    from vargpt.checkpoint.convert import convert as run

    print(run(source, destination, to, max_shard_size))
