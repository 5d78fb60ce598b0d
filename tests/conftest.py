"""Shared test set-up: no network, one thread per worker, and the place of the recorded tensors.

Invariant: the environment is fixed before torch or transformers is imported.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest
import torch

REPO_ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("VARGPT_SHARED", REPO_ROOT.parent / "shared"))

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout."""
    return REPO_ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the specification's recordings; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"recordings not found at {SHARED}: set VARGPT_SHARED to their folder")
    return SHARED


@pytest.fixture(scope="session")
def goldens(shared: Path) -> Path:
    """The recorded tensors of the published code."""
    return shared / "goldens" / "dev"
