"""Initial values for training from scratch.

The published code re-initialises every Linear and Embedding with std 0.02 (spec 5.11); its decoder started from other
weights, so that rule was never used to train. For new models we choose values under which the first forward is sane at
any width: each block adds a small, unit-gated update, the modulation starts as the identity, the bit logits near 0.
"""

from __future__ import annotations

import math

from torch import nn
from transformers import initialization as init

from vargpt.image_tokenizer import ImageTokenizer
from vargpt.model.blocks import Block, CrossAttention, SelfAttention
from vargpt.model.decoder import NextScaleDecoder, RMSNorm


def initialise_module(module: nn.Module) -> bool:
    """Initialise one of our modules in place; return False for a module that transformers should handle.

    transformers calls this for children before parents, so a parent may overwrite what its children got.
    """
    if isinstance(module, (nn.Conv2d, nn.GroupNorm, ImageTokenizer)):
        return True  # the autoencoder keeps torch's own initialisation
    if isinstance(module, nn.Linear):
        _fan_in(module)
    elif isinstance(module, RMSNorm):
        init.ones_(module.weight)
    elif isinstance(module, SelfAttention):
        init.zeros_(module.q_bias)
        init.zeros_(module.v_bias)
        init.constant_(module.log_scale, math.log(4.0))
    elif isinstance(module, CrossAttention):
        init.zeros_(module.v_bias)
    elif isinstance(module, Block):
        init.zeros_(module.modulation_offset)
        init.ones_(module.modulation_offset[:2])  # both gates open
    elif isinstance(module, NextScaleDecoder):
        _initialise_decoder(module)
    else:
        return False
    return True


def initialise_connections(
    start_embedding_C: nn.Parameter, in_projection: nn.Linear, lm_head: nn.Linear, embedding_std: float
) -> None:
    """Initialise what joins the parts: image slots enter the backbone at about the size of token embeddings."""
    init.normal_(start_embedding_C, std=start_embedding_C.shape[0] ** -0.5)
    init.normal_(in_projection.weight, std=embedding_std)
    init.normal_(lm_head.weight, std=embedding_std)


def _fan_in(linear: nn.Linear, gain: float = 1.0) -> None:
    init.normal_(linear.weight, std=gain * linear.in_features**-0.5)
    if linear.bias is not None:
        init.zeros_(linear.bias)


def _initialise_decoder(decoder: NextScaleDecoder) -> None:
    width = decoder.config.hidden_size
    init.trunc_normal_(decoder.unconditional, std=1.2 * width**-0.5)
    init.trunc_normal_(decoder.start_position, std=(3 * width) ** -0.5)
    init.normal_(decoder.level_embedding.weight, std=width**-0.5)
    init.normal_(decoder.word_embed.weight, std=1.0)  # codes have unit length over their d channels
    init.zeros_(decoder.shared_modulation.weight)
    init.zeros_(decoder.head_modulation.weight)
    init.normal_(decoder.head.weight, std=0.02)
    gain = (3 * decoder.config.depth) ** -0.5
    for block in decoder.block_list():
        for projection in (block.self_attention.proj, block.cross_attention.proj, block.ffn.fc2):
            _fan_in(projection, gain)
