"""Constants and rules that no recorded tensor of a small model can show.

The constants of the specification are stated once more here and compared with the defaults in force, so that a slip in
one place is seen. Derived sizes and scale tables are compared with the recording.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vargpt.configuration import Behaviour, DecoderConfig, ImageTokenizerConfig, VargptConfig
from vargpt.image_tokenizer.autoencoder import ResidualUnit
from vargpt.image_tokenizer.bsq import bits_from_latent, codes_from_bits
from vargpt.losses import preference_losses
from vargpt.model import VargptForConditionalGeneration
from vargpt.model.blocks import MAX_LOG_SCALE, DropPath
from vargpt.sampling import Sampling
from vargpt.scales import BUDGETS, ScaleSchedule
from vargpt.training.recipes.schema import SftStage
from vargpt.verification.compare import Report
from vargpt.verification.goldens import Goldens


def _constants() -> dict[str, tuple[Any, Any]]:
    """Name -> (ours, the specification's)."""
    sampling, paper, default = Sampling.official(), Sampling.paper(), Sampling()
    decoder, tokenizer, behaviour = DecoderConfig(), ImageTokenizerConfig(), Behaviour.official()
    sft = SftStage.model_fields
    return {
        "4.2 bits": (tokenizer.bits, 32),
        "4.2 base width": (tokenizer.base_channels, 128),
        "4.2 multipliers": (tokenizer.channel_multipliers, (1, 2, 4, 4, 4)),
        "4.2 residual units": (tokenizer.num_res_blocks, 2),
        "4.2 stride": (tokenizer.stride, 16),
        "4.4 largest flip strength": (sft["flip_strength"].default, 0.3),
        "5.1 decoder width": (decoder.hidden_size, 2048),
        "5.1 heads": (decoder.num_heads, 16),
        "5.1 blocks": (decoder.depth, 32),
        "5.1 chunks": (decoder.num_chunks, 8),
        "5.1 unconditional rows": (decoder.unconditional_rows, 512),
        "5.1 level embeddings": (decoder.level_embeddings, 15),
        "5.1 feed-forward ratio": (decoder.mlp_ratio, 4),
        "5.2 condition dropout": (sft["guidance_drop"].default, 0.1),
        "5.4 norm eps": (decoder.norm_eps, 1e-6),
        "5.4 drop path": (decoder.drop_path_rate, 0.1),
        "5.5 largest attention scale": (math.exp(MAX_LOG_SCALE), 100.0),
        "6.1 slot multiple": (behaviour.image_slot_multiple, 128),
        "6.6 image loss weight": (VargptConfig().image_loss_weight, 3.0),
        "6.6 image loss weight (recipes)": (sft["image_loss_weight"].default, 3.0),
        "7.3 guidance": (sampling.guidance_scale, 3.0),
        "7.3 temperature": (sampling.temperature, 0.5),
        "7.3 top-p": (sampling.top_p, 0.97),
        "7.3 guidance (default)": (default.guidance_scale, 3.0),
        "7.3 temperature (default)": (default.temperature, 0.5),
        "7.3 top-p (default)": (default.top_p, 0.97),
        "7.3 guidance (paper)": (paper.guidance_scale, 1.5),
        "7.3 top-p (paper)": (paper.top_p, 0.95),
    }


def _formulas() -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> (ours, the specification's) for rules that a recording at these sizes does not show."""
    code = codes_from_bits(torch.ones(1, 1, 32), 1, 1)[0, 0].reshape(())
    rows = ScaleSchedule.from_template(1.25, 7).rope_positions()[0]
    tall = ScaleSchedule.from_template(1.25, 7)
    chosen, rejected = torch.tensor([1.5]), torch.tensor([0.5])
    smoothed = 0.9 * math.log1p(math.exp(-0.1)) + 0.1 * math.log1p(math.exp(0.1))
    groups = [ResidualUnit(width, width).norm1.num_groups for width in (64, 96, 48, 72)]
    kept = DropPath(0.75).train()(torch.ones(64, 1)).unique()
    return {
        "4 groups of the norms": (torch.tensor(groups, dtype=torch.float32), torch.tensor([32.0, 32, 24, 24])),
        "5.4 kept branches are scaled up": (kept, torch.tensor([0.0, 4.0])),
        "4.3 code of 32 bits, normalised twice": (code, torch.tensor(0.17677671)),
        "4.3 bit of zero": (bits_from_latent(torch.zeros(1, 1, 1, 1)).sum(), torch.tensor(0.0)),
        "5.6 rows are rounded half to even": (
            rows[tall.slice(6)].view(tall.sizes[6])[:9, 0],
            torch.tensor([0.0, 4, 7, 10, 14, 18, 21, 24, 28]),
        ),
        "8.3 hinge": (preference_losses(chosen, rejected, 0.1, "hinge"), torch.tensor([0.9])),
        "8.3 ipo": (preference_losses(chosen, rejected, 0.1, "ipo"), torch.tensor([16.0])),
        "8.3 label smoothing": (
            preference_losses(chosen, rejected, 0.1, "sigmoid", label_smoothing=0.1),
            torch.tensor([smoothed]),
        ),
    }


def _fresh(report: Report, goldens: Goldens) -> None:
    """Initial values and drop-path rates of a new model of these sizes (spec 5.4, 5.11)."""
    config = VargptConfig.from_dict(goldens.config.to_dict())
    config.decoder.drop_path_rate = DecoderConfig().drop_path_rate
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = VargptForConditionalGeneration(config).decoder
    width, last = config.decoder.hidden_size, max(config.decoder.depth - 1, 1)
    scales = torch.stack([block.get_parameter("self_attention.log_scale").detach() for block in decoder.blocks])
    report.close("5.11 attention scale", scales, torch.full_like(scales, math.log(4)), 0.0, 1e-6)
    std = torch.tensor(1.2 * width**-0.5)
    start_std = torch.tensor((3 * width) ** -0.5)
    report.close("5.11 start position", decoder.start_position.detach().std(), start_std, 0.0, 0.25)
    report.close("5.11 unconditional rows", decoder.unconditional.detach().std(), std, 0.0, 0.05)
    rates = torch.tensor([module.rate for module in decoder.modules() if isinstance(module, DropPath)])
    wanted = torch.tensor([0.1 * index / last for index in range(config.decoder.depth)])
    report.close("5.4 drop path of each block", rates, wanted, 0.0, 1e-6)


def _recorded(settings: Mapping[str, Any], path: str) -> Any:
    section, name = path.split(".")
    return settings.get(section, {}).get(name)


def verify_settings(goldens: Goldens) -> Report:
    """Compare constants, derived sizes and scale tables."""
    report, settings = Report("settings"), goldens.settings
    derived = {
        "decoder.attention_scale_max": math.exp(MAX_LOG_SCALE),
        "decoder.mlp_hidden": goldens.config.decoder.ffn_size,
        "decoder.head_dim": goldens.config.decoder.hidden_size // goldens.config.decoder.num_heads,
        "decoder.head_out": 2 * goldens.config.image_tokenizer.bits,
        "vae.code_magnitude": float(codes_from_bits(torch.ones(1, 1, goldens.config.image_tokenizer.bits), 1, 1)[0, 0]),
    }
    for name, (ours, wanted) in _constants().items():
        report.close(
            name, torch.tensor(ours, dtype=torch.float64), torch.tensor(wanted, dtype=torch.float64), 0.0, 1e-9
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        formulas = _formulas()
    for name, (made, literal) in formulas.items():
        report.close(name, made, literal, 0.0, 3e-8 if name.startswith("4.3") else 1e-6)
    _fresh(report, goldens)
    for path, value in derived.items():
        recorded = _recorded(settings, path)
        if isinstance(recorded, int | float):
            report.close(path, torch.tensor(float(value)), torch.tensor(float(recorded)), 0.0, 1e-6)
    for budget, table in goldens.recorded_schedules().items():
        schedule = goldens.schedule(BUDGETS[budget])
        sizes = [list(size)[-2:] for size in table["scales"]]
        report.exact(f"schedules.{budget}.scales", torch.tensor(schedule.sizes), torch.tensor(sizes))
        multiple = Behaviour.official().image_slot_multiple
        sizes_made = [*schedule.image_size, schedule.num_tokens, schedule.padded_length(multiple)]
        listed = [table[name] for name in ("height", "width", "tokens", "padded")]
        report.exact(f"schedules.{budget}.sizes", torch.tensor(sizes_made), torch.tensor(listed))
    return report
