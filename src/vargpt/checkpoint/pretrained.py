"""`VargptPreTrainedModel`: `from_pretrained` and `save_pretrained` of our models.

Invariant: `from_pretrained(save_pretrained(model))` is bit-exact, and a save is complete or did not happen.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from vargpt.checkpoint import tensor_files
from vargpt.checkpoint.loading import CONFIG_NAME, DeviceMap, load_model, read_config, resolve_folder, weights_of
from vargpt.configuration import VargptConfig


class VargptPreTrainedModel(PreTrainedModel):
    """Base class that reads the published layout as it is, and reads and writes ours."""

    config_class = VargptConfig

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: VargptConfig | None = None,
        dtype: str | torch.dtype | None = None,
        device_map: DeviceMap | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
        torch_dtype: str | torch.dtype | None = None,
        trust_remote_code: bool | None = None,
        adapter_kwargs: dict[str, Any] | None = None,
        _from_auto: bool = False,
    ) -> Self:
        """Load a folder or hub repository in the published or in our layout; returns the model in evaluation mode.

        Args:
            config: sizes to use instead of those of the folder's config.json.
            dtype: 'float32', 'bfloat16', a torch dtype, or None / 'auto' for the stored type.
            device_map: a device ('cuda', 0), a map of module names to devices, or 'auto' (needs accelerate).
            torch_dtype: the older name of `dtype`.
            trust_remote_code, adapter_kwargs, _from_auto: what the Auto classes pass along; no effect.

        Raises:
            ValueError: with all missing and unexpected keys and wrong shapes, or what is wrong with a file.
        """
        folder = resolve_folder(
            os.fspath(pretrained_model_name_or_path),
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            subfolder=subfolder,
        )
        return load_model(cls, folder, config, dtype if dtype is not None else torch_dtype, device_map)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        max_shard_size: int | str = "5GB",
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
    ) -> None:
        """Write config and weights in our layout; the folder is complete or unchanged when this returns or fails.

        Args:
            max_shard_size: bytes, or a text such as '5GB', above which the weights are split into several files.
            state_dict: weights to write instead of the model's own (e.g. gathered from several processes).
            is_main_process: False does nothing.
        """
        if not is_main_process:
            return
        named = weights_of(self)
        if state_dict is not None:
            unknown = sorted(set(state_dict) ^ set(named))
            if unknown:
                raise ValueError(f"state_dict must have the model's own keys, first difference: {unknown[0]}")
            named = {name: state_dict[name] for name in named}
        on_meta = [name for name, value in named.items() if value.is_meta]
        if on_meta:
            raise ValueError(
                f"{len(on_meta)} weights are on the meta device, first {on_meta[0]}: load them before saving"
            )
        layout = {name: (value.dtype, tuple(value.shape)) for name, value in named.items()}
        write_folder(Path(save_directory), own_config(self.config), layout, named, max_shard_size)


def own_config(config: VargptConfig) -> dict[str, Any]:
    """The config.json of our layout."""
    return {**config.to_dict(), "architectures": ["VargptForConditionalGeneration"]}


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    layout: tensor_files.Layout,
    tensors: Mapping[str, Tensor],
    max_shard_size: int | str = "5GB",
    extra_files: Mapping[str, Path] | None = None,
) -> None:
    """Write a model folder by way of a temporary one beside it.

    Args:
        layout: name -> (type, shape), in the order of writing.
        tensors: name -> tensor; looked up one at a time, so a lazy mapping streams.
        extra_files: file name -> file to move into the folder.

    Raises:
        ValueError: if `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder to write the model to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    shards = tensor_files.plan_shards(layout, tensor_files.parse_size(max_shard_size))
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for file_name, names in shards:
            tensor_files.write_file(scratch / file_name, names, layout, (tensors[name] for name in names))
        if len(shards) > 1:
            tensor_files.write_index(scratch / tensor_files.INDEX_NAME, shards, layout)
        for file_name, path in (extra_files or {}).items():
            os.replace(path, scratch / file_name)
        text = json.dumps(config, indent=2, sort_keys=True)
        (scratch / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
        read_config(scratch)
        publish(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(scratch: Path, folder: Path) -> None:
    """Move a finished scratch folder to its place; in an existing folder, replace our files and drop stale weights."""
    if not folder.exists():
        scratch.chmod(0o755)
        os.replace(scratch, folder)
        return
    written = {path.name for path in scratch.iterdir()}
    stale = [
        path
        for path in folder.iterdir()
        if path.name not in written
        and (path.name in (tensor_files.SINGLE_NAME, tensor_files.INDEX_NAME) or path.match("model-*-of-*.safetensors"))
    ]
    for path in sorted(scratch.iterdir(), key=lambda path: path.suffix == ".json"):
        os.replace(path, folder / path.name)
    for path in stale:
        path.unlink()
