"""How fast scenes are drawn and how well they are read back: `python benchmarks/scenes.py [--scenes 2000]`.

Invariant: every scene is fresh (seeds that no test or training uses), half from the train split and half unseen; the
same command gives the same accuracies. Speed is CPU time of one thread. It prints tables and, last, one line of JSON.

What it takes to be read right: `vargpt.data.scenes.agreement`. Intervals are Wilson's, 95%. Wrong pictures: a caption
against the picture of another scene in which some of it is false, or against the same scene with one thing made wrong;
pictures of things that are none of the shapes.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from vargpt.data.scenes.agreement import agreement
from vargpt.data.scenes.checker import read
from vargpt.data.scenes.facts import judge, share_that_holds
from vargpt.data.scenes.parser import facts_of
from vargpt.data.scenes.preferences import preference_pair
from vargpt.data.scenes.render import background_pixels, render
from vargpt.data.scenes.sampler import sample_scene
from vargpt.data.scenes.words import short_caption
from vargpt.data.scenes.world import BACKGROUNDS, COLOURS, Scene, Split

Pixels = NDArray[np.uint8]
LEAST_SPEED, LEAST_RIGHT = 500.0, 0.995
SPLITS: tuple[Split, Split] = ("train", "unseen")


def wilson(right: int, count: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927)."""
    z = 1.959964
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def scenes_for(purpose: str, count: int) -> list[Scene]:
    """Fresh scenes, half of them with held-out combinations."""
    return [sample_scene(f"benchmark {purpose} {index}", SPLITS[index % 2]) for index in range(count)]


def jpeg(pixels: Pixels, index: int) -> Pixels:
    """JPEG at quality 40, colour at half the resolution."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer).convert("RGB"))


def blur(pixels: Pixels, index: int) -> Pixels:
    """Gaussian blur, standard deviation of one pixel."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1)))


def noise(pixels: Pixels, index: int) -> Pixels:
    """Gaussian noise, standard deviation of 8 of 255."""
    added = np.random.default_rng(index).normal(0, 8, pixels.shape)
    return (pixels + added).clip(0, 255).astype(np.uint8)


DEGRADATIONS: dict[str, Callable[[Pixels, int], Pixels]] = {"jpeg 40": jpeg, "blur 1 px": blur, "noise 8": noise}


def accuracy(scenes: list[Scene], size: int, degrade: Callable[[Pixels, int], Pixels] | None) -> dict[str, object]:
    """Read every scene; share read fully right with its interval, per attribute, and CPU milliseconds per reading."""
    right, seconds = 0, 0.0
    totals: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for index, scene in enumerate(scenes):
        pixels = render(scene, size, size)
        if degrade is not None:
            pixels = degrade(pixels, index)
        started = time.process_time()
        reading = read(pixels)
        seconds += time.process_time() - started
        counts = agreement(scene, reading)
        right += all(hit == asked for hit, asked in counts.values())
        for name, (hit, asked) in counts.items():
            hits[name] += hit
            totals[name] += asked
    low, high = wilson(right, len(scenes))
    return {
        "right": round(right / len(scenes), 5),
        "interval": [round(low, 4), round(high, 4)],
        "n": len(scenes),
        "attributes": {name: round(hits[name] / totals[name], 5) for name in totals if totals[name]},
        "milliseconds": round(1000 * seconds / len(scenes), 2),
    }


def speed(size: int, count: int) -> dict[str, float]:
    """Scenes per CPU second: rendering alone, and with sampling and a caption; the best of three passes."""
    scenes = [sample_scene(f"benchmark speed {index}") for index in range(count)]
    render(scenes[0], size, size)
    alone, whole = [], []
    for repeat in range(3):
        started = time.process_time()
        for scene in scenes:
            render(scene, size, size)
        alone.append(time.process_time() - started)
        started = time.process_time()
        for index in range(count):
            scene = sample_scene(f"benchmark speed {repeat} {index}")
            short_caption(scene)
            render(scene, size, size)
        whole.append(time.process_time() - started)
    return {"render": round(count / min(alone), 1), "sample_word_render": round(count / min(whole), 1)}


