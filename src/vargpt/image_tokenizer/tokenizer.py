"""`ImageTokenizer`: pixels to K scales of bits and back.

Invariant: `decode(encode(images).canvas)` is the reconstruction, and summing the codes of the labels over the
scales with `advance` gives that canvas again. The latent and the canvas are float32 whatever the weights' dtype.
Shapes: `images_B3HW` in [-1, 1]; `labels_BLd` uint8; `next_inputs_BMd`; `canvas_Bdhw`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vargpt.configuration import ImageTokenizerConfig
from vargpt.image_tokenizer import pyramid
from vargpt.image_tokenizer.autoencoder import Decoder, Encoder
from vargpt.scales import ScaleSchedule


@dataclass(frozen=True)
class ScaleBits:
    """An image as scales of bits, with what a next-scale model is fed while it predicts them."""

    labels_BLd: Tensor
    next_inputs_BMd: Tensor
    canvas_Bdhw: Tensor


class ImageTokenizer(nn.Module):
    """Multi-scale binary image tokenizer."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def features(self, images_B3HW: Tensor) -> Tensor:
        """Return the latent before quantisation, float32 [B, d, H/stride, W/stride].

        Raises:
            ValueError: if the images are not [B, 3, H, W] with sides that are multiples of the stride.
        """
        stride = self.config.stride
        if (
            images_B3HW.ndim != 4
            or images_B3HW.shape[1] != 3
            or any(s % stride or not s for s in images_B3HW.shape[2:])
        ):
            raise ValueError(
                f"expected images [B, 3, H, W] with H and W multiples of {stride}, got {tuple(images_B3HW.shape)}"
            )
        dtype = self.encoder.conv_in.weight.dtype
        return self.encoder(images_B3HW.to(dtype)).float()

    def quantize(self, latent_Bdhw: Tensor, schedule: ScaleSchedule, flips_BLd: Tensor | None = None) -> ScaleBits:
        """Write a latent as bits; `flips_BLd` (bool) are bit errors to inject (spec 4.4)."""
        if tuple(latent_Bdhw.shape[2:]) != schedule.grid:
            height, width = schedule.image_size
            raise ValueError(
                f"the schedule ends at grid {schedule.grid} ({height}x{width} pixels), got a latent of grid "
                f"{tuple(latent_Bdhw.shape[2:])}; resize the image or choose its schedule with ScaleSchedule.for_image"
            )
        labels, inputs, canvas, _ = pyramid.encode_latent(latent_Bdhw, schedule, flips_BLd)
        return ScaleBits(labels, inputs, canvas)

    @torch.no_grad()
    def encode(self, images_B3HW: Tensor, schedule: ScaleSchedule, flips_BLd: Tensor | None = None) -> ScaleBits:
        """Write images in [-1, 1] as bits."""
        return self.quantize(self.features(images_B3HW), schedule, flips_BLd)

    def advance(
        self, canvas_Bdhw: Tensor | None, bits_Bld: Tensor, scale_index: int, schedule: ScaleSchedule
    ) -> tuple[Tensor, Tensor | None]:
        """Add one scale to the canvas; see `pyramid.advance`."""
        return pyramid.advance(canvas_Bdhw, bits_Bld, scale_index, schedule)

    def canvas(self, bits_BLd: Tensor, schedule: ScaleSchedule) -> Tensor:
        """Sum the codes of all scales into the canvas that `decode` takes."""
        total: Tensor | None = None
        for scale_index in range(schedule.num_scales):
            total, _ = self.advance(total, bits_BLd[:, schedule.slice(scale_index)], scale_index, schedule)
        assert total is not None
        return total

    def decode(self, canvas_Bdhw: Tensor) -> Tensor:
        """Return float32 images [B, 3, H, W] in [-1, 1]."""
        dtype = self.decoder.conv_in.weight.dtype
        return self.decoder(canvas_Bdhw.to(dtype)).float().clamp(-1, 1)
