"""Peak memory and time of loading a synthetic checkpoint in the published layout, in a fresh process.

    python benchmarks/loading_memory.py [--gigabytes 1.0]

Writes a checkpoint of random weights twice (bfloat16 and float32, several shards), loads each in bfloat16 and prints
the peak above the level before loading, as a share of the weights' size in memory. The goal is at most 1.15.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import Qwen2VLConfig

from vargpt.checkpoint import tensor_files
from vargpt.checkpoint.convert import official_config
from vargpt.checkpoint.official_keys import official_key_table
from vargpt.configuration import Behaviour, DecoderConfig, ImageTokenizerConfig, VargptConfig


def synthetic_config(gigabytes: float) -> VargptConfig:
    """Sizes whose bfloat16 weights take about this much memory; half of it in the language model."""
    hidden, width = 1024, 1024
    language_layer, decoder_block = 2 * 13.1e6, 2 * 16.8e6
    layers = max(1, round(0.5 * gigabytes * 1e9 / language_layer))
    depth = max(2, round(0.32 * gigabytes * 1e9 / decoder_block))
    backbone = Qwen2VLConfig(
        text_config={
            "vocab_size": 32000, "hidden_size": hidden, "intermediate_size": 3072, "num_hidden_layers": layers,
            "num_attention_heads": 16, "num_key_value_heads": 4,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        },
        vision_config={"depth": 4, "embed_dim": 512, "hidden_size": hidden, "num_heads": 8},
        image_token_id=31000, video_token_id=31001, vision_start_token_id=31002, vision_end_token_id=31003,
    )  # fmt: skip
    return VargptConfig(
        backbone=backbone,
        decoder=DecoderConfig(hidden_size=width, num_heads=8, depth=depth, num_chunks=1),
        image_tokenizer=ImageTokenizerConfig(bits=32, base_channels=64),
        behaviour=Behaviour.official(),
        image_gen_start_token_id=31100, image_gen_end_token_id=31101, image_gen_pad_token_id=31102,
        eos_token_id=2, pad_token_id=1,
    )  # fmt: skip


def write_checkpoint(folder: Path, config: VargptConfig, dtype: torch.dtype, max_shard_size: str) -> int:
    """Write random weights in the published layout, one tensor at a time; returns the bytes on disk."""
    table = {entry.official: entry for entry in official_key_table(config)}
    layout = {
        name: (torch.int64 if entry.initial == "powers" else dtype, entry.official_shape)
        for name, entry in table.items()
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(official_config(config)))
    shards = tensor_files.plan_shards(layout, tensor_files.parse_size(max_shard_size))
    generator = torch.Generator().manual_seed(0)
    for file_name, names in shards:
        tensors = (
            torch.zeros(layout[name][1], dtype=layout[name][0]).random_(-3, 4, generator=generator) for name in names
        )
        tensor_files.write_file(folder / file_name, names, layout, tensors)
    if len(shards) > 1:
        tensor_files.write_index(folder / tensor_files.INDEX_NAME, shards, layout)
    return sum(path.stat().st_size for path in folder.iterdir())


_CHILD = """
import json, sys, time
import torch
from vargpt import VargptForConditionalGeneration

def status(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return int(line.split()[1]) * 1024

before, started = status("VmRSS:"), time.perf_counter()
model = VargptForConditionalGeneration.from_pretrained(sys.argv[1], dtype="bfloat16")
seconds = time.perf_counter() - started
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"weights": weights, "peak": status("VmHWM:") - before, "seconds": seconds}))
"""


def measure(folder: Path) -> dict[str, float]:
    """Load the folder in bfloat16 in a fresh process; peak in bytes above the level before loading (Linux)."""
    done = subprocess.run([sys.executable, "-c", _CHILD, str(folder)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(gigabytes: float, max_shard_size: str) -> list[dict[str, object]]:
    """Measure a bfloat16 and a float32 checkpoint of the same model."""
    config, results = synthetic_config(gigabytes), []
    for dtype in (torch.bfloat16, torch.float32):
        with tempfile.TemporaryDirectory() as scratch:
            disk = write_checkpoint(Path(scratch) / "model", config, dtype, max_shard_size)
            result = measure(Path(scratch) / "model")
        share = result["peak"] / result["weights"]
        results.append(
            {"stored": str(dtype).removeprefix("torch."), "disk": disk, **result, "peak_over_weights": share}
        )
    return results


def main() -> None:
    """Print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.1, help="size of the weights in bfloat16")
    parser.add_argument("--max-shard-size", default="400MB")
    arguments = parser.parse_args()
    started = time.strftime("%Y-%m-%d")
    results = run(arguments.gigabytes, arguments.max_shard_size)
    print(f"{'stored as':10} {'on disk':>9} {'weights':>9} {'peak':>9} {'peak/weights':>13} {'seconds':>8}")
    for r in results:
        sizes = " ".join(f"{float(str(r[name])) / 1e9:7.2f}GB" for name in ("disk", "weights", "peak"))
        print(f"{r['stored']!s:10} {sizes} {r['peak_over_weights']:13.3f} {r['seconds']:8.1f}")
    passed = all(float(str(r["peak_over_weights"])) <= 1.15 for r in results)
    print(json.dumps({"benchmark": "loading_memory", "date": started, "goal": 1.15, "passed": passed, "runs": results}))


if __name__ == "__main__":
    main()
