"""Benchmark runs that are killed, split or repeated end in the same pictures; other settings are refused by name."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_helpers import dpg_folder, geneval_file, hashes, lines_of, run_bench, write_lines
from PIL import Image

from vargpt.inference import pictures
from vargpt.inference.pipeline import VargptPipeline


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return geneval_file(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def reference(tiny_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("reference") / "out"
    assert run_bench(tiny_model, "geneval", prompts, out) == 0
    return out


def killed_at_write(number: int, work: Callable[[], Any]) -> int:
    """Run in a forked process that kills itself just before a written file gets its name; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            replace, count = os.replace, 0

            def counted(source: Any, target: Any) -> None:
                nonlocal count
                count += 1
                if count == number:
                    os.truncate(source, os.path.getsize(source) // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(source, target)

            pictures.os.replace = counted  # type: ignore[assignment]
            work()
        finally:
            os._exit(1)  # not reached by a child that is killed
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("write", [1, 2, 4, 6, 12])
def test_killed_while_writing(write: int, tiny_model: Path, prompts: Path, reference: Path, tmp_path: Path):
    """Run and prompts (1, 2), a prompt's line (4), a sample (6), a grid (12): no half file, and none is drawn twice."""
    out = tmp_path / "out"
    status = killed_at_write(write, lambda: run_bench(tiny_model, "geneval", prompts, out, batch_size=3))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    for path in before:
        with Image.open(path) as picture:
            picture.load()
    assert run_bench(tiny_model, "geneval", prompts, out, batch_size=3) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert hashes(out) == hashes(reference)
    assert json.loads((out / "run.json").read_text())["finished"] is not None


def test_shards_and_batches_change_nothing(tiny_model: Path, prompts: Path, reference: Path, tmp_path: Path):
    out = tmp_path / "out"
    for shard, batch_size in (("2/2", 1), ("1/2", 5)):
        assert json.loads((out / "run.json").read_text())["finished"] is None if out.exists() else True
        assert run_bench(tiny_model, "geneval", prompts, out, shard=shard, batch_size=batch_size) == 0
    assert hashes(out) == hashes(reference)
    ends = [line for line in lines_of(out / "sessions.jsonl") if line["event"] == "end"]
    assert [(line["shard"], line["pictures"], line["missing"]) for line in ends] == [("2/2", 4, 8), ("1/2", 8, 0)]


def test_a_seed_is_of_prompt_and_sample(tiny_model: Path, prompts: Path, reference: Path, tmp_path: Path):
    seeds = [seed for line in lines_of(reference / "prompts.jsonl") for seed in line["seeds"]]
    assert seeds[0] == 2802046128130290202 and len(set(seeds)) == 12
    run_bench(tiny_model, "geneval", prompts, tmp_path / "one", samples=1)
    assert [line["seeds"] for line in lines_of(tmp_path / "one" / "prompts.jsonl")] == [
        seeds[0:1],
        seeds[4:5],
        seeds[8:9],
    ]


def test_the_pictures_are_those_of_draw(tiny_model: Path, reference: Path):
    """With a line's seed, `vargpt draw` gives the same pixels."""
    pipeline = VargptPipeline.from_pretrained(tiny_model, device="cpu")
    line = lines_of(reference / "prompts.jsonl")[1]
    for seed, name in zip(line["seeds"], line["files"], strict=True):
        with Image.open(reference / name) as picture:
            drawn = pipeline.draw(line["prompt"], seed=seed).images[0]
            assert np.array_equal(np.asarray(picture), np.asarray(drawn))


def test_a_cut_picture_is_drawn_again(tiny_model: Path, tmp_path: Path):
    prompts, out = dpg_folder(tmp_path), tmp_path / "out"
    run_bench(tiny_model, "dpg", prompts, out)
    whole = hashes(out)
    broken = out / "samples" / "1" / "00002.png"
    broken.write_bytes(broken.read_bytes()[:100])
    run_bench(tiny_model, "dpg", prompts, out)
    assert hashes(out) == whole
    assert lines_of(out / "sessions.jsonl")[-1]["pictures"] == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"guidance": "2"}, r"sampling.guidance_scale 3.0 there, 2.0 asked"),
        ({"preset": "paper"}, r"sampling.guidance_scale 3.0 there, 1.5 asked; sampling.top_p 0.97 there, 0.95 asked"),
        ({"seed": 1}, r"seed 0 there, 1 asked"),
        ({"samples": 2}, r"samples 4 there, 2 asked"),
        ({"template": "depict"}, r'template.name "draw" there, "depict" asked'),
        ({"height": 64, "width": 48}, r"width 64 there, 48 asked"),
        ({"dtype": "bfloat16"}, r'dtype "float32" there, "bfloat16" asked'),
    ],
)
def test_other_settings_are_refused(
    options: dict[str, Any], named: str, tiny_model: Path, prompts: Path, reference: Path
):
    before = hashes(reference)
    with pytest.raises(ValueError, match=named):
        run_bench(tiny_model, "geneval", prompts, reference, **options)
    assert hashes(reference) == before


def test_other_prompts_are_refused(tiny_model: Path, reference: Path, tmp_path: Path):
    other = write_lines(tmp_path / "p.jsonl", [{"tag": "x", "include": [], "prompt": "a fox"}])
    with pytest.raises(ValueError, match=r"prompts_sha256 "):
        run_bench(tiny_model, "geneval", other, reference)


def test_folders_of_others_are_refused(tiny_model: Path, prompts: Path, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes.txt but no run.json"):
        run_bench(tiny_model, "geneval", prompts, tmp_path)
    with pytest.raises(ValueError, match=r"notes.txt: is a file, expected a folder"):
        run_bench(tiny_model, "geneval", prompts, tmp_path / "notes.txt")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is no record of a benchmark run"):
        run_bench(tiny_model, "geneval", prompts, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard": "0/2"}, r"--shard reads I/N with I from 1 to N, such as 2/4, got '0/2'"),
        ({"shard": "3"}, r"--shard reads I/N"),
        ({"preset": "best"}, r"--preset is one of model, paper, official, got 'best'"),
        ({"samples": 0}, r"--samples must be at least 1, got 0"),
        ({"limit": 0}, r"--limit must be at least 1, got 0"),
        ({"seed": -1}, r"--seed must be from 0"),
        ({"height": 64}, r"give both --height and --width"),
        ({"guidance": "3,2"}, r"guidance_scale has 2 entries, but this schedule has 3 scales"),
        ({"guidance": "much"}, r"--guidance takes a number"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str, tiny_model: Path, prompts: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        run_bench(tiny_model, "geneval", prompts, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_unknown_benchmark(tiny_model: Path, prompts: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"no benchmark 'gen'; known are geneval, geneval2, dpg"):
        run_bench(tiny_model, "gen", prompts, tmp_path / "out")


def test_a_time_limit_stops_and_the_command_goes_on(
    tiny_model: Path, prompts: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert run_bench(tiny_model, "geneval", prompts, out, time_limit="0.001s") == 3
    assert "the same command goes on" in capsys.readouterr().err
    assert run_bench(tiny_model, "geneval", prompts, out) == 0
    assert hashes(out) == hashes(reference)
