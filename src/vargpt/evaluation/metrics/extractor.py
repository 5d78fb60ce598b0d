"""The feature extractor behind the Fréchet distance: a small network that knows what is in a scene.

Invariant: features of a picture depend on its pixels and on the weights in `extractor.safetensors` alone; the weights
are a function of the command's options (on one machine and version of torch), and their hash goes into every result.

    python -m vargpt.evaluation.metrics.extractor --output extractor.safetensors [--folder DIR]

It sees 64 x 64 pixels (other sizes are resampled: by area where larger) and was trained to name the shapes, colours,
textures, pairs of colour and shape, number of things and background of scenes, to give a 4 x 4 thumbnail of any
picture, and to say how blurred and how noisy a picture is. All of that must pass through 64 numbers: the features. Each
has mean 0 and standard deviation 1 over the training pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vargpt.data.folder import read_folder
from vargpt.data.scenes.render import render
from vargpt.data.scenes.sampler import sample_scene
from vargpt.data.scenes.world import BACKGROUNDS, COLOURS, MAX_THINGS, SHAPES, TEXTURES, Scene, Split
from vargpt.inference.pictures import write_atomically

SIDE = 64
FEATURES = 64
WEIGHTS = Path(__file__).with_name("extractor.safetensors")
THUMBNAIL = 4

HEADS = {
    "shapes": len(SHAPES),
    "colours": len(COLOURS),
    "textures": len(TEXTURES),
    "pairs": len(COLOURS) * len(SHAPES),
    "count": MAX_THINGS + 1,
    "background": len(BACKGROUNDS),
    "thumbnail": 3 * THUMBNAIL * THUMBNAIL,
    "blur": 1,
    "noise": 1,
}
"""What is asked of the features, and how many numbers answer it."""

_PRESENT = ("shapes", "colours", "textures", "pairs")
_ONE_OF = ("count", "background")
_WEIGHTS = {"shapes": 2.0, "colours": 2.0, "textures": 1.0, "pairs": 8.0, "count": 0.5, "background": 0.5,
            "thumbnail": 2.0, "blur": 1.0, "noise": 1.0}  # fmt: skip
_HIDDEN = 96
_BLURS = (0.0, 0.5, 1.0, 2.0)
"""Standard deviations of training's blur, in pixels of 64."""

_NOISE = 32.0
"""Largest standard deviation of training's noise, in 8-bit levels."""


class Extractor(nn.Module):
    """Five convolutions, means over quarters and maxima over all, one linear layer to the features; heads on top."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 48, 96, 128)
        strides = (2, 2, 1, 2, 1)
        layers: list[nn.Module] = []
        for wide_in, wide_out, stride in zip(widths, widths[1:], strides, strict=False):
            layers += [
                nn.Conv2d(wide_in, wide_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(wide_out), nn.ReLU()
            ]  # fmt: skip
        self.convolutions = nn.Sequential(*layers)
        self.features = nn.Linear(5 * widths[-1], FEATURES)
        self.hidden = nn.Linear(FEATURES, _HIDDEN)
        self.heads = nn.Linear(_HIDDEN, sum(HEADS.values()))

    def forward(self, signed_B3HW: Tensor) -> Tensor:
        """Features [B, 64] of pictures [B, 3, 64, 64] in [-1, 1]."""
        return self.pooled(self.grid(signed_B3HW))

    def grid(self, signed_B3HW: Tensor) -> Tensor:
        """What is seen in each of 8 x 8 places, [B, 128, 8, 8]."""
        return self.convolutions(signed_B3HW.contiguous(memory_format=torch.channels_last))

    def pooled(self, grid: Tensor) -> Tensor:
        """Features [B, 64] of the places."""
        quarters = F.avg_pool2d(grid, grid.shape[-1] // 2).flatten(1)
        return self.features(torch.cat([quarters, grid.amax((2, 3))], 1))

    def answers(self, features: Tensor) -> dict[str, Tensor]:
        """What the heads say, by name of the head: logits, or numbers for `thumbnail`, `blur` and `noise`."""
        out = self.heads(F.relu(self.hidden(features)))
        return dict(zip(HEADS, out.split(list(HEADS.values()), 1), strict=True))


@lru_cache(maxsize=2)
def load_extractor(path: Path = WEIGHTS) -> Extractor:
    """The trained network, in float32 on the CPU, ready to use.

    Raises:
        ValueError: the file is missing or holds another network.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; make it with python -m vargpt.evaluation.metrics.extractor --output")
    network = Extractor()
    stored = {name: tensor.float() for name, tensor in load_file(path).items()}
    expected = {name: tuple(tensor.shape) for name, tensor in _weights(network).items()}
    found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(f"{path}: not the extractor's weights (first difference: {wrong[0]}); make the file again")
    network.load_state_dict(stored, strict=False)
    return network.eval().requires_grad_(False)


