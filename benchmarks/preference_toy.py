"""DPO on a preference with a known answer: `python benchmarks/preference_toy.py [--seeds 3]`.

A tiny model learns to draw balls, red and blue ones alike for the one prompt "ball". It then samples its own pairs,
red preferred, and is trained on them: with the same bit errors for policy and reference, with the published independent
ones (spec 8.4), with log-probabilities summed as published or averaged per scale. One seed takes 3 CPU-minutes.

Invariant: all variants of a seed start from the same weights and see the same pairs in the same order, and what is
compared is the share of red in fresh samples, drawn with the same seeds. It prints tables and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw

from vargpt.data.instructions import draw_prompt
from vargpt.data.pairs import PairFolder
from vargpt.inference.pipeline import VargptPipeline
from vargpt.model import VargptForConditionalGeneration
from vargpt.preferences.sample import ModelPainter, draw_samples
from vargpt.preferences.scorers import Context
from vargpt.processing.conversation import Conversation
from vargpt.processing.processor import VargptProcessor
from vargpt.sampling import Sampling
from vargpt.training.loop import trainer
from vargpt.training.recipes.schema import DpoStage
from vargpt.training.run import train
from vargpt.training.stages.preference_logps import nats_per_bit, scale_weights
from vargpt.training.stages.preference_stage import PreferenceTask, logp_reduction
from vargpt.training.stages.reference import make_reference, run_pairs
from vargpt.training.weights.trainable import set_trainable

SIDE = 32
PICTURES = 192
PER_SCALE = {"beta": 2.0}
SUM = {"beta": 0.1, "logp_reduction": "sum"}
"""The published beta. A sum of 252 bits is 84 times the means of 3 scales: beta 8.4 is as strong a pull there."""
INDEPENDENT = {"reference_noise": "independent"}
SHARED = "shared, per scale"
VARIANTS: dict[str, dict[str, Any]] = {
    SHARED: PER_SCALE,
    "independent, per scale": {**PER_SCALE, **INDEPENDENT},
    "shared, sum": SUM,
    "independent, sum (published)": {**SUM, **INDEPENDENT},
    "shared, per scale, beta 8.4": {"beta": 8.4},
    "no errors (stored bits)": {**PER_SCALE, "flip_strength": 0.0},
}
RECIPE: dict[str, Any] = {
    "name": "preference-toy",
    "validation_fraction": 0.1,
    "schedule": {"num_scales": 3},
    "text_tokenizer": {"vocab_size": 300},
    "export_dtype": "float32",
    "model": {
        "image_tokenizer": {"bits": 12, "base_channels": 32, "channel_multipliers": [1, 2], "num_res_blocks": 1,
                            "stride": 8, "patch_size": 4},
        "vision": {"depth": 1, "embed_dim": 32, "num_heads": 2, "patch_size": 8, "image_side": 32},
        "backbone": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "num_key_value_heads": 1, "mrope_section": [4, 6, 6]},
        "decoder": {"hidden_size": 64, "num_heads": 2, "depth": 3},
    },
    "stages": [
        {"kind": "tokenizer", "flip": True,
         "loop": {"steps": 500, "batch_size": 16, "micro_batch_size": 16, "learning_rate": 0.003}},
        {"kind": "sft", "data": [{"task": "draw"}], "variety": 0.0, "guidance_drop": 0.0, "flip_strength": 0.3,
         "loop": {"steps": 500, "batch_size": 32, "micro_batch_size": 32, "learning_rate": 0.003}},
        {"kind": "pairs", "data": [{"task": "draw"}], "num_prompts": 256, "num_samples": 4,
         "scorer": "preference_toy:redness", "margin": 0.2, "batch_size": 64},
    ],
}  # fmt: skip


def redness(prompt: Conversation, images: list[Image.Image], context: Context) -> Sequence[float]:
    """Mean red minus mean blue, in [-1, 1]: the scorer of the pairs and the metric of the result."""
    del prompt, context
    pixels = [np.asarray(image, dtype=np.float64) for image in images]
    return [float(picture[..., 0].mean() - picture[..., 2].mean()) / 255 for picture in pixels]


def write_data(folder: Path, seed: int) -> Path:
    """Red and blue balls of many sizes and places on white, half and half, all of the same name."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    lines = []
    for index in range(PICTURES):
        picture = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
        radius = chance.uniform(7, 11)
        x, y = chance.uniform(radius, SIDE - radius), chance.uniform(radius, SIDE - radius)
        shade = chance.randint(190, 255)
        colour = (shade, 40, 40) if index % 2 else (40, 40, shade)
        ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        picture.save(folder / f"{index}.png")
        lines.append(json.dumps({"file_name": f"{index}.png", "text": "ball"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def sample(
    model: VargptForConditionalGeneration, processor: VargptProcessor, count: int, seed: int
) -> list[Image.Image]:
    """Fresh samples; the model is left in evaluation mode."""
    sampling = Sampling(guidance_scale=1.0, temperature=1.0, top_p=1.0)
    painter = ModelPainter(VargptPipeline(model, processor), sampling)
    seeds = [[1_000_003 * seed + number for number in range(count)]]
    with torch.no_grad():
        batches = list(draw_samples(painter, [draw_prompt("ball")], seeds, 64))
    return [drawing.image for batch in batches for _, drawing in batch]


def look_at(images: list[Image.Image], data: Path) -> dict[str, float]:
    """How many samples are red, and how far they are from the nearest training picture (RMS in levels, the mean)."""
    known = np.stack([np.asarray(Image.open(path), np.float32).ravel() for path in sorted(data.glob("*.png"))])
    drawn = np.stack([np.asarray(image, np.float32).ravel() for image in images])
    squares = (drawn**2).sum(1)[:, None] + (known**2).sum(1)[None] - 2 * drawn @ known.T
    distance = np.sqrt(np.maximum(squares.min(1), 0) / drawn.shape[1]).mean()
    red = sum(score > 0 for score in redness(draw_prompt("ball"), images, Context()))
    return {"red": red, "distance": round(float(distance), 2)}


def wilson(successes: int, count: int) -> tuple[float, float]:
    """95% interval of a share (Wilson's score interval)."""
    z, share = 1.959964, successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half


def initial_margins(task: PreferenceTask, stage: DpoStage, model: VargptForConditionalGeneration) -> torch.Tensor:
    """Margins of the first step's pairs before anything was learned: 0 in truth, so whatever there is, is noise."""
    margins = []
    with torch.no_grad():
        for micro in task.batch(0):
            assert micro.inputs.schedule is not None
            bits = model.config.image_tokenizer.bits
            weights = scale_weights(micro.inputs.schedule, bits, logp_reduction(stage, model))
            policy, _ = run_pairs(model, micro.inputs, 2 * micro.num_pairs)
            reference, _ = run_pairs(model, micro.reference_inputs, 2 * micro.num_pairs)
            chosen, rejected = ((policy - reference) @ weights).chunk(2)
            margins.append(chosen - rejected)
    return torch.cat(margins)


def run_variant(
    folder: Path, changes: Mapping[str, Any], options: argparse.Namespace, seed: int, directory: Path
) -> dict[str, Any]:
    """Train one variant from the saved model; sample at every look."""
    model = VargptForConditionalGeneration.from_pretrained(folder / "model")
    processor = VargptProcessor.from_pretrained(folder / "model")
    loop = {"steps": options.steps, "batch_size": 16, "micro_batch_size": 16, "learning_rate": options.learning_rate,
            "warmup": 0.1, "log_every": options.look_every, "evaluate_every": 10**6, "precision": "fp32"}  # fmt: skip
    stage = DpoStage.model_validate({"kind": "dpo", "pairs": "pairs", "loop": loop, **changes})
    set_trainable(model, stage.trainable)
    reference = make_reference(stage, model, directory)
    task = PreferenceTask(model, processor, PairFolder(folder / "pairs"), stage, seed, reference)
    noise = float(initial_margins(task, stage, model).std())
    schedule, bits = model.config.schedule(), model.config.image_tokenizer.bits
    unit = stage.beta * nats_per_bit(schedule, bits, logp_reduction(stage, model))
    looks: dict[int, dict[str, float]] = {}
    warnings: list[str] = []
    watch = task.watch()

    def look(step: int, values: Mapping[str, float]) -> str | None:
        if "rewards/margins" in values:
            seen = look_at(sample(model, processor, options.samples, seed + 17), folder.parent / "data")
            changes_per_bit = {side: round(values[f"rewards/{side}"] / unit, 4) for side in ("chosen", "rejected")}
            looks[step] = {**seen, **changes_per_bit, "accuracy": values["rewards/accuracies"]}
            trainer.set_training_mode(model)
        warning = watch(step, values)
        warnings.extend([] if warning is None else [warning])
        return warning

    trainer.Trainer(stage.name, task, stage.loop.settings(seed), directory, [look]).run()
    return {"noise": round(stage.beta * noise, 4), "looks": looks, "warnings": warnings}


def run_seed(seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train the drawing model of a seed, make its pairs, train all variants."""
    started = time.perf_counter()
    recipe = folder / "recipe.yaml"
    folder.mkdir(parents=True)
    recipe.write_text(yaml.safe_dump({**RECIPE, "seed": seed}))
    train(recipe, write_data(folder / "data", seed), folder / "out")
    base = folder / "out"
    model = VargptForConditionalGeneration.from_pretrained(base / "model")
    images = sample(model, VargptProcessor.from_pretrained(base / "model"), options.samples, seed + 17)
    result: dict[str, Any] = {
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "before": look_at(images, folder / "data"),
        "pairs": len(PairFolder(base / "pairs")),
        "base_seconds": round(time.perf_counter() - started, 1),
        "variants": {},
    }
    for number, (name, changes) in enumerate(VARIANTS.items()):
        result["variants"][name] = run_variant(base, changes, options, seed, folder / f"dpo-{number}")
    result["seconds"] = round(time.perf_counter() - started, 1)
    return result


def show(results: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Tables over all seeds: share of red at every look; noise, and what happened to the pictures, at the last one."""
    total = options.samples * len(results)
    before = [result["before"] for result in results]
    steps = list(results[0]["variants"][SHARED]["looks"])
    red = sum(entry["red"] for entry in before)
    print(f"before: {100 * red / total:.1f}% red of {total} samples, distance {_mean(before, 'distance'):.1f}")
    print(f"{'red, %':<30} " + " ".join(f"{f'step {step}':>20}" for step in steps))
    for name in VARIANTS:
        cells = []
        for step in steps:
            red = sum(result["variants"][name]["looks"][step]["red"] for result in results)
            low, high = wilson(red, total)
            cells.append(f"{100 * red / total:5.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        print(f"{name:<30} " + " ".join(f"{cell:>20}" for cell in cells))
    print(f"{'at the end':<30} {'noise':>7} {'chosen':>8} {'rejected':>9} {'distance':>9} {'warned':>7}")
    for name in VARIANTS:
        variants = [result["variants"][name] for result in results]
        last = [variant["looks"][steps[-1]] for variant in variants]
        warned = sum(bool(variant["warnings"]) for variant in variants)
        print(
            f"{name:<30} {_mean(variants, 'noise'):>7.3f} {_mean(last, 'chosen'):>8.3f} "
            f"{_mean(last, 'rejected'):>9.3f} {_mean(last, 'distance'):>9.1f} {f'{warned}/{len(variants)}':>7}"
        )
    print("noise: standard deviation of beta times the margin before training; chosen, rejected: change of the")
    print("log-probability in nats per bit; distance: to the nearest training picture, in levels of 255", flush=True)


def _mean(entries: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(entry[name] for entry in entries) / len(entries)


def main() -> int:
    """Run all seeds; exit status 1 unless the shared variant draws at least 90% red in every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--look-every", type=int, default=10)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--folder", type=Path, help="keep everything there (default: a temporary folder)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # the recipe names this file's scorer
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            results.append(run_seed(seed, options, (options.folder or Path(scratch)) / f"seed-{seed}"))
            show(results, options)
    last = [result["variants"][SHARED]["looks"][options.steps]["red"] for result in results]
    passed = min(last) >= 0.9 * options.samples
    summary = {
        "benchmark": "preference_toy",
        "settings": {name: value for name, value in vars(options).items() if name != "folder"},
        "results": results,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "passed": passed,
    }
    print(json.dumps(summary))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
