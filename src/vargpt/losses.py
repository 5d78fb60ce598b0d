"""Losses and log-probabilities as pure functions (spec 6.4 to 6.6 and 8).

Invariant: weights act on unreduced terms, never on a scalar; everything is computed in float32.

Legend: `B T V` text rows, columns, vocabulary · `I L d` generated images, image tokens, bits · `K` scales ·
`S` selected text positions.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vargpt.scales import ScaleSchedule

IGNORED = -100
"""Target id without a loss."""

PreferenceLoss = Literal["sigmoid", "hinge", "ipo"]
LogpReduction = Literal["sum", "mean", "scale_mean"]


def all_token_targets(input_ids_BT: Tensor, image_gen_pad_id: int) -> Tensor:
    """Return the published text targets [B, T]: every id, padding included, except image slots (spec 6.5)."""
    return input_ids_BT.masked_fill(input_ids_BT == image_gen_pad_id, IGNORED)


def assistant_targets(input_ids_BT: Tensor, is_assistant_BT: Tensor, image_gen_pad_id: int) -> Tensor:
    """Return targets [B, T] for the assistant's tokens only, image start and end included, image slots not."""
    return all_token_targets(input_ids_BT, image_gen_pad_id).masked_fill(~is_assistant_BT, IGNORED)


def text_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean next-token cross-entropy: logits at t predict the target at t + 1; 0 when there is no target."""
    selected = targets_BT[:, 1:] != IGNORED
    return selected_text_loss(logits_BTV[:, :-1][selected], targets_BT[:, 1:][selected])


def selected_text_loss(logits_SV: Tensor, targets_S: Tensor, weights_S: Tensor | None = None) -> Tensor:
    """Cross-entropy of chosen positions whose logits and targets are already aligned; 0 when there is none.

    Returns:
        the mean, or with weights the weighted sum.
    """
    if targets_S.numel() == 0:
        return logits_SV.float().sum()
    if weights_S is None:
        return F.cross_entropy(logits_SV.float(), targets_S.long())
    return weights_S @ F.cross_entropy(logits_SV.float(), targets_S.long(), reduction="none")


def conversation_weights(targets_BT: Tensor) -> Tensor:
    """Weights with which all rows count the same however many targets they have, float32 [S] in the order of targets.

    Those of a row sum to 1.
    """
    chosen_BT = targets_BT[:, 1:] != IGNORED
    weights_B = 1.0 / chosen_BT.sum(dim=1).clamp(min=1)
    return weights_B[:, None].expand_as(chosen_BT)[chosen_BT]


def bit_losses(logits_ILd2: Tensor, labels_ILd: Tensor) -> Tensor:
    """Negative log-probability of every bit, float32 [I, L, d]: softplus of the wrong logit minus the right one."""
    logits = logits_ILd2.float()
    sign = 1.0 - 2.0 * labels_ILd.to(logits.dtype)
    return F.softplus((logits[..., 1] - logits[..., 0]) * sign)


def scale_token_weights(schedule: ScaleSchedule, device: torch.device | None = None) -> Tensor:
    """Weights 1/sqrt(n_k) of the image tokens, normalised to sum 1, float32 [L] (spec 6.4, Infinity's loss)."""
    lengths = torch.tensor(schedule.lengths, dtype=torch.float32, device=device)
    weights = lengths.rsqrt().repeat_interleave(torch.tensor(schedule.lengths, device=device))
    return weights / weights.sum()


def image_loss(
    logits_ILd2: Tensor, labels_ILd: Tensor, schedule: ScaleSchedule, weights: Literal["official", "per_scale"]
) -> Tensor:
    """Bit cross-entropy: plain mean (`official`) or weighted by `scale_token_weights` (`per_scale`)."""
    losses = bit_losses(logits_ILd2, labels_ILd)
    if weights == "official":
        return losses.mean()
    return (losses.mean(-1) * scale_token_weights(schedule, losses.device)).sum(-1).mean()


def total_loss(text: Tensor, image: Tensor | None, image_loss_weight: float) -> Tensor:
    """Text loss plus the weighted image loss, if the batch has images to draw (spec 6.6)."""
    return text if image is None else text + image_loss_weight * image


@torch.no_grad()
def scale_metrics(logits_ILd2: Tensor, labels_ILd: Tensor, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
    """Mean bit loss and bit accuracy of every scale, float32 [K] each."""
    losses = bit_losses(logits_ILd2, labels_ILd).mean(dim=(0, 2))
    right = ((logits_ILd2[..., 1] > logits_ILd2[..., 0]) == labels_ILd.bool()).float().mean(dim=(0, 2))
    slices = [schedule.slice(scale_index) for scale_index in range(schedule.num_scales)]
    return torch.stack([losses[s].mean() for s in slices]), torch.stack([right[s].mean() for s in slices])


def image_logps(
    logits_ILd2: Tensor, labels_ILd: Tensor, schedule: ScaleSchedule, reduction: LogpReduction = "sum"
) -> Tensor:
    """Log-probability of each image's bits, float32 [I] (spec 8.2).

    `sum` adds all bits (the published one), `mean` averages them, `scale_mean` averages within each scale and adds
    the scales, so that every scale counts alike and the value does not grow with the resolution.
    """
    return reduce_bit_logps(-bit_losses(logits_ILd2, labels_ILd), schedule, reduction)


def reduce_bit_logps(logps_ILd: Tensor, schedule: ScaleSchedule, reduction: LogpReduction) -> Tensor:
    """Reduce log-probabilities (or policy-minus-reference differences) of bits [I, L, d] to one number per image."""
    if reduction == "sum":
        return logps_ILd.sum(dim=(1, 2))
    if reduction == "mean":
        return logps_ILd.mean(dim=(1, 2))
    slices = [schedule.slice(scale_index) for scale_index in range(schedule.num_scales)]
    return torch.stack([logps_ILd[:, s].mean(dim=(1, 2)) for s in slices]).sum(0)


def preference_losses(
    chosen_logratios: Tensor,
    rejected_logratios: Tensor,
    beta: float,
    loss: PreferenceLoss = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """DPO losses per pair (arXiv 2305.18290 eq. 7; spec 8.3).

    Args:
        chosen_logratios, rejected_logratios: policy minus reference log-probabilities [pairs]. For `ipo` they must be
            averages, not sums (arXiv 2310.12036 eq. 17).
        beta: strength of the pull towards the reference.
        label_smoothing: probability that a pair's labels are swapped (`sigmoid` only).
    """
    margin = chosen_logratios - rejected_logratios
    if loss == "sigmoid":
        return -(1 - label_smoothing) * F.logsigmoid(beta * margin) - label_smoothing * F.logsigmoid(-beta * margin)
    if label_smoothing:
        raise ValueError(f"label_smoothing is defined for the sigmoid loss only, got {label_smoothing} with {loss!r}")
    if loss == "hinge":
        return torch.relu(1 - beta * margin)
    if loss == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    raise ValueError(f"unknown preference loss {loss!r}: expected sigmoid, hinge or ipo")


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
    loss: PreferenceLoss = "sigmoid",
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, chosen rewards and rejected rewards per pair; rewards are beta * (policy - reference)."""
    chosen = policy_chosen_logps - reference_chosen_logps
    rejected = policy_rejected_logps - reference_rejected_logps
    losses = preference_losses(chosen, rejected, beta, loss, label_smoothing)
    return losses, (beta * chosen).detach(), (beta * rejected).detach()
