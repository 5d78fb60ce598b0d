"""Build a model from a folder: modules on the meta device, then one tensor after the other put in its place.

Invariant: memory peaks at the model's own size plus one piece of a tensor, and either every weight comes from the
checkpoint or loading stops with the list of what does not fit (`strict.check_keys`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from torch import Tensor, nn
from transformers import PreTrainedModel

from vargpt.checkpoint.official_keys import is_official, official_key_table
from vargpt.checkpoint.strict import check_keys
from vargpt.checkpoint.tensor_files import StoredTensor, list_folder
from vargpt.configuration import VargptConfig, VargptOfficialConfig

Model = TypeVar("Model", bound=PreTrainedModel)
DeviceMap = str | int | torch.device | Mapping[str, str | int | torch.device]

CONFIG_NAME = "config.json"
EXTRAS_NAME = "official-extras.safetensors"
OFFICIAL_CONFIG_NAME = "official-config.json"

_PIECE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Source:
    """Where one of our weights comes from: a stored tensor, or some of its rows."""

    stored: StoredTensor
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None

    def load(self, dtype: torch.dtype, device: torch.device, scratch: Tensor) -> Tensor:
        """Read into new memory on `device`; where the type differs, piece by piece through `scratch` (uint8).

        One scratch for all tensors: pieces of their own would leave holes between the weights in the heap.
        """
        if self.stored.dtype == dtype and device.type == "cpu":
            return self.stored.read(self.rows).reshape(self.shape)
        first, last = self.rows or (0, self.stored.shape[0] if self.stored.shape else 1)
        if not self.stored.shape:
            return self.stored.read().to(device, dtype)
        target = torch.empty((last - first, *self.stored.shape[1:]), dtype=dtype, device=device)
        row_bytes = max(1, target[0].numel() * self.stored.dtype.itemsize)
        step = max(1, scratch.numel() // row_bytes)
        for start in range(first, last, step):
            stop = min(start + step, last)
            target[start - first : stop - first].copy_(self.stored.read((start, stop), scratch))
        return target.reshape(self.shape)


def resolve_folder(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
) -> Path:
    """Return a local folder with config and weights, downloading a hub repository when the name is one.

    Raises:
        ValueError: if it is neither a folder nor a repository that can be reached.
    """
    folder = Path(name_or_path)
    if folder.is_dir():
        return folder / subfolder if subfolder else folder
    if folder.exists():
        raise ValueError(f"{folder} is a file, expected the folder of a model (with {CONFIG_NAME} and weights)")
    try:
        downloaded = snapshot_download(
            str(name_or_path),
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"],
        )
    except (HFValidationError, RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"'{name_or_path}' is neither a folder here nor a model repository that can be reached "
            f"({type(error).__name__}); check the path, the name or the network"
        ) from error
    return Path(downloaded) / subfolder if subfolder else Path(downloaded)


def read_config(folder: Path) -> VargptConfig:
    """Read the config of a folder in either layout.

    Raises:
        ValueError: if there is none, or it describes another kind of model.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"{folder} is no model folder: it has no {CONFIG_NAME}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        model_type = values["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a model config: expected JSON with a 'model_type'") from error
    for config_class in (VargptConfig, VargptOfficialConfig):
        if model_type == config_class.model_type:
            return config_class.from_dict(values)
    raise ValueError(
        f"{path} describes a {model_type!r} model, expected {VargptConfig.model_type!r} "
        f"or {VargptOfficialConfig.model_type!r}; choose the folder of a VARGPT model"
    )


def official_sources(where: str, config: VargptConfig, stored: Mapping[str, StoredTensor]) -> dict[str, Source]:
    """Map a checkpoint in the published layout to our names, strictly."""
    table = official_key_table(config)
    check_keys(
        where,
        {name: tensor.shape for name, tensor in stored.items()},
        {entry.official: entry.official_shape for entry in table},
        optional=frozenset(entry.official for entry in table if entry.buffer),
        growable=frozenset({"sos_embedding.weight"}),
    )
    return {
        entry.ours: Source(stored[entry.official], entry.shape, entry.rows) for entry in table if entry.ours is not None
    }


def own_sources(where: str, model: nn.Module, stored: Mapping[str, StoredTensor]) -> dict[str, Source]:
    """Map a checkpoint in our layout, strictly."""
    expected = {name: tuple(value.shape) for name, value in weights_of(model).items()}
    check_keys(where, {name: tensor.shape for name, tensor in stored.items()}, expected)
    return {name: Source(stored[name], shape) for name, shape in expected.items()}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with tied weights listed once, under their first name."""
    seen: dict[int, str] = {}
    named = model.state_dict(keep_vars=True)
    return {name: value for name, value in named.items() if seen.setdefault(id(value), name) == name}


def stored_dtype(stored: Mapping[str, StoredTensor]) -> torch.dtype:
    """The floating type that most of the stored bytes have."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in stored.values():
        if tensor.dtype.is_floating_point:
            count = torch.Size(tensor.shape).numel() * tensor.dtype.itemsize
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + count
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


def parse_dtype(dtype: str | torch.dtype | None, stored: Mapping[str, StoredTensor]) -> torch.dtype:
    """Return the floating type to load in: a torch type, its name, or 'auto'/None for the stored one."""
    if dtype is None or dtype == "auto":
        return stored_dtype(stored)
    names = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
    chosen = names.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in names.values():
        raise ValueError(f"dtype is one of {', '.join(names)} or 'auto', got {dtype!r}")
    return chosen


