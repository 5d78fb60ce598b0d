"""What stages take from their sources for validation."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_helpers import write_recipe

from vargpt.data.scenes.source import SceneTask
from vargpt.data.sources.scenes import ScenesSource
from vargpt.processing.conversation import Conversation, user
from vargpt.training.recipes.recipe import load_recipe
from vargpt.training.recipes.schema import DataEntry
from vargpt.training.stage_data import VALIDATION_EXAMPLES, StageData


def test_scenes_to_validate_on_are_made_once_and_for_the_tasks_of_their_own_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def validation(source: ScenesSource, task: SceneTask, index: int) -> Conversation:
        asked.append((source.name, task))
        return Conversation(messages=(user("?"),))

    monkeypatch.setattr(ScenesSource, "validation", validation)
    overrides = ["sources.one={format: scenes, kinds: [single]}", "sources.any={format: scenes}"]
    data = StageData(load_recipe(write_recipe(tmp_path / "tiny.yaml"), overrides), tmp_path)
    entries = [DataEntry(source="one", task="draw"), DataEntry(source="any", task="question")]
    first = data.validation(entries)
    again = data.validation(entries)
    assert {task: len(scenes) for task, scenes in first.items() if scenes} == dict.fromkeys(
        ("draw", "question"), VALIDATION_EXAMPLES
    )
    assert set(asked) == {("one", "draw"), ("any", "question")}
    assert len(asked) == 2 * VALIDATION_EXAMPLES and again == first
