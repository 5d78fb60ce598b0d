"""The folders of GenEval, GenEval 2 and DPG-Bench: which prompts file each reads, and where each scorer looks for what.

Invariant: names and contents are functions of the prompts file and the number of samples alone; the official scorers
read the folders as they are (facts from djghosh13/geneval, facebookresearch/GenEval2 and TencentQQGYLab/ELLA).

    geneval    OUT/00000/metadata.jsonl, samples/00000.png ..., grid.png      553 prompts, 4 samples each
    geneval2   OUT/images/00000.png ..., image_paths.json (prompt -> file)    800 prompts, 1 sample each
    dpg        OUT/images/NAME.png, a 2x2 grid of OUT/samples/NAME/00000.png  1,065 prompts, 4 samples each
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image

from vargpt.evaluation.benchmarks.wording import parse_object, words_of
from vargpt.inference.pictures import save_png, write_atomically

_PNG_END = bytes.fromhex("0000000049454e44ae426082")


@dataclass(frozen=True)
class BenchPrompt:
    """One prompt of a benchmark: its place in the list, its name in the folder, its line of the prompts file."""

    index: int
    key: str
    prompt: str
    line: str = ""


@dataclass(frozen=True)
class PromptList:
    """The prompts of a benchmark as they were read, with a fingerprint; `left_out` counts repeated ones."""

    prompts: tuple[BenchPrompt, ...]
    sha256: str
    left_out: int = 0


class Benchmark(Protocol):
    """One benchmark's prompts and folder; file names are relative to the folder, with '/'."""

    name: str
    title: str
    samples: int
    """How many pictures per prompt its authors ask for."""
    count: int
    """How many prompts its own file has."""

    def read(self, path: Path) -> PromptList:
        """Read the prompts; ValueError in one line, with the place, for what is not as it should be."""

    def check(self, samples: int, height: int, width: int) -> None:
        """Refuse what the scorer cannot read."""

    def picture(self, prompt: BenchPrompt, sample: int) -> str:
        """File of one picture."""

    def begin(self, folder: Path, prompt: BenchPrompt) -> None:
        """Write what must be there before a prompt's first picture."""

    def complete(self, folder: Path, prompt: BenchPrompt, samples: int) -> None:
        """Write what is made of all pictures of a prompt, unless it is there."""

    def finish(self, folder: Path, prompts: Sequence[BenchPrompt], samples: int) -> None:
        """Write what is made when all pictures of all prompts are there."""

    def scoring(self, samples: int, height: int) -> str:
        """How to score the folder: commands for a shell."""


class GenEval:
    """GenEval (arXiv 2310.11513): object detection on six skills."""

    name, title, samples, count = "geneval", "GenEval", 4, 553

    def read(self, path: Path) -> PromptList:
        """Read `evaluation_metadata.jsonl`: tag, include (exclude) and prompt."""
        lines, sha256 = _lines(path)
        prompts: list[BenchPrompt] = []
        for number, line in lines:
            place = f"{path}, line {number}"
            record = parse_object(line, place)
            words_of(record, "tag", place)
            if not isinstance(record.get("include"), list):
                raise ValueError(f"{place}: expected a list under 'include' (the objects to find); is this the "
                                 "benchmark's evaluation_metadata.jsonl?")  # fmt: skip
            index = len(prompts)
            prompts.append(BenchPrompt(index, f"{index:05d}", words_of(record, "prompt", place), line))
        return PromptList(tuple(prompts), sha256)

    def check(self, samples: int, height: int, width: int) -> None:
        """Any number and size."""

    def picture(self, prompt: BenchPrompt, sample: int) -> str:
        """As in the benchmark's own script."""
        return f"{prompt.key}/samples/{sample:05d}.png"

    def begin(self, folder: Path, prompt: BenchPrompt) -> None:
        """The prompt's line of the prompts file, letter by letter: the scorer fails on a folder without it."""
        path = folder / prompt.key / "metadata.jsonl"
        if not path.is_file():
            write_atomically(path, (prompt.line + "\n").encode())

    def complete(self, folder: Path, prompt: BenchPrompt, samples: int) -> None:
        """All samples side by side, for people; the scorer does not read it."""
        _write_grid(folder, folder / prompt.key / "grid.png", [self.picture(prompt, n) for n in range(samples)])

    def finish(self, folder: Path, prompts: Sequence[BenchPrompt], samples: int) -> None:
        """Nothing is left to write."""

    def scoring(self, samples: int, height: int) -> str:
        """Two scripts of djghosh13/geneval."""
        return (
            "# its README sets up mmdet and the detector, whose folder is $DETECTOR here\n"
            "git clone https://github.com/djghosh13/geneval && cd geneval\n"
            'python evaluation/evaluate_images.py "$OUT" --outfile "$OUT/results.jsonl" --model-path "$DETECTOR"\n'
            'cd evaluation && python summary_scores.py "$OUT/results.jsonl"\n'
        )


