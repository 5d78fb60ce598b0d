"""From a recipe to an untrained model and its processor.

Invariant: the same recipe and data give bitwise the same initial weights, whatever is trained afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import Qwen2VLConfig

from vargpt.configuration import DecoderConfig, ImageTokenizerConfig, VargptConfig
from vargpt.data.instructions import template_texts
from vargpt.image_tokenizer import ImageTokenizer
from vargpt.image_tokenizer.initialization import initialize
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.processing.processor import VargptProcessor
from vargpt.processing.text import SpecialIds
from vargpt.training.recipes.schema import Recipe

_ROPE_THETA = 10_000.0


def build_processor(recipe: Recipe, texts: Iterable[str]) -> VargptProcessor:
    """Train the text tokenizer on the data's words and set the sizes of images to understand."""
    area = recipe.model.vision.image_side**2
    return VargptProcessor.train(
        [*texts, *template_texts()],
        recipe.text_tokenizer.vocab_size,
        patch_size=recipe.model.vision.patch_size,
        min_pixels=area,
        max_pixels=area,
        behaviour=recipe.model.switched(),
        system_prompt=recipe.text_tokenizer.system_prompt,
    )


def build_config(recipe: Recipe, processor: VargptProcessor) -> VargptConfig:
    """Translate the recipe's sizes and the processor's token ids into the model's configuration."""
    return config_of(recipe, processor.special, len(processor.tokenizer))


def config_of(recipe: Recipe, special: SpecialIds, vocabulary: int) -> VargptConfig:
    """The model's configuration for these token ids and so many embedding rows."""
    vision, text = recipe.model.vision, recipe.model.backbone
    backbone = Qwen2VLConfig(
        text_config={
            **text.model_dump(exclude={"mrope_section"}),
            "vocab_size": vocabulary,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": _ROPE_THETA, "mrope_section": text.mrope_section,
            },
            "bos_token_id": special.endoftext,
            "eos_token_id": special.im_end,
            "pad_token_id": special.endoftext,
        },
        vision_config={**vision.model_dump(exclude={"image_side"}), "hidden_size": text.hidden_size},
        image_token_id=special.image_pad,
        video_token_id=special.video_pad,
        vision_start_token_id=special.vision_start,
        vision_end_token_id=special.vision_end,
    )  # fmt: skip
    return VargptConfig(
        backbone=backbone,
        decoder=DecoderConfig(num_chunks=1, **recipe.model.decoder.model_dump()),
        image_tokenizer=ImageTokenizerConfig(**recipe.model.image_tokenizer.model_dump()),
        behaviour=recipe.model.switched(),
        num_scales=recipe.schedule.num_scales,
        image_gen_start_token_id=special.image_gen_start,
        image_gen_end_token_id=special.image_gen_end,
        image_gen_pad_token_id=special.image_gen_pad,
        eos_token_id=special.im_end,
        pad_token_id=special.endoftext,
    )


def build_model(recipe: Recipe, processor: VargptProcessor) -> VargptForConditionalGeneration:
    """Make the untrained model in float32; the image tokenizer has its own seed stream."""
    config = build_config(recipe, processor)
    torch.manual_seed(recipe.seed + 1)
    model = VargptForConditionalGeneration(config)
    torch.manual_seed(recipe.seed)
    tokenizer = ImageTokenizer(config.image_tokenizer)
    initialize(tokenizer)
    model.image_tokenizer.load_state_dict(tokenizer.state_dict())
    return model
