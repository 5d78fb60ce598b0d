"""References of preference training: shared weights of a copy, numbers on disk that resume and refuse strangers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preference_helpers import tiny_pairs, tiny_policy, tiny_processor, tiny_stage

from vargpt.model import VargptForConditionalGeneration
from vargpt.processing.processor import VargptProcessor
from vargpt.training.loop.trainer import Trainer
from vargpt.training.stages import reference as references
from vargpt.training.stages.preference_stage import PreferenceTask
from vargpt.training.stages.reference import CopyReference, PrecomputedReference, frozen_copy, make_reference


@pytest.fixture(scope="module")
def processor() -> VargptProcessor:
    return tiny_processor()


def task_in(
    directory: Path, model: VargptForConditionalGeneration, processor: VargptProcessor, **changes: Any
) -> PreferenceTask:
    stage = tiny_stage(**{"reference": "precomputed", **changes})
    reference = make_reference(stage, model, directory)
    return PreferenceTask(model, processor, tiny_pairs(20), stage, 0, reference, validation_fraction=0.2)


def test_a_copy_shares_what_is_frozen_and_owns_what_is_trained(processor) -> None:
    model = tiny_policy(processor)
    copied = dict(frozen_copy(model).named_parameters())
    for name, parameter in model.named_parameters():
        assert (copied[name].data_ptr() == parameter.data_ptr()) == (not parameter.requires_grad), name
        assert torch.equal(copied[name], parameter) and not copied[name].requires_grad
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_a_twin_takes_the_place_of_the_copy(processor, tmp_path) -> None:
    """Sharded models cannot be copied: their twin is made by the caller, and frozen here."""
    model, twin = tiny_policy(processor), tiny_policy(processor)
    reference = make_reference(tiny_stage(), model, tmp_path, twin)
    assert isinstance(reference, CopyReference) and reference.model is twin and not twin.training
    assert not any(parameter.requires_grad for parameter in twin.parameters())


def test_precomputed_training_equals_training_with_a_copy(processor, tmp_path, monkeypatch) -> None:
    """Same journal and same weights, bitwise: every position's numbers, validation included, over two files."""
    monkeypatch.setattr(references, "_PIECE_POSITIONS", 8)
    results = []
    for kind in ("copy", "precomputed"):
        model = tiny_policy(processor)
        stage = tiny_stage(reference=kind, loop={"evaluate_every": 2, "precision": "bf16"})
        directory = tmp_path / kind
        reference = make_reference(stage, model, directory)
        task = PreferenceTask(model, processor, tiny_pairs(20), stage, 0, reference, validation_fraction=0.2)
        task.prepare()
        Trainer("dpo", task, stage.loop.settings(0), directory).run()
        results.append((model.state_dict(), (directory / "journal.jsonl").read_text()))
    assert results[0][1] == results[1][1] and "validation/rewards/margins" in results[0][1]
    assert all(torch.equal(value, results[1][0][name]) for name, value in results[0][0].items())
    names = sorted(path.name for path in (tmp_path / "precomputed" / "reference").iterdir())
    assert names == ["steps-00000000.npy", "steps-00000002.npy", "validation.npy"]


def test_a_killed_computation_goes_on_and_is_not_repeated(processor, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(references, "_PIECE_POSITIONS", 4)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    task_in(whole, tiny_policy(processor), processor).prepare()

    killed = task_in(broken, tiny_policy(processor), processor)
    batch = killed.batch

    def until_two(step: int) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return batch(step)

    monkeypatch.setattr(killed, "batch", until_two)
    with pytest.raises(KeyboardInterrupt):
        killed.prepare()
    done = sorted((broken / "reference").glob("steps-*.npy"))
    assert [path.name for path in done] == ["steps-00000000.npy", "steps-00000001.npy"]
    stamps = [path.stat().st_mtime_ns for path in done]

    task_in(broken, tiny_policy(processor), processor).prepare()
    assert [path.stat().st_mtime_ns for path in done] == stamps
    for path in (whole / "reference").iterdir():
        assert (broken / "reference" / path.name).read_bytes() == path.read_bytes()
    values = np.load(whole / "reference" / "steps-00000003.npy")
    assert values.shape == (4, 2, 13) and values.dtype == np.float64 and not np.isnan(values[:, :, :3]).any()


def test_numbers_of_another_model_are_refused(processor, tmp_path) -> None:
    task_in(tmp_path, tiny_policy(processor), processor).prepare()
    task_in(tmp_path, tiny_policy(processor), processor).prepare()
    with pytest.raises(RuntimeError, match="log-probabilities of another model"):
        task_in(tmp_path, tiny_policy(processor, seed=1), processor).prepare()
    with pytest.raises(RuntimeError, match="log-probabilities of another model"):
        task_in(tmp_path, tiny_policy(processor), processor, flip_strength=0.9).prepare()


def test_a_cut_file_is_named(processor, tmp_path) -> None:
    task_in(tmp_path, tiny_policy(processor), processor).prepare()
    path = tmp_path / "reference" / "steps-00000000.npy"
    path.write_bytes(path.read_bytes()[:200])
    task = task_in(tmp_path, tiny_policy(processor), processor)
    with pytest.raises(RuntimeError, match=r"steps-00000000\.npy: .* delete this file and run the same command"):
        task.prepare()


def test_the_order_of_positions_in_a_micro_batch_does_not_matter(processor, tmp_path) -> None:
    """Micro-batches are sorted by length; each row must get the number of its own position."""
    model = tiny_policy(processor)
    task = task_in(tmp_path, model, processor, loop={"batch_size": 12, "steps": 1})
    task.prepare()
    copied, stored = CopyReference(frozen_copy(model)), PrecomputedReference(tmp_path, task._stage)
    (micro,) = task.batch(0)
    assert list(micro.positions) != sorted(micro.positions)
    assert torch.equal(copied.scale_logps(micro), stored.scale_logps(micro))
