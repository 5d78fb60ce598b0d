"""Configurations: sizes, special tokens and behaviour switches of every part of the model.

Invariant: a saved folder's `config.json` holds all that is needed to rebuild the modules and their behaviour.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from transformers import PreTrainedConfig, Qwen2VLConfig

from vargpt.scales import ScaleSchedule


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


class DecoderConfig(PreTrainedConfig):
    """Sizes of the next-scale decoder (spec section 5).

    `hidden_size` is C, `unconditional_rows` the number of learned rows that stand in for a prompt, and `num_chunks`
    only groups the blocks in the published key names.
    """

    model_type = "vargpt_decoder"

    hidden_size: int = 2048
    num_heads: int = 16
    depth: int = 32
    num_chunks: int = 8
    level_embeddings: int = 15
    unconditional_rows: int = 512
    drop_path_rate: float = 0.1
    norm_eps: float = 1e-6
    mlp_ratio: int = 4

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 4:
            raise ValueError(
                f"the decoder width must be num_heads times a multiple of 4 (rows and columns are rotated in pairs), "
                f"got hidden_size={self.hidden_size} and num_heads={self.num_heads}"
            )
        if self.depth % self.num_chunks:
            raise ValueError(f"depth={self.depth} is not a multiple of num_chunks={self.num_chunks}")

    @property
    def ffn_size(self) -> int:
        """Hidden width of the feed-forward layers: mlp_ratio * C, rounded (half to even) to a multiple of 256."""
        return round(self.mlp_ratio * self.hidden_size / 256) * 256


@dataclass(frozen=True)
class Behaviour:
    """Named switches for the quirks of the published code (spec section 10), one field per quirk.

    Only quirks for which both behaviours are needed are here: parity with the published weights on one side, ours on
    the other. Everything else is done right always. The fields default to `vargpt`.
    """

    guidance_backbone: Literal["official", "history"] = "history"
    """Unconditional backbone call: each scale alone from position 0, or on the prompt-free conversation's cache."""
    guidance_context: Literal["official", "hidden"] = "hidden"
    """Unconditional cross-attention context: raw learned rows, or the projected prompt-free hidden states."""
    guidance_dropout: Literal["official", "conversation"] = "conversation"
    """What training drops for guidance: the start vector only, or prompt, context and start vector together."""
    text_targets: Literal["official", "assistant"] = "assistant"
    """Tokens with a text loss: all but image slots, or the assistant's only."""
    image_loss_weights: Literal["official", "per_scale"] = "per_scale"
    """Image loss: plain mean over bits, or the weights 1/sqrt(n_k) per token."""
    training_positions: Literal["official", "mrope"] = "mrope"
    """Positions in training: 0..T-1 on all axes, or M-RoPE as in generation."""
    image_positions: Literal["official", "continuous"] = "continuous"
    """First position of a generated image: the number of tokens so far, or the one after the last position."""
    image_slot_multiple: int = 1
    """The slots of an image are padded to a multiple of this (128 in the published data)."""
    cross_attention_dtype: Literal["model", "bfloat16"] = "model"
    """`bfloat16` rounds the inputs and the output of cross-attention as the published kernel does in float32."""
    dpo_logp_reduction: Literal["official", "scale_mean"] = "scale_mean"
    """Image log-probability for preferences: sum over all bits, or mean per scale summed over scales."""
    stray_token: Literal["official", "omit"] = "omit"
    """Whether generation reports the token that the published loop draws after the image start and never feeds."""
    pixel_rounding: Literal["official", "nearest"] = "nearest"
    """Floats to bytes by truncation, or to the nearest level."""
    image_resize: Literal["official", "single"] = "single"
    """Large images: shrink by nearest neighbour first, or one good resize from the original."""
    target_crop: Literal["official", "aspect"] = "aspect"
    """Targets of drawing: random square crop, or a centre crop to the nearest aspect template."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value, allowed = getattr(self, name), get_args(hint)
            if allowed and value not in allowed:
                raise ValueError(f"behaviour.{name} must be one of {', '.join(allowed)}, got {value!r}")
        if self.image_slot_multiple < 1:
            raise ValueError(f"behaviour.image_slot_multiple must be at least 1, got {self.image_slot_multiple}")

    @classmethod
    def official(cls) -> Behaviour:
        """Return the behaviour of the published code and weights, quirks included.

        Attention stays in the model's dtype (`cross_attention_dtype="model"`): the published rounding matters only
        for float32 models on kernels that have no float32 (spec 5.8).
        """
        return cls(
            guidance_backbone="official",
            guidance_context="official",
            guidance_dropout="official",
            text_targets="official",
            image_loss_weights="official",
            training_positions="official",
            image_positions="official",
            image_slot_multiple=128,
            dpo_logp_reduction="official",
            stray_token="official",
            pixel_rounding="official",
            image_resize="official",
            target_crop="official",
        )

    @classmethod
    def vargpt(cls) -> Behaviour:
        """Return the mended behaviour, the default of what we train."""
        return cls()

    @classmethod
    def from_any(cls, value: Behaviour | Mapping[str, Any] | str | None) -> Behaviour:
        """Build from a preset name, a mapping of switches (the rest default to `vargpt`) or an instance."""
        if value is None:
            return cls()
        if isinstance(value, Behaviour):
            return value
        if isinstance(value, str):
            presets = {"official": cls.official, "vargpt": cls.vargpt}
            if value not in presets:
                raise ValueError(f"unknown behaviour preset {value!r}: expected official or vargpt")
            return presets[value]()
        known = [field.name for field in dataclasses.fields(cls)]
        for name in value:
            if name not in known:
                raise ValueError(f"unknown behaviour switch {name!r}{nearest_hint(name, known)}")
        return cls(**value)


def nearest_hint(name: str, known: list[str]) -> str:
    """Return "; did you mean X?" for the nearest known name, or the list of names."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"


