"""Blend two models of one shape: a share of the way, in weights, from one to the other.

What a model learns in a short, narrow training and what it forgets by it often lie along one line: part of the way it
has most of the one and little of the other (Wortsman et al., "Robust fine-tuning of zero-shot models",
arXiv 2109.01903).

    vargpt blend MODEL TRAINED DESTINATION --share 0.5
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from vargpt.checkpoint import tensor_files
from vargpt.checkpoint.loading import CONFIG_NAME, resolve_folder
from vargpt.checkpoint.pretrained import write_folder
from vargpt.checkpoint.strict import check_keys
from vargpt.checkpoint.tensor_files import StoredTensor

_TOKENIZER_NAME = "tokenizer.json"
_READ_WITH_A_MODEL = {
    _TOKENIZER_NAME, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json", "processor_config.json", "preprocessor_config.json",
    "generation_config.json",
}  # fmt: skip
"""What else a model is loaded with; its card, results and recipe are no longer true."""
_SAID_BY_THE_WRITER = {"transformers_version", "dtype", "torch_dtype", "_name_or_path"}


def blend(first: str | Path, second: str | Path, destination: str | Path, share: float = 0.5) -> Path:
    """Write (1 - share) * first + share * second to `destination`.

    It is computed in float32 and stored in the type of `first`. Text tokenizer, image processor and
    sampling are those of `first`; its card is not copied. Memory: two tensors at a time.

    Returns:
        The destination folder.

    Raises:
        ValueError: if the share is not between 0 and 1, or the models differ in anything but values.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share is between 0 (the first model) and 1 (the second), got {share:g}")
    folders = resolve_folder(first), resolve_folder(second)
    target = Path(destination)
    for folder in folders:
        if target.resolve() == folder.resolve():
            raise ValueError(f"the destination {target} is one of the models: choose another folder")
    config = _common_config(*folders)
    one, two = (tensor_files.list_folder(folder) for folder in folders)
    check_keys(str(folders[1]), _shapes(two), _shapes(one))
    layout = {name: (stored.dtype, stored.shape) for name, stored in one.items()}
    makers = {name: partial(_blended, one[name], two[name], share) for name in one}
    write_folder(target, config, layout, tensor_files.LazyTensors(makers))
    for path in sorted(folders[0].iterdir()):
        if path.name in _READ_WITH_A_MODEL:
            shutil.copyfile(path, target / path.name)
    return target


def _blended(one: StoredTensor, two: StoredTensor, share: float) -> Tensor:
    first = one.read()
    if not first.is_floating_point():
        return first
    return first.float().lerp(two.read().float(), share).to(one.dtype)


def _shapes(stored: Mapping[str, StoredTensor]) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in stored.items()}


def _common_config(first: Path, second: Path) -> dict[str, Any]:
    """The config of both."""
    for folder in (first, second):
        if not (folder / CONFIG_NAME).is_file():
            raise ValueError(f"{folder}: no {CONFIG_NAME} here, expected a model folder")
    one, two = (json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")) for folder in (first, second))
    different = _differences(one, two)
    if different:
        raise ValueError(
            f"{first} and {second} are different models and cannot be blended: {different[0]}; one must be "
            "what further training made of the other"
        )
    words = [folder / _TOKENIZER_NAME for folder in (first, second)]
    if all(path.is_file() for path in words) and words[0].read_bytes() != words[1].read_bytes():
        raise ValueError(f"{first} and {second} have different text tokenizers and cannot be blended")
    return one


def _differences(one: Any, two: Any, where: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(two, dict):
        return [
            line
            for name in sorted(one.keys() | two.keys())
            if name not in _SAID_BY_THE_WRITER
            for line in _differences(one.get(name), two.get(name), f"{where}.{name}".lstrip("."))
        ]
    return [] if one == two else [f"{where} is {one!r} in the first and {two!r} in the second"]
