"""The entry point of lmms-eval's plugin group `lmms_eval.models` (0.7 and later): where our classes are.

Invariant: importing this needs no lmms-eval; calling `manifest` does, and lmms-eval is what calls it.
"""

from __future__ import annotations

from typing import Any

_MODULE = "vargpt.evaluation.lmms.models.vargpt"


def manifest() -> Any:
    """The `ModelManifest` of the model `vargpt`: as a chat model, and as a simple one (`--force_simple`)."""
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ImportError as error:
        raise RuntimeError(
            "this plugin is for lmms-eval 0.7 or later, which is not here: pip install 'lmms-eval>=0.7'"
        ) from error
    return ModelManifest(
        model_id="vargpt", chat_class_path=f"{_MODULE}.VargptChat", simple_class_path=f"{_MODULE}.Vargpt"
    )