class VargptConfig(PreTrainedConfig):
    """Configuration of the unified model: three sub-configurations, token ids and behaviour.

    `num_scales` is the default pixel budget (7, 10, 12, 13 for the published ones). `behaviour` takes a preset name,
    a dict of switches or a `Behaviour`, and is stored as a `Behaviour`.
    """

    model_type = "vargpt"
    sub_configs: ClassVar[dict[str, Any]] = {
        "backbone": Qwen2VLConfig,
        "decoder": DecoderConfig,
        "image_tokenizer": ImageTokenizerConfig,
    }

    # None and dicts are accepted; after construction these hold instances.
    backbone: Qwen2VLConfig = None
    decoder: DecoderConfig = None  # type: ignore[assignment]
    image_tokenizer: ImageTokenizerConfig = None  # type: ignore[assignment]
    behaviour: Behaviour = None  # type: ignore[assignment]
    num_scales: int = 10
    image_gen_start_token_id: int = 151657
    image_gen_end_token_id: int = 151658
    image_gen_pad_token_id: int = 151659
    eos_token_id: int | list[int] | None = 151645
    pad_token_id: int | None = 151643
    image_loss_weight: float = 3.0
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for name, config_class in self.sub_configs.items():  # here, because transformers 5.17 leaves it to the class
            value = getattr(self, name)
            if not isinstance(value, PreTrainedConfig):
                setattr(self, name, config_class(**(value or {})))
        super().__post_init__(**kwargs)
        self.behaviour = Behaviour.from_any(self.behaviour)
        ids = (self.image_gen_start_token_id, self.image_gen_end_token_id, self.image_gen_pad_token_id)
        rows = self.backbone.text_config.vocab_size
        if len(set(ids)) < 3 or max(ids) >= rows or min(ids) < 0:
            raise ValueError(
                f"image_gen_start/end/pad_token_id must be three different ids below the {rows} embedding rows, "
                f"got {ids}"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from a saved dict; one in the published flat form is translated first (`from_official`)."""
        if config_dict.get("model_type") == VargptOfficialConfig.model_type:
            config_dict = _translate_official(config_dict)
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def from_official(
        cls,
        flat: Mapping[str, Any],
        decoder: DecoderConfig | None = None,
        image_tokenizer: ImageTokenizerConfig | None = None,
    ) -> VargptConfig:
        """Translate the published flat `config.json`; sizes that it does not hold are the published constants.

        A model of other sizes carries them in two more fields, `decoder` and `image_tokenizer`, as in our layout.
        """
        return cls(**_translate_official(flat, decoder, image_tokenizer))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict; `behaviour` becomes a dict of its switches."""
        output = super().to_dict()
        if isinstance(self.behaviour, Behaviour):
            output["behaviour"] = dataclasses.asdict(self.behaviour)
        return output

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the language model's configuration (what transformers asks for vocabulary and widths)."""
        del decoder, encoder
        return self.backbone.text_config

    def schedule(self, height: float | None = None, width: float | None = None) -> ScaleSchedule:
        """Return the schedule for an image of height x width (any unit; square by default) at this budget."""
        stride = self.image_tokenizer.stride
        if height is None or width is None:
            return ScaleSchedule.from_template(1.0, self.num_scales, stride)
        return ScaleSchedule.for_image(height, width, self.num_scales, stride)


class VargptOfficialConfig(VargptConfig):
    """The published configuration's type name; `from_dict` gives a plain `VargptConfig` with official behaviour."""

    model_type = "vargpt_qwen2_vl"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Translate the published flat form and build a `VargptConfig`."""
        return VargptConfig.from_dict({**config_dict, "model_type": cls.model_type}, **kwargs)


# Defaults of the published configuration class: what an absent field of its config.json means.
_OFFICIAL_VISION: dict[str, Any] = {
    "depth": 32,
    "embed_dim": 1280,
    "hidden_size": 3584,
    "num_heads": 16,
    "mlp_ratio": 4,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
    "hidden_act": "quick_gelu",
}
_OFFICIAL_TEXT: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 80,
    "use_sliding_window": False,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": None,
}
_OFFICIAL_BACKBONE_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}


def _translate_official(
    flat: Mapping[str, Any],
    decoder: DecoderConfig | None = None,
    image_tokenizer: ImageTokenizerConfig | None = None,
) -> dict[str, Any]:
    """Return the arguments of `VargptConfig` for a published flat configuration; unknown fields are ignored."""
    text = {name: flat.get(name, default) for name, default in _OFFICIAL_TEXT.items()}
    scaling = dict(flat.get("rope_scaling") or flat.get("rope_parameters") or {})
    theta = flat.get("rope_theta", scaling.get("rope_theta", 1e6))
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    sections = scaling.get("mrope_section", [head_dim // 8, 3 * head_dim // 16, 3 * head_dim // 16])
    if sum(sections) * 2 != head_dim:
        raise ValueError(f"rope_scaling.mrope_section {sections} must add up to half the head width {head_dim}")
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": float(theta), "mrope_section": list(sections)}
    if flat.get("tie_word_embeddings", False):
        raise ValueError("tie_word_embeddings=true is not a published VARGPT model: its lm_head is separate")
    saved_vision = flat.get("vision_config") or {}
    vision = {name: saved_vision.get(name, default) for name, default in _OFFICIAL_VISION.items()}
    special = flat.get("special_tokens") or {}
    backbone = {name: flat.get(name, default) for name, default in _OFFICIAL_BACKBONE_IDS.items()}
    translated: dict[str, Any] = {
        "backbone": Qwen2VLConfig(text_config=text, vision_config=vision, **backbone),
        "decoder": decoder or flat.get("decoder") or DecoderConfig(),
        "image_tokenizer": image_tokenizer or flat.get("image_tokenizer") or ImageTokenizerConfig(),
        "behaviour": Behaviour.official(),
        "image_gen_start_token_id": special.get("image_gen_start_token_id", 151657),
        "image_gen_end_token_id": special.get("image_gen_end_token_id", 151658),
        "image_gen_pad_token_id": special.get("image_gen_pad_token_id", 151659),
        "eos_token_id": text["eos_token_id"],
        "pad_token_id": text["bos_token_id"] if text["pad_token_id"] is None else text["pad_token_id"],
    }
    dtype = flat.get("dtype") or flat.get("torch_dtype")
    if dtype is not None:
        translated["dtype"] = dtype
    for name in ("attn_implementation", "_name_or_path", "name_or_path"):
        if flat.get(name) is not None:
            translated[name.removeprefix("_")] = flat[name]
    return translated