class GenEval2:
    """GenEval 2 (arXiv 2512.16853): questions to a vision model about every part of a prompt."""

    name, title, samples, count = "geneval2", "GenEval 2", 1, 800

    def read(self, path: Path) -> PromptList:
        """Read `geneval2_data.jsonl`. Its scorer finds pictures by the words, so a repeated prompt is drawn once."""
        lines, sha256 = _lines(path)
        found: dict[str, BenchPrompt] = {}
        for number, line in lines:
            place = f"{path}, line {number}"
            record = parse_object(line, place)
            words = words_of(record, "prompt", place)
            if not isinstance(record.get("vqa_list"), list):
                raise ValueError(f"{place}: expected a list under 'vqa_list' (the questions); is this the benchmark's "
                                 "geneval2_data.jsonl?")  # fmt: skip
            if words not in found:
                found[words] = BenchPrompt(len(found), f"{len(found):05d}", words, line)
        return PromptList(tuple(found.values()), sha256, len(lines) - len(found))

    def check(self, samples: int, height: int, width: int) -> None:
        """Any number and size."""

    def picture(self, prompt: BenchPrompt, sample: int) -> str:
        """A flat folder; samples after the first have their number behind a dash."""
        return f"images/{prompt.key}{_dash(sample)}.png"

    def begin(self, folder: Path, prompt: BenchPrompt) -> None:
        """Nothing is needed."""

    def complete(self, folder: Path, prompt: BenchPrompt, samples: int) -> None:
        """Nothing is made of one prompt."""

    def finish(self, folder: Path, prompts: Sequence[BenchPrompt], samples: int) -> None:
        """The scorer's list of pictures, one file per sample; paths are relative to the folder, so it can be moved."""
        for sample in range(samples):
            paths = {prompt.prompt: self.picture(prompt, sample) for prompt in prompts}
            text = json.dumps(paths, indent=1, ensure_ascii=False) + "\n"
            write_atomically(folder / f"image_paths{_dash(sample)}.json", text.encode())

    def scoring(self, samples: int, height: int) -> str:
        """Two scripts of facebookresearch/GenEval2, run from inside the folder."""
        text = (
            "# its README lists what to install; the paths in image_paths.json start in $OUT\n"
            "git clone https://github.com/facebookresearch/GenEval2\n"
            'GENEVAL2="$PWD/GenEval2" && cd "$OUT"\n'
        )
        for sample in range(samples):
            end = f"{_dash(sample)}.json"
            text += (
                f'python "$GENEVAL2/evaluation.py" --benchmark_data "$GENEVAL2/geneval2_data.jsonl" '
                f"--image_filepath_data image_paths{end} --method soft_tifa_gm --output_file score_lists{end}\n"
                f'python "$GENEVAL2/soft_tifa_analysis.py" --benchmark_data "$GENEVAL2/geneval2_data.jsonl" '
                f"--score_data score_lists{end}\n"
            )
        return text


