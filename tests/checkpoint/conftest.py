"""Fixtures: a small model's configuration and its published folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_helpers import official_tensors, small_config, write_official

from vargpt.configuration import VargptConfig


@pytest.fixture
def config() -> VargptConfig:
    return small_config()


@pytest.fixture
def official_folder(tmp_path: Path, config: VargptConfig) -> Path:
    return write_official(tmp_path / "official", config, official_tensors(config))
