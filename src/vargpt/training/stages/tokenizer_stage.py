"""The stage that trains the image tokenizer from scratch.

Invariant: which image stands at a position, and how it is flipped, zoomed and coloured, is a function of (seed, stage,
position) alone; step s takes positions s * batch_size and on, of which every rank gets its share.
Shapes: `images_B3HW` in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from vargpt.image_tokenizer.tokenizer import ImageTokenizer
from vargpt.image_tokenizer.training_loss import tokenizer_loss
from vargpt.processing.conversation import DrawSource
from vargpt.processing.images import open_image, target_pixels
from vargpt.scales import ScaleSchedule
from vargpt.training import distributed
from vargpt.training.recipes.schema import TokenizerStage
from vargpt.training.samples.examples import SampleStream
from vargpt.training.samples.image_cache import MAX_BYTES, RecentCache
from vargpt.training.steps import stream_seed

_EVALUATION_BATCH = 64


def load_targets(sources: Sequence[DrawSource | None], schedule: ScaleSchedule) -> Tensor:
    """Load images at the schedule's size as uint8 [n, 3, H, W] (kept as bytes: a quarter of the memory)."""
    height, width = schedule.image_size
    images = torch.empty(len(sources), 3, height, width, dtype=torch.uint8)
    for index, source in enumerate(sources):
        if source is None:
            raise ValueError("a sample to train the image tokenizer on has no picture")
        pixels = source if isinstance(source, Tensor) else target_pixels(open_image(source), schedule)
        images[index] = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return images


def to_signed(images_u8: Tensor) -> Tensor:
    """Bytes to float32 in [-1, 1]."""
    return images_u8.float() / 127.5 - 1


class TokenizerTask:
    """Reconstruction of the images that a stage's data draws (a `Task` of the trainer).

    All terms are means over the step's images but one: the usage of bits (`bit_usage`) is the entropy of an average
    over a micro-batch, so it depends on `micro_batch_size`.

    Args:
        stream: samples by position; the picture that a sample draws is taken.
        validation: pictures to reconstruct in evaluations.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        stream: SampleStream,
        validation: Sequence[DrawSource | None],
        schedule: ScaleSchedule,
        stage: TokenizerStage,
        seed: int,
    ) -> None:
        self.module = tokenizer
        self._stream, self._validation_images = stream, list(validation)
        self._schedule, self._stage, self._seed = schedule, stage, seed
        self._cache = RecentCache(MAX_BYTES)

    @cached_property
    def _validation(self) -> Tensor:
        """Read at the first evaluation: a finished stage needs no picture."""
        return load_targets(self._validation_images, self._schedule)

    def _image(self, position: int) -> Tensor:
        """The picture at a position, float32 [3, H, W]."""
        source = self._stream.at(position).conversation.drawings[0].image
        if not isinstance(source, Path):
            return to_signed(load_targets([source], self._schedule)[0])
        image = self._cache.get(source, lambda: load_targets([source], self._schedule)[0])
        assert isinstance(image, Tensor)
        return to_signed(image)

    def batch(self, step: int) -> list[Tensor]:
        """This rank's augmented images of a step, in micro-batches."""
        size = self._stage.loop.batch_size
        positions = [step * size + index for index in distributed.share(size)]
        images = []
        for position in positions:
            seed = stream_seed(self._seed, self._stage.name, position, "augment")
            images.append(self._augment(self._image(position), torch.Generator().manual_seed(seed)))
        return list(torch.stack(images).split(self._stage.loop.micro_batch_size)) if images else []

    def counts(self, batch: list[Tensor]) -> dict[str, float]:
        """The number of images."""
        return {"images": sum(len(images) for images in batch)}

    def _augment(self, image_3HW: Tensor, generator: torch.Generator) -> Tensor:
        stage = self._stage
        flip, permute, *box = torch.rand(5, generator=generator).tolist()
        if stage.flip and flip < 0.5:
            image_3HW = image_3HW.flip(-1)
        if permute < stage.permute_colours:
            image_3HW = image_3HW[torch.randperm(3, generator=generator)]
        if stage.zoom > 0:
            height, width = image_3HW.shape[1:]
            factor = 1 - stage.zoom * box[0]
            crop_h, crop_w = max(1, round(height * factor)), max(1, round(width * factor))
            top, left = int(box[1] * (height - crop_h + 1)), int(box[2] * (width - crop_w + 1))
            crop = image_3HW[None, :, top : top + crop_h, left : left + crop_w]
            size = (height, width)
            image_3HW = torch.nn.functional.interpolate(crop, size=size, mode="bilinear", antialias=True)[0]
        return image_3HW

    def loss(self, micro: Tensor, counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the tokenizer loss and its parts."""
        loss, parts = tokenizer_loss(self.module, micro, self._schedule, self._stage.loss.weights())
        share = len(micro) / counts["images"]
        return loss * share, {name: value * share for name, value in parts.items()}

    def evaluate(self) -> dict[str, float]:
        """Reconstruction of held-out images; empty without any."""
        if not len(self._validation):
            return {}
        psnr = torch.cat(list(reconstruction_psnr(self.module, self._validation, self._schedule)))
        return {"psnr": float(psnr.mean())}


def reconstruction_psnr(tokenizer: ImageTokenizer, images_u8: Tensor, schedule: ScaleSchedule) -> Iterator[Tensor]:
    """Yield, batch by batch, the PSNR in dB of each image after encode and decode (8-bit output, peak 255)."""
    with torch.no_grad():
        for images in images_u8.split(_EVALUATION_BATCH):
            decoded = tokenizer.decode(tokenizer.encode(to_signed(images), schedule).canvas_Bdhw)
            levels = ((decoded + 1) * 127.5).round()
            error = (levels - images.float()).square().mean((1, 2, 3))
            yield 10 * torch.log10(255.0**2 / error.clamp_min(1e-6))
