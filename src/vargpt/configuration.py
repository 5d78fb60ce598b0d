"""Configurations: sizes, special tokens and behaviour switches of every part of the model.

Invariant: a saved folder's `config.json` holds all that is needed to rebuild the modules and their behaviour.
"""

from __future__ import annotations

from transformers import PreTrainedConfig


class ImageTokenizerConfig(PreTrainedConfig):
    """Sizes of the convolutional image tokenizer (spec section 4).

    `bits` is d, the latent channels and bits per token. `channel_multipliers` times `base_channels` are the widths
    of the levels; a 2x down-sampling follows every level but the last ones until `stride` is reached, counting the
    space-to-depth stem of `patch_size` pixels (1, the published model, has no stem).
    """

    model_type = "vargpt_image_tokenizer"

    bits: int = 32
    base_channels: int = 128
    channel_multipliers: list[int] | tuple[int, ...] = (1, 2, 4, 4, 4)
    num_res_blocks: int = 2
    stride: int = 16
    patch_size: int = 1
