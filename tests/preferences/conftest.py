"""A small model in memory for the tests of preference pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

from vargpt.inference.pipeline import VargptPipeline


@pytest.fixture(scope="session")
def pipeline(tiny_model: Path) -> VargptPipeline:
    """The untrained model with the bundled one's anatomy: 64x64 pixels, 21 tokens of 8 bits."""
    return VargptPipeline.from_pretrained(tiny_model, device="cpu")
