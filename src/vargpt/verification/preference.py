"""Preference training against its recording: log-probabilities of policy and reference, losses, gradient norms."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from vargpt.checkpoint.official_keys import official_key_table
from vargpt.losses import LogpReduction, dpo_loss, image_logps
from vargpt.model import VargptForConditionalGeneration
from vargpt.verification.compare import HIDDEN, Report
from vargpt.verification.goldens import Goldens, Tensors
from vargpt.verification.training import compare_norms, training_inputs

LOGPS = 5e-3
REWARDS = 1e-3
NORMS = 1e-3
"""Relative tolerance of gradient norms: all of them carry one factor that depends on a difference of large sums."""
LOGPS_RELATIVE = 5e-7
"""Log-probabilities are sums of many float32 terms; beyond about 1e4 their spread grows with them."""


def reference_model(goldens: Goldens, policy: VargptForConditionalGeneration) -> VargptForConditionalGeneration:
    """A copy of the policy with the recorded overrides."""
    reference = copy.deepcopy(policy)
    if goldens.has("dpo_reference_override"):
        table = {entry.official: entry for entry in official_key_table(policy.config)}
        for name, value in goldens.tensors("dpo_reference_override").items():
            entry = table[name]
            rows = value if entry.rows is None else value[slice(*entry.rows)]
            assert entry.ours is not None
            reference.get_parameter(entry.ours).data.copy_(entry.from_official(rows))
    return reference


def verify_preference(goldens: Goldens, model: VargptForConditionalGeneration, scenario: str = "dpo") -> Report:
    """Compare a batch of chosen rows followed by rejected rows."""
    report, recorded = Report(scenario), goldens.tensors(scenario)
    settings = goldens.settings.get("dpo", {})
    inputs = training_inputs(goldens, model, recorded)
    assert inputs.schedule is not None
    assert inputs.labels_ILd is not None
    assert model.behaviour.dpo_logp_reduction == "official"
    reduction: LogpReduction = "sum"
    model.zero_grad(set_to_none=True)
    values: Tensors = {}
    logps: dict[str, tuple[Tensor, ...]] = {}
    for side, network in (("policy", model), ("reference", reference_model(goldens, model))):
        with torch.set_grad_enabled(side == "policy"):
            logits = network(inputs, text_logits="none").bit_logits_ILd2
            both = image_logps(logits, inputs.labels_ILd, inputs.schedule, reduction)
        chosen, rejected = both.chunk(2)
        logps[side] = (chosen, rejected)
        tokens = inputs.schedule.num_tokens
        for kind, value in (("chosen", chosen), ("rejected", rejected)):
            values |= {f"{side}.{kind}_logps": value, f"{side}.{kind}_logps_avg": value / tokens}
        name = next((n for n in recorded if n.startswith(f"{side}.gen_logits_first")), None)
        if name is not None:
            count = recorded[name].shape[1]
            report.close(name, logits.detach().flatten(2)[:, :count], recorded[name], HIDDEN)
    kind = settings.get("loss", "sigmoid")
    scale = 1 / inputs.schedule.num_tokens if kind == "ipo" else 1.0  # published IPO divides by positions
    losses, chosen_rewards, rejected_rewards = dpo_loss(
        logps["policy"][0] * scale,
        logps["policy"][1] * scale,
        logps["reference"][0] * scale,
        logps["reference"][1] * scale,
        settings.get("beta", 0.1),
        kind,
        settings.get("label_smoothing", 0.0),
    )
    loss = losses.mean()
    values |= {"losses": losses, "loss": loss, "chosen_rewards": chosen_rewards, "rejected_rewards": rejected_rewards}
    for name, value in values.items():
        if name not in recorded:
            continue
        if name.endswith("_logps"):
            report.close(name, value, recorded[name], LOGPS, LOGPS_RELATIVE)
        else:
            report.close(name, value, recorded[name], REWARDS, LOGPS_RELATIVE)
    if (goldens.folder / f"{scenario}_grad_norms.json").is_file():
        loss.backward()
        compare_norms(report, model, goldens.norms(f"{scenario}_grad_norms"), NORMS)
    model.zero_grad(set_to_none=True)
    return report
