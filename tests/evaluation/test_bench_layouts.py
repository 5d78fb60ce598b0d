"""Folders of the outside benchmarks: the trees that their scorers read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bench_helpers import DPG, GENEVAL, GENEVAL2, dpg_folder, geneval_file, lines_of, run_bench, tree, write_lines
from PIL import Image

from vargpt.evaluation.benchmarks.layouts import BENCHMARKS, find_benchmark, is_complete, tile

RECORD = ["README.txt", "prompts.jsonl", "run.json", "sessions.jsonl"]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_geneval(tiny_model: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert run_bench(tiny_model, "geneval", geneval_file(tmp_path), out, limit=2) == 0
    samples = [f"samples/{n:05d}.png" for n in range(4)]
    expected = [
        f"{folder}/{name}" for folder in ("00000", "00001") for name in ("grid.png", "metadata.jsonl", *samples)
    ]
    assert tree(out) == sorted([*expected, *RECORD])
    assert json.loads((out / "00001" / "metadata.jsonl").read_text()) == GENEVAL[1]
    assert pixels(out / "00000" / "grid.png").shape == (128, 128, 3)
    assert json.loads((out / "run.json").read_text())["finished"] is None, "a limit leaves the run open"


def test_geneval2_maps_every_prompt_to_its_picture(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out, prompts = tmp_path / "out", write_lines(tmp_path / "geneval2_data.jsonl", GENEVAL2)
    assert run_bench(tiny_model, "geneval2", prompts, out, samples=2) == 0
    pictures = ["images/00000-1.png", "images/00000.png", "images/00001-1.png", "images/00001.png"]
    assert tree(out) == sorted([*pictures, "image_paths-1.json", "image_paths.json", *RECORD])
    assert json.loads((out / "image_paths.json").read_text()) == {
        "three red foxes": "images/00000.png", "an owl": "images/00001.png"
    }  # fmt: skip
    assert "1 repeated prompts were left out" in capsys.readouterr().err


def test_dpg_is_a_grid_in_rows_of_two(tiny_model: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert run_bench(tiny_model, "dpg", dpg_folder(tmp_path), out) == 0
    samples = [f"samples/{name}/{n:05d}.png" for name in DPG for n in range(4)]
    assert tree(out) == sorted([*(f"images/{name}.png" for name in DPG), *samples, *RECORD])
    grid, parts = pixels(out / "images" / "1.png"), [pixels(out / name) for name in samples[:4]]
    assert np.array_equal(grid[:64, 64:], parts[1]) and np.array_equal(grid[64:, :64], parts[2])
    assert np.array_equal(grid, np.vstack([np.hstack(parts[:2]), np.hstack(parts[2:])]))
    assert "--resolution 64 --pic-num 4" in (out / "README.txt").read_text()


def test_tiles():
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    assert tile([red]).size == (2, 2) and tile([red, blue]).size == (4, 2)
    three = tile([red, blue, red])
    assert three.size == (4, 4) and three.getpixel((3, 3)) == (0, 0, 0) and three.getpixel((3, 0)) == (0, 0, 255)


def test_a_cut_file_is_not_complete(tmp_path: Path):
    path = tmp_path / "a.png"
    assert not is_complete(path)
    Image.new("RGB", (2, 2)).save(path)
    assert is_complete(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_complete(path)
    path.write_bytes(b"")
    assert not is_complete(path)


FIRST = json.dumps(GENEVAL[0]) + "\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("geneval", FIRST + '{"tag": "colors", \n', r"line 2: is no JSON"),
        ("geneval", FIRST + "\n[1]\n", r"line 3: expected a JSON object, got list"),
        ("geneval", '{"tag": "x", "include": []}', r"line 1: expected words under 'prompt', got no such key"),
        ("geneval", '{"include": [], "prompt": "a"}', r"line 1: expected words under 'tag', got no such key"),
        ("geneval", '{"tag": "x", "prompt": "a"}', r"line 1: expected a list under 'include'"),
        ("geneval", "", r"is empty, expected one JSON object a line"),
        ("geneval", b"\xff\xfe", r"is not UTF-8 text"),
        ("geneval2", '{"prompt": "a"}', r"line 1: expected a list under 'vqa_list'"),
        ("geneval2", '{"prompt": " ", "vqa_list": []}', r"line 1: expected words under 'prompt', got ' '"),
    ],
)
def test_a_bad_prompts_file(name: str, text: str | bytes, message: str, tmp_path: Path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        find_benchmark(name).read(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_bad_prompts_folder(tmp_path: Path):
    dpg = BENCHMARKS["dpg"]
    with pytest.raises(ValueError, match=r"absent: expected the folder dpg_bench/prompts"):
        dpg.read(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no .txt file"):
        dpg.read(tmp_path)
    (tmp_path / "1.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"1.txt: is empty"):
        dpg.read(tmp_path)
    (tmp_path / "1.txt").rename(tmp_path / "1.5.txt")
    (tmp_path / "1.5.txt").write_text("a fox")
    with pytest.raises(ValueError, match=r"cuts names at their first dot"):
        dpg.read(tmp_path)
    with pytest.raises(ValueError, match=r"no such file of prompts"):
        BENCHMARKS["geneval"].read(tmp_path)


def test_what_dpgs_scorer_cannot_read(tiny_model: Path, tmp_path: Path):
    prompts = dpg_folder(tmp_path)
    with pytest.raises(ValueError, match=r"1 to 4 samples per prompt, got --samples 5"):
        run_bench(tiny_model, "dpg", prompts, tmp_path / "out", samples=5)
    with pytest.raises(ValueError, match=r"square pictures, got 48x64"):
        run_bench(tiny_model, "dpg", prompts, tmp_path / "out", height=64, width=48)
    assert not (tmp_path / "out").exists()


def test_the_record_says_it_all(tiny_model: Path, tmp_path: Path):
    out = tmp_path / "out"
    run_bench(tiny_model, "geneval", geneval_file(tmp_path), out, samples=1, preset="paper", temperature="0.7", seed=3)
    run = json.loads((out / "run.json").read_text())
    assert run["settings"]["sampling"] == {"guidance_scale": 1.5, "temperature": 0.7, "top_p": 0.95}
    assert (run["settings"]["seed"], run["settings"]["dtype"], run["pictures"]) == (3, "float32", 3)
    assert run["finished"] >= run["started"] and len(run["weights_files"]["model.safetensors"]) == 64
    assert run["unconditional_request"] == "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    assert [session["event"] for session in lines_of(out / "sessions.jsonl")] == ["start", "end"]
    first = lines_of(out / "prompts.jsonl")[0]
    assert first == {
        "index": 0, "key": "00000", "prompt": "a photo of a fox", "rewritten": None, "template": "draw",
        "request": "<|im_start|>user\ndraw a photo of a fox<|im_end|>\n<|im_start|>assistant\n",
        "seeds": [first["seeds"][0]], "files": ["00000/samples/00000.png"],
    }  # fmt: skip
    with Image.open(out / first["files"][0]) as picture:
        assert picture.info["seed"] == str(first["seeds"][0]) and picture.info["request"] == first["request"]
    text = (out / "README.txt").read_text()
    assert "evaluation/evaluate_images.py" in text and "guidance 1.5, temperature 0.7, top-p 0.95" in text
    assert "the benchmark has 553: these are not its prompts" in text
