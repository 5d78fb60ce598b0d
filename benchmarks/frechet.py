"""What the Fréchet distance of our extractor says: `python benchmarks/frechet.py [--scenes 1000] [--folder DIR]`.

Invariant: both sets are fresh scenes (seeds that no training uses), independent of each other; the same command gives
the same numbers. The first line of the table is the floor: the distance of two samples of one kind. Then one of them is
spoilt more and more. It prints a table and, last, one line of JSON; exit status 1 if a worse picture is ever nearer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vargpt.data.folder import read_folder
from vargpt.data.scenes.render import render
from vargpt.data.scenes.sampler import sample_scene
from vargpt.evaluation.metrics.extractor import accuracies, extractor_hash, features_of, gaussian_blur, load_extractor
from vargpt.evaluation.metrics.frechet import frechet_distance
from vargpt.processing.images import target_pixels
from vargpt.sampling import pixels_to_uint8
from vargpt.scales import ScaleSchedule

Change = Callable[[Tensor, float], Tensor]


def scenes(purpose: str, count: int, side: int) -> Tensor:
    """Fresh scenes, uint8 [n, side, side, 3]."""
    return torch.stack(
        [torch.from_numpy(render(sample_scene(f"frechet {purpose} {i}"), side, side)) for i in range(count)]
    )


def pictures(folder: Path, side: int) -> Tensor:
    """All pictures of a folder, uint8 [n, side, side, 3]."""
    data = read_folder(folder)
    schedule = ScaleSchedule.for_image(1, 1, 1, side)
    return torch.stack(
        [pixels_to_uint8(target_pixels(data.load(item.file_name), schedule)[None])[0] for item in data.images]
    )


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `sigma` pixels of 64."""
    blurred = gaussian_blur(images.permute(0, 3, 1, 2).float(), sigma * images.shape[1] / 64)
    return blurred.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def noise(images: Tensor, deviation: float) -> Tensor:
    """Gaussian noise in 8-bit levels."""
    added = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * deviation
    return (images + added).round().clamp(0, 255).to(torch.uint8)


def wrong_colours(images: Tensor, share: float) -> Tensor:
    """Red, green and blue exchanged in a share of the pictures."""
    changed = images.clone()
    count = round(share * len(images))
    changed[:count] = images[:count].roll(1, -1)
    return changed


def fewer(images: Tensor, kept: float) -> Tensor:
    """A share `kept` of the pictures, repeated."""
    return images[torch.arange(len(images)) % max(round(kept * len(images)), 1)]


def half_wrong(images: Tensor, share: float) -> Tensor:
    """The lower half of another picture in a share of the pictures: things cut through, wrong layouts."""
    changed = images.clone()
    count, middle = round(share * len(images)), images.shape[1] // 2
    changed[:count, middle:] = images.roll(1, 0)[:count, middle:]
    return changed


CHANGES: dict[str, tuple[Change, tuple[float, ...]]] = {
    "blur, px of 64": (blur, (0.35, 0.7, 1.4, 2.8)),
    "noise, levels": (noise, (4, 8, 16, 32)),
    "share with wrong colours": (wrong_colours, (0.05, 0.2, 0.5, 1.0)),
    "share cut in two": (half_wrong, (0.05, 0.2, 0.5, 1.0)),
    "share of diversity kept": (fewer, (0.2, 0.05, 0.02, 0.005)),
}
"""What is done to the second set, mildest first."""


def table(first: Tensor, second: Tensor) -> dict[str, dict[str, float]]:
    """Distance of the second set, as it is and spoilt, to the first."""
    reference = features_of(first).numpy()
    floor = frechet_distance(reference, features_of(second).numpy())
    found = {"none": {"0": round(floor, 4)}}
    for name, (change, amounts) in CHANGES.items():
        found[name] = {
            f"{amount:g}": round(frechet_distance(reference, features_of(change(second, amount)).numpy()), 4)
            for amount in amounts
        }
    return found


def is_monotonic(found: dict[str, dict[str, float]]) -> bool:
    """Whether every worse set is farther away, and the floor nearest."""
    floor = found["none"]["0"]
    rows = [list(values.values()) for name, values in found.items() if name != "none"]
    return all(floor < row[0] and all(a < b for a, b in zip(row, row[1:], strict=False)) for row in rows)


def show(title: str, found: dict[str, dict[str, float]]) -> None:
    """Print one table."""
    print(f"\n{title}")
    for name, values in found.items():
        print(f"{name:>26}  " + "   ".join(f"{amount:>5}: {value:8.3f}" for amount, value in values.items()))


def main() -> int:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--side", type=int, default=64, help="pixels of the scenes")
    parser.add_argument("--folder", type=Path, help="pictures (metadata.jsonl), halved at random, as a second table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = accuracies(load_extractor())
    print("extractor", extractor_hash(), ", ".join(f"{name} {share:.1%}" for name, share in measured.items()))
    tables = {"scenes": table(*(scenes(half, options.scenes, options.side) for half in ("first", "second")))}
    show(f"scenes, {options.side} pixels, n = {options.scenes} against {options.scenes}", tables["scenes"])
    floors = {}
    for count in (100, 300, 1000, 3000):
        both = (features_of(scenes(f"{half} {count}", count, options.side)).numpy() for half in ("a", "b"))
        floors[str(count)] = round(frechet_distance(*both), 4)
    print("\nfloor by n: " + ", ".join(f"{count}: {value:.3f}" for count, value in floors.items()))
    if options.folder is not None:
        everything = pictures(options.folder, options.side)
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(everything)))
        half = len(everything) // 2
        tables["folder"] = table(everything[order[:half]], everything[order[half : 2 * half]])
        show(f"folder, n = {half} against {half}", tables["folder"])
    passed = all(is_monotonic(found) for found in tables.values())
    result = {
        "benchmark": "frechet",
        "extractor": extractor_hash(),
        "scenes": options.scenes,
        "side": options.side,
        "accuracies": measured,
        "tables": tables,
        "floors": floors,
        "passed": passed,
    }
    print(json.dumps(result))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