def false_accepts(size: int, count: int) -> dict[str, dict[str, object]]:
    """Share of wrong pictures that the checker takes for right, by how they are wrong."""
    accepted: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    scenes = scenes_for("wrong", count)
    readings = [read(render(scene, size, size)) for scene in scenes]
    for index, scene in enumerate(scenes):
        facts = facts_of(short_caption(scene))
        assert facts is not None
        other = (index + 2) % count
        if share_that_holds(judge(facts, scenes[other])) < 1:
            asked["another scene"] += 1
            accepted["another scene"] += share_that_holds(readings[other].judge(facts)) == 1
        pair = preference_pair("benchmark", index, split=SPLITS[index % 2])
        facts = facts_of(pair.prompt)
        assert facts is not None
        asked["one thing wrong"] += 1
        accepted["one thing wrong"] += share_that_holds(read(render(pair.rejected, size, size)).judge(facts)) == 1
    for index in range(count // 4):
        asked["no shape"] += 1
        accepted["no shape"] += bool(read(_no_shape(index, size)).scene.things)
    table = {}
    for name in asked:
        low, high = wilson(accepted[name], asked[name])
        share = round(accepted[name] / asked[name], 5)
        table[name] = {"accepted": share, "interval": [round(low, 4), round(high, 4)], "n": asked[name]}
    return table


_OUTLINES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((-0.9, -1), (-0.3, -1), (-0.3, 0.4), (0.9, 0.4), (0.9, 1), (-0.9, 1)),
    ((-1, -0.35), (0, -0.35), (0, -0.9), (1, 0), (0, 0.9), (0, 0.35), (-1, 0.35)),
    ((-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)),
    ((-0.2, -1), (0.2, -1), (0.2, 1), (-0.2, 1)),
    tuple((math.cos(angle), max(math.sin(angle), 0.0) * 1.0 - 0.4) for angle in np.linspace(0, math.pi, 24)),
    tuple((math.cos(angle), 0.5 * math.sin(angle)) for angle in np.linspace(0, 2 * math.pi, 32)),
)
"""An L, an arrow, a slab, a bar, half a disc, a flat ellipse."""


def _no_shape(index: int, size: int) -> Pixels:
    """One thing that is none of the shapes, as large as a large thing."""
    generator = np.random.default_rng(index)
    ground = background_pixels(BACKGROUNDS[index % len(BACKGROUNDS)], 4 * size, 4 * size)
    image = Image.fromarray(ground.astype(np.uint8))
    x, y = generator.uniform(0.3, 0.7, 2) * 4 * size
    radius = generator.uniform(0.17, 0.22) * 4 * size
    outline = [(x + radius * u, y + radius * v) for u, v in _OUTLINES[index % len(_OUTLINES)]]
    colour = list(COLOURS.values())[int(generator.integers(len(COLOURS)))]
    ImageDraw.Draw(image).polygon(outline, fill=colour)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def main() -> int:
    """Run all of it; exit status 1 if scenes are drawn too slowly or clean ones read wrong too often."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=2000, help="scenes per size (a quarter of it per degradation)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 64, 128])
    options = parser.parse_args()
    print(f"{'pixels':>7} {'render/s':>9} {'sample+word+render/s':>21}")
    speeds = {}
    for size in (32, 64, 128, 256):
        speeds[size] = speed(size, 300)
        print(f"{size:>7} {speeds[size]['render']:>9.0f} {speeds[size]['sample_word_render']:>21.0f}")
    print(f"\n{'pixels':>7} {'picture':>10} {'n':>6} {'right':>7} {'95% interval':>16} {'ms':>6}  worst attributes")
    readings = {}
    for size in options.sizes:
        cases: dict[str, Callable[[Pixels, int], Pixels] | None] = {"clean": None}
        if size in (64, 128):
            cases.update(DEGRADATIONS)
        for name, degrade in cases.items():
            count = options.scenes if degrade is None else max(options.scenes // 4, 1)
            row = accuracy(scenes_for(f"{size}", count), size, degrade)
            readings[f"{size} {name}"] = row
            attributes = row["attributes"]
            assert isinstance(attributes, dict)
            worst = sorted(attributes.items(), key=lambda item: item[1])[:3]
            told = ", ".join(f"{attribute} {share:.4f}" for attribute, share in worst if share < 1)
            print(
                f"{size:>7} {name:>10} {count:>6} {row['right']:>7.4f} {row['interval']!s:>16} "
                f"{row['milliseconds']:>6.1f}  {told}"
            )
    wrong = false_accepts(64, max(options.scenes // 2, 4))
    print(f"\n{'wrong picture, 64 pixels':>25} {'n':>6} {'accepted':>9} {'95% interval':>16}")
    for name, entry in wrong.items():
        print(f"{name:>25} {entry['n']:>6} {entry['accepted']:>9.4f} {entry['interval']!s:>16}")
    clean = [readings[f"{size} clean"]["right"] for size in options.sizes if size >= 64]
    passed = speeds[128]["render"] >= LEAST_SPEED and all(float(str(right)) >= LEAST_RIGHT for right in clean)
    result = {
        "benchmark": "scenes",
        "machine": platform.machine(),
        "numpy": np.__version__,
        "scenes_per_second": speeds,
        "read_right": readings,
        "false_accepts": wrong,
        "limits": {"render_128_per_second": LEAST_SPEED, "clean_right": LEAST_RIGHT},
        "passed": passed,
    }
    print(json.dumps(result))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
