"""Seconds to draw one picture with the bundled model: `python benchmarks/draw_latency.py [--model DIR]`.

Invariant: a run measures whole requests (words in, PIL picture out) on a loaded pipeline, after one warm-up. It prints
a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

from vargpt.commands.common import choose_threads, find_model
from vargpt.inference.pipeline import VargptPipeline

LIMIT_SECONDS = 2.0


def measure(pipeline: VargptPipeline, repeats: int, images: int) -> list[float]:
    """Wall seconds of each of `repeats` requests for `images` pictures."""
    pipeline.draw("green heart", num_images_per_prompt=images)
    seconds = []
    for seed in range(repeats):
        started = time.perf_counter()
        pipeline.draw("green heart", num_images_per_prompt=images, seed=seed)
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> int:
    """Measure one picture and a batch of eight; exit status 1 if one picture takes longer than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="model folder (default: the bundled model)")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, help="CPU threads (default: what the command line would take)")
    options = parser.parse_args()
    folder = find_model(options.model)
    started = time.perf_counter()
    pipeline = VargptPipeline.from_pretrained(folder)
    loading = time.perf_counter() - started
    choose_threads(pipeline)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rows = {}
    print(f"{'pictures':>8} {'median s':>9} {'min s':>7} {'max s':>7} {'s/picture':>10}")
    for images in (1, 8):
        seconds = measure(pipeline, options.repeats, images)
        median = statistics.median(seconds)
        rows[images] = median
        print(f"{images:>8} {median:>9.3f} {min(seconds):>7.3f} {max(seconds):>7.3f} {median / images:>10.3f}")
    result = {
        "benchmark": "draw_latency",
        "model": Path(folder).name,
        "parameters": pipeline.num_parameters,
        "device": str(pipeline.device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "load_seconds": round(loading, 2),
        "one_picture_seconds": round(rows[1], 4),
        "eight_pictures_seconds": round(rows[8], 4),
        "limit_seconds": LIMIT_SECONDS,
        "passed": rows[1] < LIMIT_SECONDS,
    }
    print(json.dumps(result))
    return 0 if result["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