def place(device_map: DeviceMap | None, model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.device]:
    """Return module prefix -> device; '' is the rest. 'auto' and the like ask accelerate.

    Raises:
        ValueError: if the map names an unknown module, or leaves out a weight.
        RuntimeError: if accelerate is needed and not installed.
    """
    if device_map is None:
        return {"": torch.get_default_device()}
    if isinstance(device_map, str) and device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        accelerate = _import_accelerate(f"device_map={device_map!r}")
        no_split = list(model._no_split_modules or ())
        memory = accelerate.utils.get_balanced_memory(
            model, dtype=dtype, low_zero=device_map == "balanced_low_0", no_split_module_classes=no_split
        )
        device_map = accelerate.infer_auto_device_map(
            model, max_memory=memory, dtype=dtype, no_split_module_classes=no_split
        )
    elif not isinstance(device_map, Mapping):
        device_map = {"": device_map}
    assert isinstance(device_map, Mapping)
    placed = {}
    modules = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    for prefix, device in device_map.items():
        if prefix not in modules:
            raise ValueError(f"device_map names {prefix!r}, which is no module of {type(model).__name__}")
        if device == "disk":
            raise ValueError("device_map asks for disk offload, which is not supported: use 'cpu' for that part")
        try:
            placed[prefix] = torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"device_map: {device!r} is no device; use 'cpu', 'cuda', 'cuda:0' or an index") from error
    return placed


def _import_accelerate(what: str):  # type: ignore[no-untyped-def]
    try:
        import accelerate
        import accelerate.utils
    except ImportError as error:
        raise RuntimeError(f"{what} needs the package accelerate: pip install accelerate, or use one device") from error
    return accelerate


def _device_of(name: str, placed: Mapping[str, torch.device]) -> torch.device:
    parts = name.split(".")
    for end in range(len(parts), -1, -1):
        prefix = ".".join(parts[:end])
        if prefix in placed:
            return placed[prefix]
    raise ValueError(f"device_map places no part of the model that holds {name}; add an entry '' for the rest")


def assign(
    model: nn.Module, sources: Mapping[str, Source], dtype: torch.dtype, placed: Mapping[str, torch.device]
) -> None:
    """Replace the meta weights of a model by those of the checkpoint, one at a time; ties stay tied."""
    weights = weights_of(model)
    aliases: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        aliases.setdefault(id(value), []).append(name)
    scratch = torch.empty(_PIECE_BYTES, dtype=torch.uint8)
    for name, value in weights.items():
        loaded = sources[name].load(dtype, _device_of(name, placed), scratch)
        parameter = nn.Parameter(loaded, requires_grad=value.requires_grad)
        for alias in aliases[id(value)]:
            owner, _, attribute = alias.rpartition(".")
            model.get_submodule(owner)._parameters[attribute] = parameter


def fill_buffers(model: PreTrainedModel, placed: Mapping[str, torch.device]) -> None:
    """Compute the buffers that no checkpoint holds (rotary tables), in float32 whatever the weights' type.

    The module that owns a buffer is initialised as in a fresh model by the nearest model class around it.
    """
    owners = {name: module for name, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    for name, module in model.named_modules():
        empty = {key: value for key, value in module._buffers.items() if value is not None and value.is_meta}
        if not empty:
            continue
        for key, value in empty.items():
            fill = float("nan") if value.is_floating_point() else 0
            module._buffers[key] = torch.full(value.shape, fill, dtype=value.dtype, device="cpu")
        owner = max(
            (prefix for prefix in owners if name == prefix or name.startswith(prefix + ".") or not prefix), key=len
        )
        owners[owner]._init_weights(module)
        for key in empty:
            buffer = module._buffers[key]
            assert buffer is not None
            if buffer.is_floating_point() and buffer.isnan().any():
                raise RuntimeError(f"the buffer {name}.{key} has no initial value with this version of transformers")
            module._buffers[key] = buffer.to(_device_of(name, placed))


def load_model(
    model_class: type[Model],
    folder: Path,
    config: VargptConfig | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: DeviceMap | None = None,
) -> Model:
    """Build `model_class` from a folder in the published or in our layout, in evaluation mode.

    Args:
        config: sizes to use instead of the folder's config.json.
        dtype: floating type of the weights; None or 'auto' keeps the stored one.
        device_map: a device, a map of module names to devices, or one of accelerate's strategies.
    """
    config = read_config(folder) if config is None else config
    stored = list_folder(folder)
    chosen = parse_dtype(dtype, stored)
    with torch.device("meta"):
        model = model_class(config)
    placed = place(device_map, model, chosen)
    if is_official(stored):
        sources = official_sources(str(folder), config, stored)
    else:
        sources = own_sources(str(folder), model, stored)
    assign(model, sources, chosen, placed)
    fill_buffers(model, placed)
    model.config.dtype = chosen
    model.name_or_path = str(folder)
    model.eval()
    if len(set(placed.values())) > 1:
        accelerate = _import_accelerate("a device_map with several devices")
        model = accelerate.dispatch_model(model, device_map={name: str(device) for name, device in placed.items()})
    return model
