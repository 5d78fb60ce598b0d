"""Images of training conversations, prepared once: patches to read, pictures to draw and their tokenizer latents.

Invariant: what comes out does not depend on what was asked before. On a CPU, and where latents are kept on the disk,
every latent is computed alone (one image per call of the tokenizer), so a run that resumes with an empty cache sees
bitwise the same values. On an accelerator, which would wait most of the time, a micro-batch's pictures are encoded
together; which those are is a function of the step.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from vargpt.data.latents import LatentCache, encoder_fingerprint
from vargpt.image_tokenizer import ImageTokenizer
from vargpt.processing.conversation import DrawSource, UnderstandSource
from vargpt.processing.images import PreparedImage, to_bytes, to_signed_pixels
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule

Picture = Path | Tensor
"""A picture to draw on its way to the tokenizer: a file whose latent is looked up, or pixels [3, H, W] at the size of
their schedule, uint8 or float32 in [-1, 1]."""

_BATCHES_OF = 128
"""Pictures that are encoded together are filled up to a multiple of this."""

MAX_BYTES = 2 << 30
"""Memory that each of the two caches may take; the least recently used go first."""


class RecentCache:
    """A mapping of tensors that forgets the least recently used beyond a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._lock = threading.Lock()
        self._items: OrderedDict[Hashable, PreparedImage | Tensor] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], PreparedImage | Tensor]) -> PreparedImage | Tensor:
        """The value of a key, made where it is not there (any more); two threads may make the same one."""
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
                return self._items[key]
        value = make()
        with self._lock:
            if key not in self._items:
                self._items[key] = value
                self._bytes += _size(value)
            while self._bytes > self._max_bytes and len(self._items) > 1:
                self._bytes -= _size(self._items.popitem(last=False)[1])
        return value


class ImageCache:
    """Prepares images and keeps those that come from files.

    Args:
        tokenizer: the image tokenizer, frozen while the cache lives.
        disk: a folder that keeps latents between runs (`vargpt.data.latents`), or None.
        max_bytes: memory for patches, and again for latents or for pictures.
    """

    def __init__(
        self,
        processor: VargptProcessor,
        tokenizer: ImageTokenizer,
        disk: Path | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._processor, self.tokenizer = processor, tokenizer
        self._disk = disk
        self._patches, self._latents = RecentCache(max_bytes), RecentCache(max_bytes)
        self._pictures = RecentCache(max_bytes)

    def patches(self, source: UnderstandSource) -> PreparedImage:
        """The image as patches to understand."""
        if not isinstance(source, Path):
            return self._processor.understand(source, training=True)
        value = self._patches.get(str(source), lambda: self._processor.understand(source, training=True))
        assert isinstance(value, PreparedImage)
        return value

    @property
    def _device(self) -> torch.device:
        return self.tokenizer.encoder.conv_in.weight.device

    @property
    def encodes_together(self) -> bool:
        """Whether the pictures of a micro-batch go through the tokenizer as one batch."""
        return self._device.type != "cpu" and self._disk is None

    def picture(self, source: DrawSource, schedule: ScaleSchedule, offset: tuple[float, float]) -> Picture:
        """What `latents` takes for an image; it needs no tokenizer, so other processes can make it."""
        if isinstance(source, Tensor):
            return self._processor.target(source, schedule)
        if not isinstance(source, Path):
            return to_bytes(self._processor.target(source, schedule, offset=offset))
        if not self.encodes_together:
            return source

        def load() -> Tensor:
            return to_bytes(self._processor.target(source, schedule, offset=offset))

        value = self._pictures.get((str(source), schedule, offset), load)
        assert isinstance(value, Tensor)
        return value

    @torch.no_grad()
    def latents(
        self, pictures: Sequence[Picture] | Tensor, schedule: ScaleSchedule, offsets: Sequence[tuple[float, float]]
    ) -> Tensor:
        """Tokenizer features of pictures [n, d, h, w], on the tokenizer's device."""
        if not self.encodes_together:
            rows = [
                self.latent(_signed(picture), schedule, offset)
                for picture, offset in zip(pictures, offsets, strict=True)
            ]
            return torch.stack(rows).to(self._device)
        if not isinstance(pictures, Tensor):
            signed = [_signed(picture) for picture in pictures]
            pictures = torch.stack([picture for picture in signed if isinstance(picture, Tensor)])
        count = len(pictures)
        # Kernels of convolutions are chosen anew for every size of a batch, which takes longer than to run them.
        padded = torch.cat([pictures, pictures[:1].expand(-count % _BATCHES_OF, -1, -1, -1)])
        with torch.autocast(self._device.type, enabled=False):
            return self.tokenizer.features(_signed_tensor(padded.to(self._device, non_blocking=True)))[:count]

    def latent(self, source: DrawSource, schedule: ScaleSchedule, offset: tuple[float, float] = (0.5, 0.5)) -> Tensor:
        """Tokenizer features of an image at the schedule's size, float32 [d, h, w] on the CPU."""
        if not isinstance(source, Path):
            return self._features(source, schedule, offset)
        key = (str(source), schedule, offset)
        value = self._latents.get(key, lambda: self._features(source, schedule, offset))
        assert isinstance(value, Tensor)
        return value

    @torch.no_grad()
    def _features(self, source: DrawSource, schedule: ScaleSchedule, offset: tuple[float, float]) -> Tensor:
        pixels_3HW = self._processor.target(source, schedule, offset=offset)
        if self._stored is None:
            return self._encode(pixels_3HW)
        return self._stored.get(pixels_3HW, lambda: self._encode(pixels_3HW))

    @cached_property
    def _stored(self) -> LatentCache | None:
        """Opened when the first latent is wanted: by then the tokenizer is what it will be for the whole stage."""
        return None if self._disk is None else LatentCache(self._disk, encoder_fingerprint(self.tokenizer))

    def flush(self) -> None:
        """Write the latents of this run that the disk does not have yet."""
        if self._disk is not None and self._stored is not None:
            self._stored.flush()

    @torch.no_grad()
    def _encode(self, pixels_3HW: Tensor) -> Tensor:
        device = self._device
        with torch.autocast(device.type, enabled=False):  # evaluations run under autocast, batches are made outside
            return self.tokenizer.features(pixels_3HW[None].to(device))[0].cpu()


def _signed(picture: Picture) -> Picture:
    return picture if isinstance(picture, Path) else _signed_tensor(picture)


def _signed_tensor(pixels: Tensor) -> Tensor:
    return to_signed_pixels(pixels) if pixels.dtype == torch.uint8 else pixels


def _size(value: PreparedImage | Tensor) -> int:
    tensor = value.patches if isinstance(value, PreparedImage) else value
    return tensor.numel() * tensor.element_size()
