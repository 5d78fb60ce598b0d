"""The stage that trains the image tokenizer from scratch.

Invariant: which image stands at a position, and how it is flipped, zoomed and coloured, is a function of (seed, stage,
position) alone; step s takes positions s * batch_size and on, of which every rank gets its share, at the s-th size in
turn. Shapes: `images_B3HW` in [-1, 1]; on their way to the device pictures are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from vargpt.data.loader import Loader
from vargpt.image_tokenizer.tokenizer import ImageTokenizer
from vargpt.image_tokenizer.training_loss import tokenizer_loss
from vargpt.processing.conversation import DrawSource
from vargpt.processing.images import open_image, target_pixels, to_bytes, to_signed_pixels
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
        images[index] = to_bytes(pixels)
    return images


class TokenizerTask:
    """Reconstruction of the images that a stage's data draws (a `Task` of the trainer).

    All terms are means over the step's images but one: the usage of bits (`bit_usage`) is the entropy of an average
    over a micro-batch, so it depends on `micro_batch_size`.

    Args:
        stream: samples by position; the picture that a sample draws is taken.
        validation: pictures to reconstruct in evaluations.
        schedules: grids that steps take turns between.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        stream: SampleStream,
        validation: Sequence[DrawSource | None],
        schedules: Sequence[ScaleSchedule],
        stage: TokenizerStage,
        seed: int,
    ) -> None:
        self.module = tokenizer
        self._stream, self._validation_images = stream, list(validation)
        self._schedules, self._stage, self._seed = list(schedules), stage, seed
        self._cache = RecentCache(MAX_BYTES)
        self._loader = Loader(self._images, stage.workers, end=stage.loop.stop_at or stage.loop.steps)

    @cached_property
    def _validation(self) -> list[Tensor]:
        """The held-out pictures at each size, read at the first evaluation: a finished stage needs none."""
        return [load_targets(self._validation_images, schedule) for schedule in self._schedules]

    def _image(self, position: int, schedule: ScaleSchedule) -> Tensor:
        """The picture at a position, uint8 [3, H, W]."""
        source = self._stream.at(position).conversation.drawings[0].image
        if not isinstance(source, Path):
            return load_targets([source], schedule)[0]
        image = self._cache.get((source, schedule), lambda: load_targets([source], schedule)[0])
        assert isinstance(image, Tensor)
        return image

    def batch(self, step: int) -> list[Tensor]:
        """This rank's augmented images of a step, float32 in micro-batches on the tokenizer's device."""
        device = self.module.encoder.conv_in.weight.device
        images = self._loader.get(step)
        return [to_signed_pixels(part.to(device)) for part in images.split(self._stage.loop.micro_batch_size)]

    def _images(self, step: int) -> Tensor:
        """This rank's augmented images of a step, uint8 [n, 3, H, W]; `workers` processes make them ahead."""
        size, schedule = self._stage.loop.batch_size, self._schedules[step % len(self._schedules)]
        images = torch.empty(len(distributed.share(size)), 3, *schedule.image_size, dtype=torch.uint8)
        for number, index in enumerate(distributed.share(size)):
            position = step * size + index
            seed = stream_seed(self._seed, self._stage.name, position, "augment")
            images[number] = self._augment(self._image(position, schedule), torch.Generator().manual_seed(seed))
        return images

    def close(self) -> None:
        """Stop preparing pictures ahead."""
        self._loader.close()

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
            crop = to_signed_pixels(image_3HW[None, :, top : top + crop_h, left : left + crop_w])
            size = (height, width)
            image_3HW = to_bytes(torch.nn.functional.interpolate(crop, size=size, mode="bilinear", antialias=True)[0])
        return image_3HW

    def loss(self, micro: Tensor, counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's share of the tokenizer loss and its parts."""
        schedule = next(s for s in self._schedules if s.image_size == tuple(micro.shape[2:]))
        loss, parts = tokenizer_loss(self.module, micro, schedule, self._stage.loss.weights())
        share = len(micro) / counts["images"]
        return loss * share, {name: value * share for name, value in parts.items()}

    def evaluate(self) -> dict[str, float]:
        """Reconstruction of held-out images at the stage's size, and at the others by side; empty without any."""
        if not self._validation_images:
            return {}
        values = {}
        for number, (images, schedule) in enumerate(zip(self._validation, self._schedules, strict=True)):
            psnr = torch.cat(list(reconstruction_psnr(self.module, images, schedule)))
            values["psnr" if number == 0 else f"psnr_{schedule.image_size[0]}"] = float(psnr.mean())
        return values


def reconstruction_psnr(tokenizer: ImageTokenizer, images_u8: Tensor, schedule: ScaleSchedule) -> Iterator[Tensor]:
    """Yield, batch by batch, the PSNR in dB of each image after encode and decode (8-bit output, peak 255)."""
    device = tokenizer.encoder.conv_in.weight.device
    with torch.no_grad():
        for images in images_u8.to(device).split(_EVALUATION_BATCH):
            decoded = tokenizer.decode(tokenizer.encode(to_signed_pixels(images), schedule).canvas_Bdhw)
            levels = ((decoded + 1) * 127.5).round()
            error = (levels - images.float()).square().mean((1, 2, 3))
            yield 10 * torch.log10(255.0**2 / error.clamp_min(1e-6))