def extractor_hash(path: Path = WEIGHTS) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the weights' file, for the conditions of a result."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def features_of(images_nHW3: Tensor, path: Path = WEIGHTS, batch_size: int = 128) -> Tensor:
    """Features float32 [n, 64] of pictures uint8 [n, H, W, 3], computed on the CPU so that they do not depend on it.

    Raises:
        ValueError: for another type or shape.
    """
    if images_nHW3.dtype != torch.uint8 or images_nHW3.ndim != 4 or images_nHW3.shape[-1] != 3:
        raise ValueError(
            f"expected pictures uint8 [n, H, W, 3], got {images_nHW3.dtype} {tuple(images_nHW3.shape)}"
        )  # fmt: skip
    network = load_extractor(path)
    parts = [network(signed_input(part)) for part in images_nHW3.cpu().split(batch_size)]
    return torch.cat(parts) if parts else torch.zeros(0, FEATURES)


def signed_input(images_nHW3: Tensor) -> Tensor:
    """Pictures uint8 [n, H, W, 3] as the network takes them: [n, 3, 64, 64] in [-1, 1]."""
    signed = images_nHW3.permute(0, 3, 1, 2).float() / 127.5 - 1
    height, width = signed.shape[2:]
    if (height, width) == (SIDE, SIDE):
        return signed
    if min(height, width) >= SIDE:
        return F.interpolate(signed, size=(SIDE, SIDE), mode="area")
    return F.interpolate(signed, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


def _weights(network: Extractor) -> dict[str, Tensor]:
    """All weights and running statistics that are kept."""
    return {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}


@dataclass(frozen=True)
class _Batch:
    """Training pictures [B, 3, 64, 64] with what is asked of them; folder pictures have `known` False.

    `things` are rows of picture, row and column of 8, shape, colour, texture.
    """

    images: Tensor
    targets: dict[str, Tensor]
    known: Tensor
    things: Tensor


def attributes(scene: Scene) -> dict[str, NDArray[np.float32]]:
    """What is in a scene: 0 or 1 for each shape, colour, texture and pair; the index of count and background."""
    found = {name: np.zeros(HEADS[name], np.float32) for name in _PRESENT}
    colours = tuple(COLOURS)
    for thing in scene.things:
        shape, colour = SHAPES.index(thing.shape), colours.index(thing.colour)
        found["shapes"][shape] = found["colours"][colour] = 1
        found["textures"][TEXTURES.index(thing.texture)] = 1
        found["pairs"][colour * len(SHAPES) + shape] = 1
    found["count"] = np.array(len(scene.things), np.float32)
    found["background"] = np.array(BACKGROUNDS.index(scene.background), np.float32)
    return found


_SPLITS: tuple[Split, ...] = ("train", "unseen")


def batches(purpose: str, count: int, size: int, folder: Sequence[Tensor], damage: bool) -> Iterator[_Batch]:
    """`count` batches of `size` pictures; an eighth of them from the folder's pictures where there are any.

    Args:
        purpose: part of every seed, so that training and test scenes differ.
        damage: blur and noise for most pictures, by levels that become targets.
    """
    from_folder = size // 8 if folder else 0
    for number in range(count):
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(
            f"extractor {purpose} {number}".encode()).digest()[:6], "big"))  # fmt: skip
        scenes = [
            sample_scene(f"extractor {purpose} {number} {index}", _SPLITS[index % 2])
            for index in range(size - from_folder)
        ]
        pictures = [torch.from_numpy(render(scene, SIDE, SIDE)) for scene in scenes]
        picked = torch.randint(max(len(folder), 1), (from_folder,), generator=generator)
        pictures += [folder[int(index)] for index in picked]
        levels = torch.stack(pictures).permute(0, 3, 1, 2).float()
        facts = [attributes(scene) for scene in scenes]
        targets = {name: torch.from_numpy(np.stack([fact[name] for fact in facts])) for name in (*_PRESENT, *_ONE_OF)}
        targets["thumbnail"] = F.adaptive_avg_pool2d(levels / 127.5 - 1, THUMBNAIL).flatten(1)
        blur = torch.zeros(size, dtype=torch.long)
        noise = torch.zeros(size)
        if damage:
            blur = torch.randint(len(_BLURS), (size,), generator=generator)
            blur[torch.rand(size, generator=generator) < 0.5] = 0
            noise = (torch.rand(size, generator=generator) * 2 - 1).clamp_min(0) * _NOISE
            for level, sigma in enumerate(_BLURS[1:], 1):
                levels[blur == level] = gaussian_blur(levels[blur == level], sigma)
            levels = levels + torch.randn(levels.shape, generator=generator) * noise[:, None, None, None]
        targets["blur"] = torch.tensor(_BLURS)[blur][:, None]
        targets["noise"] = noise[:, None] / 10
        images = levels.round().clamp(0, 255) / 127.5 - 1
        yield _Batch(images, targets, torch.arange(size) < len(scenes), places(scenes))