class DpgBench:
    """DPG-Bench (arXiv 2403.05135): questions to a vision model about long prompts."""

    name, title, samples, count = "dpg", "DPG-Bench", 4, 1065

    def read(self, path: Path) -> PromptList:
        """Read the folder `dpg_bench/prompts`: a text file per prompt, in the order of their names."""
        if not path.is_dir():
            raise ValueError(f"{path}: expected the folder dpg_bench/prompts with one .txt per prompt")
        files = sorted(path.glob("*.txt"))
        if not files:
            raise ValueError(f"{path}: holds no .txt file; expected one per prompt (dpg_bench/prompts)")
        digest, prompts = hashlib.sha256(), []
        for index, file in enumerate(files):
            data = file.read_bytes()
            digest.update(f"{file.name}\0{len(data)}\0".encode() + data)
            try:
                words = data.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise ValueError(f"{file}: is not UTF-8 text") from error
            if not words:
                raise ValueError(f"{file}: is empty, expected a prompt")
            if "." in file.stem:
                raise ValueError(f"{file}: the scorer cuts names at their first dot; rename it without one")
            prompts.append(BenchPrompt(index, file.stem, words))
        return PromptList(tuple(prompts), digest.hexdigest())

    def check(self, samples: int, height: int, width: int) -> None:
        """The scorer cuts squares of one side out of at most a 2x2 grid."""
        if samples > 4:
            raise ValueError(f"DPG-Bench's scorer reads 1 to 4 samples per prompt, got --samples {samples}")
        if height != width:
            raise ValueError(f"DPG-Bench's scorer reads square pictures, got {width}x{height} (width x height)")

    def picture(self, prompt: BenchPrompt, sample: int) -> str:
        """The single samples, beside the folder that is scored: the scorer opens every file in that."""
        return f"samples/{prompt.key}/{sample:05d}.png"

    def begin(self, folder: Path, prompt: BenchPrompt) -> None:
        """Nothing is needed."""

    def complete(self, folder: Path, prompt: BenchPrompt, samples: int) -> None:
        """The grid that is scored: rows of two, no gaps."""
        _write_grid(folder, folder / "images" / f"{prompt.key}.png", [self.picture(prompt, n) for n in range(samples)])

    def finish(self, folder: Path, prompts: Sequence[BenchPrompt], samples: int) -> None:
        """Nothing is left to write."""

    def scoring(self, samples: int, height: int) -> str:
        """The script of TencentQQGYLab/ELLA."""
        return (
            "# on one GPU; its README lists what to install (modelscope among others)\n"
            "git clone https://github.com/TencentQQGYLab/ELLA && cd ELLA\n"
            f'accelerate launch --num_processes 1 dpg_bench/compute_dpg_bench.py --image-root-path "$OUT/images" '
            f'--resolution {height} --pic-num {samples} --vqa-model mplug --res-path "$OUT/dpg.txt"\n'
        )


BENCHMARKS: dict[str, Benchmark] = {suite.name: suite for suite in (GenEval(), GenEval2(), DpgBench())}


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of that name."""
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!r}; known are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def is_complete(path: Path) -> bool:
    """Whether a PNG is there to its last byte."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), 2)
            return file.read() == _PNG_END
    except OSError:
        return False


def tile(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in rows of two for up to four, else in a square; without gaps, black where none is left."""
    columns = math.ceil(math.sqrt(len(pictures)))
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height))
    for number, picture in enumerate(pictures):
        sheet.paste(picture.convert("RGB"), (number % columns * width, number // columns * height))
    return sheet


def _write_grid(folder: Path, path: Path, names: Sequence[str]) -> None:
    if is_complete(path):
        return
    pictures = []
    for name in names:
        with Image.open(folder / name) as picture:
            pictures.append(picture.convert("RGB"))
    save_png(path, tile(pictures))


def _dash(sample: int) -> str:
    return f"-{sample}" if sample else ""


def _lines(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Lines that are not blank, with their numbers, and the SHA-256 of the file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file of prompts")
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path}: is empty, expected one JSON object a line")
    return lines, hashlib.sha256(data).hexdigest()
