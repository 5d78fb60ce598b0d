"""Initial values for training an image tokenizer from scratch.

Codes have entries of 1/sqrt(d), far below the unit scale that default convolution weights expect; without this the
decoder hardly sees its input at first and the commitment term can pull every latent to one code (docs/log.md).
"""

from __future__ import annotations

import torch

from vargpt.image_tokenizer.tokenizer import ImageTokenizer


@torch.no_grad()
def initialize(tokenizer: ImageTokenizer) -> None:
    """Scale the two convolutions around the quantiser so that latents start near the size of a code."""
    scale = tokenizer.config.bits**0.5
    tokenizer.decoder.conv_in.weight.mul_(scale)
    tokenizer.encoder.conv_out.weight.mul_(3.0 / scale)
    for convolution in (tokenizer.decoder.conv_in, tokenizer.encoder.conv_out):
        assert convolution.bias is not None
        convolution.bias.zero_()
