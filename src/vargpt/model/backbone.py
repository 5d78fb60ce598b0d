"""The backbone: transformers' Qwen2-VL by composition, with our masks and our positions.

Invariant: positions and the attention mask are always passed explicitly (as 4-D bool masks to SDPA), so nothing
inside transformers guesses them and no rope state on the module matters.

Legend: `B T D` rows, columns, width · `Q` new columns of a call · `S` columns in the cache plus the new ones.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers import Cache, Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel, Qwen2VLTextModel

from vargpt.model.vision import image_features, prepare_vision


def build_backbone(config: Qwen2VLConfig) -> Qwen2VLModel:
    """Build the vision tower and language model with SDPA attention."""
    if "sliding_attention" in config.text_config.layer_types:
        raise ValueError("sliding-window attention is not supported: set use_sliding_window to false")
    config._attn_implementation = "sdpa"
    model = Qwen2VLModel(config)
    prepare_vision(model.visual)
    return model


def causal_mask(valid_BS: Tensor, new_columns: int) -> Tensor:
    """Return the mask of a call that appends `new_columns` to a history, bool [B, 1, Q, S], True = may attend.

    A column sees itself, all earlier columns and no padding. A column that would see nothing (left padding) sees
    itself, which keeps its softmax finite; its value is never used.

    Args:
        valid_BS: bool, False on padding, over history and new columns together.
    """
    total = valid_BS.shape[1]
    causal = torch.ones(new_columns, total, dtype=torch.bool, device=valid_BS.device).tril(total - new_columns)
    mask = causal & valid_BS[:, None, None, :]
    itself = torch.eye(total, dtype=torch.bool, device=valid_BS.device)[total - new_columns :]
    return mask | (itself & ~mask.any(-1, keepdim=True))


_CACHE_ARGUMENT = "cache" if "cache" in inspect.signature(Qwen2VLTextModel.forward).parameters else "past_key_values"
"""Newer versions of transformers call it `cache` and warn about the older name; 5.17 knows the older one only."""


def run_language_model(
    backbone: Qwen2VLModel,
    embeddings_BQD: Tensor,
    position_ids_3BQ: Tensor,
    mask_B1QS: Tensor,
    cache: Cache | None = None,
) -> Tensor:
    """Return hidden states after the final norm, [B, Q, D]; a cache is extended in place."""
    output = backbone.language_model(
        inputs_embeds=embeddings_BQD,
        position_ids=position_ids_3BQ,
        attention_mask={"full_attention": mask_B1QS},
        use_cache=cache is not None,
        **{_CACHE_ARGUMENT: cache},
    )
    return output.last_hidden_state


def embed_tokens(
    backbone: Qwen2VLModel, input_ids_BT: Tensor, pixel_values: Tensor | None, image_grid_thw: Tensor | None
) -> Tensor:
    """Return token embeddings [B, T, D] with the vision features of all images at their `<|image_pad|>` columns."""
    embeddings = backbone.language_model.embed_tokens(input_ids_BT)
    if pixel_values is None:
        return embeddings
    assert image_grid_thw is not None
    features = image_features(backbone.visual, pixel_values, image_grid_thw)
    is_feature = (input_ids_BT == backbone.config.image_token_id)[..., None].expand_as(embeddings)
    return embeddings.masked_scatter(is_feature, features.to(embeddings.dtype))
