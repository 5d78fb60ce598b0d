"""The samplers of bits and of words against the recorded ones, random stream included."""

from __future__ import annotations

import re

import torch

from vargpt.sampling import bit_probabilities, draw, filter_logits, sample_bits
from vargpt.verification.compare import Report
from vargpt.verification.goldens import Goldens

_SEEDS = {"bits": 1234, "vocab": 4321}
"""Seeds of the CPU generator of every recording (one fresh generator per setting)."""


def verify_sampler(goldens: Goldens, scenario: str = "sampler") -> Report:
    """Compare removed values and drawn indices for every recorded top-k and top-p."""
    report, tensors = Report(scenario), goldens.tensors(scenario)
    for name, drawn in tensors.items():
        match = re.fullmatch(r"(bits|vocab)\.k(\d+)_p(\d+)\.idx", name)
        if match is None:
            continue
        kind, top_k, digits = match[1], int(match[2]), match[3]
        top_p = float(f"0.{digits[1:]}") if len(digits) > 1 else float(digits)
        prefix = name.removesuffix(".idx")
        logits = tensors[f"{kind}.logits"]
        filtered = filter_logits(logits, top_k, top_p)
        report.exact(f"{prefix}.removed", filtered.isneginf(), tensors[f"{prefix}.removed"])
        generator = torch.Generator().manual_seed(_SEEDS[kind])
        index = draw(torch.softmax(filtered, -1).flatten(0, -2), generator)
        report.exact(f"{prefix}.idx", index.reshape(drawn.shape), drawn)
        if kind == "bits" and top_k != 1:  # the closed form for two values, which image generation uses
            removed = bit_probabilities(logits, top_p) == 0
            report.exact(f"{prefix}.removed (closed form)", removed, tensors[f"{prefix}.removed"])
            generator = torch.Generator().manual_seed(_SEEDS[kind])
            bits = sample_bits(logits.transpose(0, 1), top_p, generator)
            report.exact(f"{prefix}.idx (closed form)", bits.reshape(drawn.shape), drawn)
    return report
