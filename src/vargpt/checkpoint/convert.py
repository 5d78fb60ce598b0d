"""Convert model folders between the published layout and ours, tensor by tensor and bit-exactly.

Invariant: official -> vargpt -> official gives the same tensors, bit for bit. What our model does not have (unused
parameters, the start table, buffers, the published config) is kept beside our weights in side files that loading
ignores; where they are absent, export fills in the documented initial values (spec 5.11).

    vargpt convert SOURCE DESTINATION --to vargpt|official
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vargpt.checkpoint import tensor_files
from vargpt.checkpoint.loading import (
    CONFIG_NAME,
    EXTRAS_NAME,
    OFFICIAL_CONFIG_NAME,
    Source,
    official_sources,
    read_config,
    resolve_folder,
    stored_dtype,
)
from vargpt.checkpoint.official_keys import KeyEntry, is_official, official_key_table
from vargpt.checkpoint.pretrained import own_config, write_folder
from vargpt.checkpoint.strict import check_keys
from vargpt.checkpoint.tensor_files import StoredTensor
from vargpt.configuration import DecoderConfig, ImageTokenizerConfig, VargptConfig, VargptOfficialConfig

_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth"}
_TEXT_FIELDS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "attention_dropout",
    "initializer_range",
    "use_cache",
    "bos_token_id",
]
_VISION_FIELDS = [
    "depth",
    "embed_dim",
    "hidden_size",
    "mlp_ratio",
    "num_heads",
    "in_channels",
    "patch_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "hidden_act",
]
_ID_FIELDS = ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"]
_OWN_FILES = {CONFIG_NAME, OFFICIAL_CONFIG_NAME, tensor_files.INDEX_NAME}


def convert(source: str | Path, destination: str | Path, to: str = "vargpt", max_shard_size: int | str = "5GB") -> Path:
    """Write the model in `source` (folder or hub repository) to `destination` in the other layout.

    Other small files of the folder (text tokenizer, image processor, ...) are copied. Memory: one tensor at a time.

    Returns:
        The destination folder.

    Raises:
        ValueError: if the source is no whole model of the other layout, or the layout cannot express it.
    """
    folder, target = resolve_folder(source), Path(destination)
    if to not in ("vargpt", "official"):
        raise ValueError(f"to is 'vargpt' or 'official', got {to!r}")
    if target.resolve() == folder.resolve():
        raise ValueError(f"the destination {target} is the source: choose another folder")
    config = read_config(folder)
    stored = tensor_files.list_folder(folder)
    if is_official(stored) == (to == "official"):
        raise ValueError(f"{folder} is already in the {to} layout, nothing to convert")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-extras-", dir=target.parent) as scratch:
        if to == "vargpt":
            _to_vargpt(folder, target, config, stored, Path(scratch), max_shard_size)
        else:
            _to_official(folder, target, config, stored, max_shard_size)
    _copy_other_files(folder, target)
    return target


def _to_vargpt(
    folder: Path,
    target: Path,
    config: VargptConfig,
    stored: Mapping[str, StoredTensor],
    scratch: Path,
    max_shard_size: int | str,
) -> None:
    sources = official_sources(str(folder), config, stored)
    layout = {name: (item.stored.dtype, item.shape) for name, item in sources.items()}
    makers = {
        name: (lambda item=item: item.stored.read(item.rows).reshape(item.shape)) for name, item in sources.items()
    }
    kept = [
        entry.official
        for entry in official_key_table(config)
        if entry.official in stored and (entry.ours is None or entry.rows is not None)
    ]
    extras_layout = {name: (stored[name].dtype, stored[name].shape) for name in kept}
    tensor_files.write_file(scratch / EXTRAS_NAME, kept, extras_layout, (stored[name].read() for name in kept))
    shutil.copyfile(folder / CONFIG_NAME, scratch / OFFICIAL_CONFIG_NAME)
    extra_files = {name: scratch / name for name in (EXTRAS_NAME, OFFICIAL_CONFIG_NAME)}
    write_folder(target, own_config(config), layout, tensor_files.LazyTensors(makers), max_shard_size, extra_files)


def _own(source: Source) -> Tensor:
    return source.stored.read(source.rows).reshape(source.shape)


def _to_official(
    folder: Path, target: Path, config: VargptConfig, stored: Mapping[str, StoredTensor], max_shard_size: int | str
) -> None:
    table = official_key_table(config)
    check_keys(
        str(folder),
        {name: tensor.shape for name, tensor in stored.items()},
        {entry.ours: entry.shape for entry in table if entry.ours is not None},
    )
    extras_path = folder / EXTRAS_NAME
    extras = tensor_files.list_tensors(extras_path) if extras_path.is_file() else {}
    fill_dtype = stored_dtype(stored)
    layout, makers = {}, {}
    for entry in table:
        kept = extras.get(entry.official)
        if kept is not None and kept.shape[1:] != entry.official_shape[1:]:
            raise ValueError(
                f"{extras_path} belongs to another model: {entry.official} has shape {list(kept.shape)}, "
                f"expected {list(entry.official_shape)}; delete it to export with initial values"
            )
        own = stored[entry.ours] if entry.ours is not None else None
        dtype = own.dtype if own is not None else kept.dtype if kept is not None else fill_dtype
        if entry.initial == "powers":
            dtype = torch.int64
        shape = kept.shape if kept is not None else entry.official_shape
        layout[entry.official] = (dtype, shape)
        makers[entry.official] = partial(_export, entry, own, kept, dtype)
    write_folder(target, _official_config(folder, config), layout, tensor_files.LazyTensors(makers), max_shard_size)
    if (folder / OFFICIAL_CONFIG_NAME).is_file():
        shutil.copyfile(folder / OFFICIAL_CONFIG_NAME, target / CONFIG_NAME)  # the same values, byte for byte


def _export(entry: KeyEntry, own: StoredTensor | None, kept: StoredTensor | None, dtype: torch.dtype) -> Tensor:
    whole = kept.read() if kept is not None else None
    if own is None:
        return entry.initial_value(dtype) if whole is None else whole
    return entry.to_official(own.read(), whole)


def _official_config(folder: Path, config: VargptConfig) -> dict[str, Any]:
    """The published config.json: the original where it was kept, else made from ours."""
    original = folder / OFFICIAL_CONFIG_NAME
    if original.is_file():
        return json.loads(original.read_text(encoding="utf-8"))
    return official_config(config)


def official_config(config: VargptConfig) -> dict[str, Any]:
    """Our config in the published flat form.

    Decoder and image tokenizer sizes are constants of the published code; only those of other models are written.
    """
    backbone = config.backbone
    text, vision = backbone.text_config.to_dict(), backbone.vision_config.to_dict()
    rope = text["rope_parameters"]
    flat = {name: text[name] for name in _TEXT_FIELDS}
    ids = {
        f"image_gen_{kind}_token_id": getattr(config, f"image_gen_{kind}_token_id") for kind in ("start", "end", "pad")
    }
    sizes = {
        name: value.to_dict()
        for name, value, published in (
            ("decoder", config.decoder, DecoderConfig()),
            ("image_tokenizer", config.image_tokenizer, ImageTokenizerConfig()),
        )
        if value.to_dict() != published.to_dict()
    }
    return {
        **flat,
        **sizes,
        **{name: getattr(backbone, name) for name in _ID_FIELDS},
        "architectures": ["VARGPTQwen2VLForConditionalGeneration"],
        "model_type": VargptOfficialConfig.model_type,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "rope_scaling": {"type": "mrope", "mrope_section": list(rope["mrope_section"])},
        "rope_theta": rope["rope_theta"],
        "special_tokens": {**{f"image_gen_{kind}": f"<|image_gen_{kind}|>" for kind in ("start", "end", "pad")}, **ids},
        "tie_word_embeddings": False,
        "vision_config": {name: vision[name] for name in _VISION_FIELDS},
    }


def _copy_other_files(folder: Path, target: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix not in _WEIGHT_SUFFIXES and path.name not in _OWN_FILES:
            shutil.copyfile(path, target / path.name)
