"""Recorded settings against our published defaults: what no tensor of a small model can show.

Sampling, loss and noise constants, scale tables and derived sizes. Settings that a recording lacks are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from vargpt.configuration import Behaviour, DecoderConfig, ImageTokenizerConfig, VargptConfig
from vargpt.image_tokenizer.bsq import codes_from_bits
from vargpt.model.blocks import MAX_LOG_SCALE
from vargpt.sampling import Sampling
from vargpt.scales import BUDGETS
from vargpt.training.recipe import SftStage
from vargpt.verification.compare import Report
from vargpt.verification.goldens import Goldens


def _ours() -> dict[str, float]:
    """Our constants by section and name of the recorded settings."""
    sampling, decoder = Sampling.official(), DecoderConfig()
    assert not isinstance(sampling.guidance_scale, list | tuple)
    assert not isinstance(sampling.temperature, list | tuple)
    return {
        "generation.cfg": float(sampling.guidance_scale),  # type: ignore[arg-type]
        "generation.tau": float(sampling.temperature),  # type: ignore[arg-type]
        "generation.top_p": sampling.top_p,
        "training.lambda_image_loss": VargptConfig().image_loss_weight,
        "training.official_self_correction_strength": SftStage.model_fields["flip_strength"].default,
        "training.official_cond_drop_rate": SftStage.model_fields["guidance_drop"].default,
        "training.official_drop_path_rate": decoder.drop_path_rate,
        "decoder.attention_scale_max": math.exp(MAX_LOG_SCALE),
        "decoder.norm_eps": decoder.norm_eps,
        "decoder.level_embeddings": decoder.level_embeddings,
        "decoder.text_maxlen": decoder.unconditional_rows,
        "decoder.mlp_ratio": decoder.mlp_ratio,
        "decoder.pad_to_multiple": Behaviour.official().image_slot_multiple,
        "vae.num_res_blocks": ImageTokenizerConfig().num_res_blocks,
    }


def _recorded(settings: Mapping[str, Any], path: str) -> Any:
    section, name = path.split(".")
    return settings.get(section, {}).get(name)


def verify_settings(goldens: Goldens) -> Report:
    """Compare constants, derived sizes and scale tables."""
    report, settings = Report("settings"), goldens.settings
    derived = {
        "decoder.mlp_hidden": goldens.config.decoder.ffn_size,
        "decoder.head_dim": goldens.config.decoder.hidden_size // goldens.config.decoder.num_heads,
        "decoder.head_out": 2 * goldens.config.image_tokenizer.bits,
        "vae.code_magnitude": float(codes_from_bits(torch.ones(1, 1, goldens.config.image_tokenizer.bits), 1, 1)[0, 0]),
    }
    for path, value in {**_ours(), **derived}.items():
        recorded = _recorded(settings, path)
        if isinstance(recorded, int | float):
            report.close(path, torch.tensor(float(value)), torch.tensor(float(recorded)), 0.0, 1e-6)
    for budget, table in goldens.recorded_schedules().items():
        schedule = goldens.schedule(BUDGETS[budget])
        sizes = [list(size)[-2:] for size in table["scales"]]
        report.exact(f"schedules.{budget}.scales", torch.tensor(schedule.sizes), torch.tensor(sizes))
        multiple = Behaviour.official().image_slot_multiple
        ours = [*schedule.image_size, schedule.num_tokens, schedule.padded_length(multiple)]
        wanted = [table[name] for name in ("height", "width", "tokens", "padded")]
        report.exact(f"schedules.{budget}.sizes", torch.tensor(ours), torch.tensor(wanted))
    return report
