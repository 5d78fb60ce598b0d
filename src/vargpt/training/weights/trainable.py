"""Named sets of parameters: what a stage trains and what stays bitwise as it is.

Invariant: a preset is a list of name prefixes of the whole model; the image tokenizer is in none of them (`kind:
tokenizer` trains it), and adapters belong to their stage (`vargpt.training.weights.adapters`), not to a preset.

| preset                 | trains                                        | paper   | code      |
|------------------------|-----------------------------------------------|---------|-----------|
| `projectors`           | both projectors of the generation path        | stage 1 |           |
| `projectors_and_start` | the same and the start embedding              |         | 1         |
| `language`             | language model with its embeddings, text head |         | 2         |
| `language_and_merger`  | the same and the vision tower's merger        | stage 2 |           |
| `generation`           | decoder, both projectors, start embedding     | stage 3 | 0, 3, DPO |
| `all_but_vision`       | `language` and `generation`                   |         | 4         |
| `all`                  | everything but the image tokenizer            | editing | 5         |
| `understanding`        | vision tower, language model, text head       |         |           |
| `none`                 | nothing: for stages that train adapters only  |         |           |

Code: `vargpt_train_stage` of the published trainer (spec 9.1). The paper's "understanding projector" is Qwen2-VL's
merger, inside the vision tower; the published code freezes it with the tower. Where the paper says that editing trains
all parameters, the image tokenizer is not meant: no loss of these stages has a gradient there.
"""

from __future__ import annotations

import re

from torch import nn

from vargpt.training.recipes.schema import TrainablePreset

_MERGER = ("backbone.visual.merger.",)
_VISION = ("backbone.visual.",)
_LANGUAGE = ("backbone.language_model.", "lm_head.")
_PROJECTORS = ("in_projector.", "out_projector.")
_GENERATION = ("decoder.", *_PROJECTORS, "start_embedding")

TRAINABLE: dict[TrainablePreset, tuple[str, ...]] = {
    "all": (*_VISION, *_LANGUAGE, *_GENERATION),
    "all_but_vision": (*_LANGUAGE, *_GENERATION),
    "understanding": (*_VISION, *_LANGUAGE),
    "language": _LANGUAGE,
    "language_and_merger": (*_LANGUAGE, *_MERGER),
    "generation": _GENERATION,
    "projectors": _PROJECTORS,
    "projectors_and_start": (*_PROJECTORS, "start_embedding"),
    "none": (),
}
"""Preset -> prefixes of the names of its parameters."""

_ADAPTER = re.compile(r"\.lora_[AB]\.")


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to a low-rank adapter."""
    return _ADAPTER.search(name) is not None


def set_trainable(model: nn.Module, preset: TrainablePreset) -> None:
    """Make the parameters of a preset trainable and freeze all others, adapters included."""
    prefixes = TRAINABLE[preset]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes) and not is_adapter(name))
