"""`vargpt verify`: the recording passes through the public code, other recordings work, and breaks are seen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from mutations import MUTATIONS, SOURCES, Mutation, try_mutation
from own_recording import Sizes, write_recording
from safetensors.torch import load_file, save_file

from vargpt.verification.compare import Report
from vargpt.verification.goldens import Goldens
from vargpt.verification.report import fold_norms, run, verify


def partial_goldens(goldens: Path, folder: Path, *scenarios: str) -> Path:
    """A goldens folder that holds only some scenarios."""
    folder.mkdir()
    for name in ("config.json", "weights.safetensors", *(f"{scenario}.safetensors" for scenario in scenarios)):
        shutil.copy(goldens / name, folder / name)
    return folder


def test_every_recorded_tensor_agrees(goldens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(goldens) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["passed"] is True
    assert summary["num_failed"] == 0
    assert summary["not_compared"] == []
    assert set(summary["scenarios"]) == {
        "settings",
        *(
            path.stem
            for path in goldens.glob("*.safetensors")
            if path.stem not in ("weights", "dpo_reference_override")
        ),
    }
    assert summary["worst_share_of_tolerance"] < 0.5


def test_missing_scenarios_are_no_failure(goldens: Path, tmp_path: Path) -> None:
    rows = verify(partial_goldens(goldens, tmp_path / "part", "sampler", "tokenizer"))
    assert {row.scenario for row in rows} == {"settings", "sampler", "tokenizer"}
    assert all(row.passed for row in rows)


def test_one_wrong_bit_fails_and_is_named(goldens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = partial_goldens(goldens, tmp_path / "part", "tokenizer")
    tensors = load_file(folder / "tokenizer.safetensors")
    tensors["clean.bits_3"][0, 5, 7] ^= 1
    save_file(tensors, folder / "tokenizer.safetensors")
    assert run(folder) == 1
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["failed"] == ["tokenizer/clean.bits_3"]
    assert "1 of 1152 differ" in " ".join(out.split())


def test_an_unknown_scenario_is_reported_as_failed(goldens: Path, tmp_path: Path) -> None:
    folder = partial_goldens(goldens, tmp_path / "part")
    save_file({"x": torch.zeros(1)}, folder / "telepathy.safetensors")
    failed = [row for row in verify(folder) if not row.passed]
    assert [row.scenario for row in failed] == ["telepathy"]
    assert "unknown scenario" in failed[0].note


def test_text_only_understanding(goldens: Path, tmp_path: Path) -> None:
    """A recording whose prompts hold no image: made from our own model, so only the path is tested."""
    folder = partial_goldens(goldens, tmp_path / "part")
    model = Goldens(folder).load()
    ids = torch.tensor([[492, 30, 31, 32, 493, 30]])
    positions = torch.arange(6).expand(3, 1, 6).contiguous()
    from vargpt.inputs import ModelInputs

    with torch.no_grad():
        logits = model(ModelInputs(ids, torch.ones_like(ids).bool(), positions)).text_logits_BTV
    recorded = {
        "single.input_ids": ids,
        "single.attention_mask": torch.ones_like(ids),
        "single.position_ids": positions,
        "single.rope_deltas": torch.zeros(1, 1, dtype=torch.int64),
        "single.logits": logits,
    }
    save_file(recorded, folder / "understand.safetensors")
    rows = verify(folder)
    assert all(row.passed for row in rows)
    assert {row.tensor for row in rows if row.scenario == "understand"} == set(recorded) - {
        "single.input_ids",
        "single.attention_mask",
    }


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_folder_that_is_no_recording(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="is no goldens"):
        verify(tmp_path)


def test_comparison_rules() -> None:
    report = Report("case")
    report.close("nan", torch.tensor([float("nan")]), torch.tensor([1.0]), 1e-3)
    report.close("near", torch.tensor([1.00001]), torch.tensor([1.0]), 1e-4)
    report.close("shape", torch.zeros(2), torch.zeros(3), 1.0)
    report.exact("same", torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.uint8))
    report.exact("other", torch.tensor([1, 3]), torch.tensor([1, 2]))
    report.image_bytes("edge", torch.tensor([5] + [6] * 99), torch.tensor([6] * 100))
    report.image_bytes("rounded", torch.tensor([5] * 50 + [6] * 50), torch.tensor([6] * 100))
    assert [row.passed for row in report.rows] == [False, True, False, True, False, True, False]


def test_agreeing_norms_are_folded_into_one_line() -> None:
    report = Report("train")
    for name, off in (("a", 0.0), ("b", 1e-5), ("c", 1.0)):
        report.close(f"grad_norm.{name}", torch.tensor(1.0 + off), torch.tensor(1.0), 0.0, 1e-4)
    shown = fold_norms(report.rows)
    assert [row.tensor for row in shown] == ["grad_norm.c", "grad_norm.b"]
    assert shown[1].note == "worst of 2 gradient norms"


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(),
        Sizes(template=1.333, num_scales=5, bits=9, width=128, heads=8, depth=2, chunks=1, text_width=96),
        Sizes(template=0.333, num_scales=3, bits=17, multipliers=(1, 2, 2, 3, 4)),
    ],
    ids=["0.75", "1.333", "0.333"],
)
def test_recordings_of_other_sizes_ids_and_aspects(tmp_path: Path, sizes: Sizes) -> None:
    rows = verify(write_recording(tmp_path / "own", sizes))
    assert [f"{row.scenario}/{row.tensor}" for row in rows if not row.passed] == []
    assert {row.scenario for row in rows} == {"settings", "tokenizer", "train", "gen_t2i", "gen_edit"}


def test_every_mutation_still_fits_the_sources() -> None:
    for mutation in MUTATIONS:
        source = (SOURCES / "vargpt" / mutation.file).read_text(encoding="utf-8")
        assert source.count(mutation.old) == 1, mutation


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=[f"{m.section} {m.what}" for m in MUTATIONS])
def test_a_broken_constant_is_noticed(goldens: Path, mutation: Mutation) -> None:
    assert try_mutation(mutation, goldens).failed


def test_a_scenario_that_stops_does_not_hide_the_others(goldens: Path, tmp_path: Path) -> None:
    folder = partial_goldens(goldens, tmp_path / "part", "sampler", "train_edit")
    tensors = load_file(folder / "train_edit.safetensors")
    tensors["input_ids"][0, 40] = 5  # one slot less than the schedule needs
    save_file(tensors, folder / "train_edit.safetensors")
    failed = [row for row in verify(folder) if not row.passed]
    assert [(row.scenario, row.tensor) for row in failed] == [("train_edit", "(stopped)")]
    assert "<|image_gen_pad|>" in failed[0].note
    assert any(row.scenario == "sampler" for row in verify(folder))
