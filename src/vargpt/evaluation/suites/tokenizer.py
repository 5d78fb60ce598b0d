"""The image tokenizer measured by itself: pictures are written as bits and decoded, no word is read or said.

Invariant: a scene or picture is the same at every size and for every model, by its key; the numbers of one task are of
one kind of picture at one size.

    psnr, ssim       against the original, 8-bit levels
    read-right       the checker reads the reconstruction right in everything (`data/scenes/agreement.py`);
                     `read-original` is the same for the originals, the most that can be had
    frechet          distance between all originals and all reconstructions, by our own extractor
    bits-used, bits-needed, tokens/scale-i, bits/scale-i
                     entropies of the bits: `vargpt.evaluation.metrics.codes`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vargpt.data.folder import ImageFolder, Part
from vargpt.data.scenes.agreement import is_right
from vargpt.data.scenes.render import render
from vargpt.data.scenes.sampler import sample_scene
from vargpt.data.scenes.words import short_caption
from vargpt.data.scenes.world import Scene, Split
from vargpt.evaluation.harness import Suite, take
from vargpt.evaluation.intervals import Estimate
from vargpt.evaluation.metrics.codes import code_estimates
from vargpt.evaluation.metrics.extractor import FEATURES, extractor_hash, features_of
from vargpt.evaluation.metrics.frechet import frechet_estimate
from vargpt.evaluation.metrics.image_quality import psnr, ssim
from vargpt.evaluation.reading import in_words
from vargpt.evaluation.subject import Subject
from vargpt.evaluation.task import Judged, Measure
from vargpt.processing.images import open_image, target_pixels
from vargpt.sampling import pixels_to_uint8
from vargpt.scales import ScaleSchedule

_SPLITS: tuple[Split, ...] = ("train", "validation", "unseen")


@dataclass(frozen=True)
class Original:
    """A picture to write as bits: a scene, or a file. One of the two is set."""

    key: str
    words: str
    scene: Scene | None = None
    path: Path | None = None

    def pixels(self, schedule: ScaleSchedule) -> Tensor:
        """The picture at the schedule's size, uint8 [H, W, 3]."""
        height, width = schedule.image_size
        if self.scene is not None:
            return torch.from_numpy(render(self.scene, height, width))
        assert self.path is not None
        return pixels_to_uint8(target_pixels(open_image(self.path), schedule)[None])[0]


def scene_originals(count: int, seed: int = 0, aspect: float = 1.0) -> list[Original]:
    """Fresh scenes in turn of the training part, of the part set aside and with unseen combinations."""
    found = []
    for index in range(count):
        split = _SPLITS[index % len(_SPLITS)]
        key = f"{split} {index}"
        scene = sample_scene(f"evaluation {seed} tokenizer {key}", split, aspect=aspect)
        found.append(Original(key, short_caption(scene), scene))
    return found


def folder_originals(folder: ImageFolder, part: Part, limit: int | None = None) -> list[Original]:
    """Pictures of one part of a folder, evenly spread where there are more than `limit`."""
    return [
        Original(record.file_name, record.text, path=folder.path(record.file_name))
        for record in take(folder.split_images(part), limit)
    ]