def places(scenes: Sequence[Scene]) -> Tensor:
    """All things of scenes: picture, row and column of 8, indices of shape, colour and texture, int64 [n, 6]."""
    colours = tuple(COLOURS)
    rows = [
        (number, min(int(8 * thing.y), 7), min(int(8 * thing.x), 7),
         SHAPES.index(thing.shape), colours.index(thing.colour), TEXTURES.index(thing.texture))
        for number, scene in enumerate(scenes)
        for thing in scene.things
    ]  # fmt: skip
    return torch.tensor(rows, dtype=torch.long).view(-1, 6)


def gaussian_blur(images_n3HW: Tensor, sigma: float) -> Tensor:
    """Blur with a Gaussian of `sigma` pixels, edges repeated."""
    reach = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (weights / weights.sum()).to(images_n3HW)
    rows = kernel.view(1, 1, -1, 1).expand(3, 1, -1, 1)
    padded = F.pad(images_n3HW, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, rows, groups=3), rows.transpose(2, 3), groups=3)


def loss_of(answers: dict[str, Tensor], batch: _Batch) -> Tensor:
    """Weighted sum of the heads' losses; what is in a folder picture is not asked."""
    total = torch.zeros(())
    for name, answer in answers.items():
        target = batch.targets[name]
        if name in _PRESENT:
            loss = F.binary_cross_entropy_with_logits(answer[batch.known], target)
        elif name in _ONE_OF:
            loss = F.cross_entropy(answer[batch.known], target.long())
        else:
            loss = F.mse_loss(answer, target)
        total = total + _WEIGHTS[name] * loss
    return total


def local_loss(answers_B19hw: Tensor, things: Tensor) -> Tensor:
    """Loss of naming shape, colour and texture of every thing at its own place. Training only: it learns far faster."""
    picture, row, column = things[:, :3].T
    at_things = answers_B19hw[picture, :, row, column].split([len(SHAPES), len(COLOURS), len(TEXTURES)], 1)
    losses = [F.cross_entropy(answer, things[:, 3 + index]) for index, answer in enumerate(at_things)]
    return torch.stack(losses).sum()


