"""Fixtures of the training tests: a data folder, a built model, and one uninterrupted run to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from training_helpers import recipe_with, write_data, write_recipe

from vargpt.data.folder import ImageFolder, read_folder
from vargpt.processing.processor import VargptProcessor
from vargpt.training.loop import trainer
from vargpt.training.run import train
from vargpt.training.weights.build import build_processor


@pytest.fixture(scope="session", autouse=True)
def _no_curves() -> Iterator[None]:
    """Drawing curves takes longer than these runs; `test_journal` draws them once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "plot_curves", lambda directory: None)
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures."""
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def folder(data: Path) -> ImageFolder:
    """The same, read."""
    return read_folder(data, 0.2)


@pytest.fixture(scope="session")
def processor(folder: ImageFolder) -> VargptProcessor:
    """The tiny recipe's processor."""
    texts = [record.text for record in folder.split_images("train")]
    return build_processor(recipe_with(), [*texts, *(edit.instruction for edit in folder.split_edits("train"))])


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe."""
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml")


@pytest.fixture(scope="session")
def uninterrupted(recipe_file: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of all stages in one go."""
    output = tmp_path_factory.mktemp("uninterrupted")
    train(recipe_file, data, output)
    return output