class Reconstruction:
    """Encode and decode pictures of one kind at one size.

    Args:
        kind: names the pictures in the measures' names (`scenes`, `validation`), `title` in words.
        originals: all scenes, or all files.
    """

    def __init__(self, kind: str, title: str, originals: Sequence[Original], schedule: ScaleSchedule) -> None:
        height, width = schedule.image_size
        self.name = f"tokenizer/{kind}/{size_name(schedule)}"
        self.title = f"{title}, {width}×{height}"
        self.originals, self.schedule = originals, schedule
        self.scenes = all(original.scene is not None for original in originals)
        self.measures: Sequence[Measure] = self._measures()

    def _measures(self) -> list[Measure]:
        name, title, sizes = self.name, self.title, self.schedule.sizes
        reading = [
            Measure(f"{name}/read-right", f"{title}: checker right after reconstruction"),
            Measure(f"{name}/read-original", f"{title}: checker right on the originals", higher_is_better=None),
        ]
        scales = [(f"scale-{index}", f"scale {index} ({h}×{w})") for index, (h, w) in enumerate(sizes, 1)]
        return [
            Measure(f"{name}/psnr", f"{title}: PSNR", "dB"),
            Measure(f"{name}/ssim", f"{title}: SSIM", "number"),
            *(reading if self.scenes else []),
            Measure(f"{name}/frechet", f"{title}: Fréchet distance to the originals", "number", False),
            Measure(f"{name}/bits-used", f"{title}: bits used"),
            Measure(f"{name}/bits-needed", f"{title}: bits needed, of those written"),
            *(
                Measure(f"{name}/tokens/{key}", f"{title}: entropy of a token in bits, {text}", "number", None)
                for key, text in scales
            ),
            *(
                Measure(f"{name}/bits/{key}", f"{title}: entropy of a bit, {text}", "number", None)
                for key, text in scales
            ),
        ]

    def examples(self) -> Sequence[Original]:
        """The pictures."""
        return self.originals

    def judge(self, subject: Subject, examples: Sequence[Original]) -> list[Judged]:
        """Encode, decode and compare."""
        originals = torch.stack([example.pixels(self.schedule) for example in examples])
        results, bits = subject.reconstructions(originals, self.schedule)
        values = {"psnr": psnr(originals, results).tolist(), "ssim": ssim(originals, results).tolist()}
        answers = [""] * len(examples)
        if self.scenes:
            scenes = [example.scene for example in examples if example.scene is not None]
            seen = subject.read(results)
            values["read-right"] = [float(is_right(*pair)) for pair in zip(scenes, seen, strict=True)]
            before = subject.read(originals)
            values["read-original"] = [float(is_right(*pair)) for pair in zip(scenes, before, strict=True)]
            answers = [in_words(reading) for reading in seen]
        features = torch.cat([features_of(originals), features_of(results)], 1)
        return [
            Judged(
                key=example.key,
                values={f"{self.name}/{measure}": numbers[index] for measure, numbers in values.items()},
                prompt=example.words,
                answer=answers[index],
                pictures={"original": originals[index], "reconstruction": results[index]},
                features=pack(features[index], bits[index]),
            )
            for index, example in enumerate(examples)
        ]

    def overall(self, judged: Sequence[Judged]) -> dict[str, Estimate]:
        """The Fréchet distance and the statistics of the bits; no distance for a single picture."""
        unpacked = [
            unpack(example.features, self.schedule.num_tokens) for example in judged if example.features is not None
        ]
        features = np.stack([item[0] for item in unpacked])
        found = code_estimates(np.stack([item[1] for item in unpacked]), self.schedule.lengths)
        if len(features) > 1:
            found["frechet"] = frechet_estimate(features[:, :FEATURES], features[:, FEATURES:])
        return {f"{self.name}/{name}": value for name, value in found.items()}


def pack(features: Tensor, bits_Ld: Tensor) -> Tensor:
    """Features of a picture and of its reconstruction, and its bits, in few bytes: all examples' are kept."""
    packed = np.packbits(bits_Ld.numpy().astype(np.uint8), axis=1)
    width = np.array([bits_Ld.shape[1]], np.int32)
    parts = (width, features.numpy().astype(np.float32), packed.reshape(-1))
    return torch.from_numpy(np.concatenate([part.view(np.uint8) for part in parts]))


def unpack(packed: Tensor, tokens: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Undo `pack`: float32 [128] and bits uint8 [L, d]."""
    data = packed.numpy()
    width, end = int(data[:4].view(np.int32)[0]), 4 + 8 * FEATURES
    features = data[4:end].view(np.float32)
    bits = np.unpackbits(data[end:].reshape(tokens, -1), axis=1, count=width)
    return features, bits


def size_name(schedule: ScaleSchedule) -> str:
    """`128`, or `96x128` (height x width) where the sides differ."""
    height, width = schedule.image_size
    return str(height) if height == width else f"{height}x{width}"


def tokenizer_suite(
    schedules: Sequence[ScaleSchedule],
    scenes: int = 300,
    folder: ImageFolder | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Suite:
    """All tasks: scenes, and both parts of a folder where there is one, at each size.

    Args:
        scenes: how many fresh scenes; 0 for none.
        limit: of the pictures of each part of the folder.

    Raises:
        ValueError: neither scenes nor pictures, or no size.
    """
    tasks: list[Reconstruction] = []
    for schedule in schedules:
        height, width = schedule.image_size
        if scenes:
            originals = scene_originals(scenes, seed, width / height)
            tasks.append(Reconstruction("scenes", "Scenes", originals, schedule))
        parts: tuple[tuple[Part, str], ...] = (("validation", "Pictures set aside"), ("train", "Pictures trained on"))
        for part, title in parts if folder is not None else ():
            assert folder is not None
            if files := folder_originals(folder, part, limit):
                tasks.append(Reconstruction(part, title, files, schedule))
    if not tasks:
        raise ValueError("nothing to reconstruct: ask for at least one scene or give a folder, at one size or more")
    first = tasks[0].name
    headline = [f"{first}/{name}" for name in ("psnr", "ssim", "read-right", "frechet", "bits-used")]
    return Suite(
        "tokenizer",
        "Image tokenizer",
        tasks,
        tuple(name for name in headline if name in {measure.name for measure in tasks[0].measures}),
        {"seed": seed, "scenes": scenes, "extractor": extractor_hash()},
        (
            "Fréchet distances are of our own extractor (docs/evaluation.md) and depend on the number of pictures; "
            "they compare with each other, not with published ones.",
            "Entropies are of what was seen: n draws show at most log2(n) bits.",
        ),
    )