def train(steps: int, size: int, folder: Sequence[Tensor], seed: int = 0, learning_rate: float = 3e-3) -> Extractor:
    """Train from scratch: AdamW, warm-up, cosine to zero; then every feature is scaled to mean 0, deviation 1."""
    torch.manual_seed(seed)
    network = Extractor()
    local = nn.Conv2d(network.features.in_features // 5, len(SHAPES) + len(COLOURS) + len(TEXTURES), 1)
    parameters = [*network.parameters(), *local.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    started = time.monotonic()
    for step, batch in enumerate(batches(f"train {seed}", steps, size, folder, damage=True)):
        share = min((step + 1) / 50, 0.5 * (1 + math.cos(math.pi * step / steps)))
        optimiser.param_groups[0]["lr"] = learning_rate * share
        grid = network.grid(batch.images)
        at_places = local_loss(local(grid), batch.things)
        loss = loss_of(network.answers(network.pooled(grid)), batch) + at_places
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        if (step + 1) % 100 == 0:
            seconds = time.monotonic() - started
            print(f"step {step + 1}: loss {loss.item():.3f}, at places {at_places.item():.3f}, {seconds:.0f} s",
                  file=sys.stderr)  # fmt: skip
    return standardised(network.eval(), [batch.images for batch in batches("scale", 40, size, folder, damage=True)])


@torch.no_grad()
def standardised(network: Extractor, pictures: Sequence[Tensor]) -> Extractor:
    """Move scale and mean of the features into the layers around them; the heads answer as before."""
    seen = torch.cat([network(images) for images in pictures])
    mean, deviation = seen.mean(0), seen.std(0)
    network.hidden.bias.add_(network.hidden.weight @ mean)
    network.hidden.weight.mul_(deviation)
    network.features.weight.div_(deviation[:, None])
    network.features.bias.copy_((network.features.bias - mean) / deviation)
    return network


@torch.no_grad()
def accuracies(network: Extractor, scenes: int = 2048) -> dict[str, float]:
    """Share of fresh clean scenes whose shapes (colours, ...) are all named right, by head."""
    right = dict.fromkeys((*_PRESENT, *_ONE_OF), 0)
    size = min(scenes, 64)
    for batch in batches("test", scenes // size, size, (), damage=False):
        for name, answer in network.answers(network(batch.images)).items():
            if name in _PRESENT:
                right[name] += int(((answer > 0) == batch.targets[name].bool()).all(1).sum())
            elif name in _ONE_OF:
                right[name] += int((answer.argmax(1) == batch.targets[name]).sum())
    return {name: hits / (scenes // size * size) for name, hits in right.items()}


def main(arguments: list[str] | None = None) -> int:
    """Train, test and write the weights (16-bit floats); returns the exit status."""
    parser = argparse.ArgumentParser(prog="vargpt.evaluation.metrics.extractor", description="Train the extractor.")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--folder", type=Path, help="also learn the look of these pictures (metadata.jsonl)")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test-scenes", type=int, default=2048, help="fresh scenes to measure it on")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pictures = folder_pictures(options.folder) if options.folder else []
    network = train(options.steps, options.batch_size, pictures, options.seed)
    # Kept in 16 bits: the file is half as large, and what is measured is what is kept.
    kept = {name: tensor.half().contiguous() for name, tensor in _weights(network).items()}
    write_atomically(options.output, save(kept))
    measured = accuracies(load_extractor(options.output), options.test_scenes)
    print(
        f"{options.output}: {options.output.stat().st_size / 1e3:.0f} kB, hash {extractor_hash(options.output)}, "
        f"{time.process_time():.0f} s of CPU time"
    )
    told = ", ".join(f"{name} {share:.1%}" for name, share in measured.items())
    print(f"right on {options.test_scenes} fresh scenes: {told}")
    return 0


def folder_pictures(path: Path) -> list[Tensor]:
    """All training pictures of a folder, uint8 [64, 64, 3]."""
    folder = read_folder(path)
    pictures = []
    for record in folder.split_images("train"):
        levels = torch.from_numpy(np.array(folder.load(record.file_name), dtype=np.uint8))
        signed = signed_input(levels[None])[0]
        pictures.append(((signed + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).contiguous())
    return pictures


if __name__ == "__main__":
    sys.exit(main())
