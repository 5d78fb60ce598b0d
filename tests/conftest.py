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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained model of a few thousand weights with the bundled model's anatomy: 64x64 px, 3 scales."""
    from vargpt.data.folder import ImageFolder, read_folder
    from vargpt.training.recipes.schema import Recipe
    from vargpt.training.weights.build import build_model, build_processor

    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "schedule": {"num_scales": 3},
            "text_tokenizer": {"vocab_size": 300},
            "model": {
                "image_tokenizer": {"bits": 8, "base_channels": 32, "channel_multipliers": [1, 1], "num_res_blocks": 1,
                                    "patch_size": 8},
                "vision": {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8, "image_side": 32},
                "backbone": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                             "num_attention_heads": 2, "num_key_value_heads": 1, "mrope_section": [2, 3, 3]},
                "decoder": {"hidden_size": 64, "num_heads": 2, "depth": 1},
            },
            "stages": [{"kind": "sft", "loop": {"steps": 1, "batch_size": 1, "learning_rate": 0.001},
                        "data": [{"task": "draw"}]}],
        }
    )  # fmt: skip
    folder: ImageFolder = read_folder(REPO_ROOT / "examples")
    processor = build_processor(recipe, [record.text for record in folder.split_images("train")])
    destination = tmp_path_factory.mktemp("tiny") / "tiny-model"
    build_model(recipe, processor).save_pretrained(destination)
    processor.save_pretrained(destination)
    return destination
