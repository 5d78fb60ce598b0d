"""Direct preference optimisation on pairs of pictures (arXiv 2305.18290; a `Task` of the trainer).

Invariant: policy and reference see the same tensors (unless the stage asks for the published noise) and run the same
kernels without stochastic depth, so the loss at the start of a stage is ln 2 exactly. The loss is a mean over the pairs
of a step, whatever the micro-batches and ranks it was split into.

Metrics carry TRL's names. `rewards/margins/scale{k}` add up to `rewards/margins`.

Legend: `P` pairs · `K` scales · `L d` image tokens, bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from vargpt import losses
from vargpt.inputs import ModelInputs
from vargpt.losses import LogpReduction
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.processing.processor import VargptProcessor
from vargpt.training import distributed
from vargpt.training.planning.flops import WorkCounter
from vargpt.training.recipes.schema import DpoStage
from vargpt.training.stages.preference_batches import (
    PairMaker,
    PairOrder,
    Pairs,
    PreferenceMicroBatch,
    PreparedPair,
    group_pairs,
    make_micro_batch,
)
from vargpt.training.stages.preference_logps import nats_per_bit, scale_weights
from vargpt.training.stages.preference_watch import PreferenceWatch
from vargpt.training.stages.reference import PrecomputedReference, Reference, run_pairs
from vargpt.training.stages.sft_stage import keep_in_graph

_MOST_VALIDATION_PAIRS = 64


def logp_reduction(stage: DpoStage, model: VargptForConditionalGeneration) -> LogpReduction:
    """The stage's reduction, or the one of the model's behaviour.

    Raises:
        ValueError: for the ipo loss with sums (it is defined for averages).
    """
    by_behaviour: LogpReduction = "sum" if model.behaviour.dpo_logp_reduction == "official" else "scale_mean"
    reduction = stage.logp_reduction or by_behaviour
    if stage.loss == "ipo" and reduction == "sum":
        raise ValueError(
            f"stage {stage.name}: the ipo loss is defined for averages, but the model's behaviour sums over bits: set "
            f"logp_reduction to mean or scale_mean"
        )
    return reduction


class PreferenceTask:
    """Preference training of the images' bits; text has no loss here.

    A micro-batch holds up to `micro_batch_size` pairs, that is twice as many rows. The SFT term is the image loss of
    the chosen side as in supervised training; the published one divides by positions, not bits, and is d times larger.

    Frozen parts keep no gradients, but the backward passes through a frozen backbone on its way to the in-projector.

    Args:
        pairs: random access by number.
        reference: see `vargpt.training.stages.reference.make_reference`; made before the policy moves.
        validation_fraction: share of the pairs that is set aside, by the hash of their keys.
        bits_fit: the pairs' bits were made by the model's own image tokenizer; otherwise their pictures are encoded.

    Raises:
        ValueError: for settings that contradict each other or would have no effect.
    """

    def __init__(
        self,
        model: VargptForConditionalGeneration,
        processor: VargptProcessor,
        pairs: Pairs,
        stage: DpoStage,
        seed: int,
        reference: Reference,
        *,
        validation_fraction: float = 0.05,
        bits_fit: bool = True,
    ) -> None:
        if stage.reference_noise == "independent" and stage.flip_strength == 0:
            raise ValueError(f"stage {stage.name}: reference_noise independent has no effect at flip_strength 0")
        if stage.lora is not None and stage.lora.dropout:
            raise ValueError(f"stage {stage.name}: policy and reference run without dropout; set lora.dropout to 0")
        self.module = model
        self._processor, self._stage, self._reference = processor, stage, reference
        self._reduction = logp_reduction(stage, model)
        self._order = PairOrder(pairs, stage.name, seed, validation_fraction)
        self._maker = PairMaker(stage, processor, model.image_tokenizer, seed, bits_fit)
        self._validation = self._order.held_out(_MOST_VALIDATION_PAIRS)

    def prepare(self) -> None:
        """Do what must be done while the model is as the stage found it; call it before the trainer runs."""
        if isinstance(self._reference, PrecomputedReference):
            self._reference.prepare(self.module, self.batch, self._validation_batch())

    def watch(self) -> PreferenceWatch:
        """A watch for the metrics of this task."""
        schedule = self._order.at(0).schedule
        per_bit = nats_per_bit(schedule, self.module.config.image_tokenizer.bits, self._reduction)
        return PreferenceWatch(self._stage.beta, per_bit)

    def batch(self, step: int) -> list[PreferenceMicroBatch]:
        """This rank's pairs of a step: every rank takes its own stretch of the step's positions."""
        size = self._stage.loop.batch_size
        positions = [step * size + index for index in distributed.share(size)]
        return self._collate([self._maker.training(self._order.at(position), position) for position in positions])

    def _validation_batch(self) -> list[PreferenceMicroBatch]:
        """This rank's held-out pairs, at positions -1, -2, ..."""
        share = distributed.share(len(self._validation))
        return self._collate([self._maker.validation(self._validation[index], -1 - index) for index in share])

    def _collate(self, pairs: Sequence[PreparedPair]) -> list[PreferenceMicroBatch]:
        loop, tokenizer = self._stage.loop, self.module.image_tokenizer
        groups = group_pairs(pairs, loop.micro_batch_size, loop.micro_batch_tokens)
        several = distributed.world_size() > 1
        if several:
            groups += [[] for _ in range(distributed.max_int(len(groups)) - len(groups))]
        return [make_micro_batch(group, self._processor, tokenizer, fill=several) for group in groups]

    def counts(self, batch: Sequence[PreferenceMicroBatch]) -> dict[str, float]:
        """Denominator: pairs; `tokens` and `flops` (of the policy and of a reference that is run) for the record."""
        recompute = self._stage.loop.activation_checkpointing
        work = [self._work.batch(replace(micro.inputs, text_targets_BT=None), recompute) for micro in batch]
        forwards = 0.0 if isinstance(self._reference, PrecomputedReference) else sum(part.forward for part in work)
        return {
            "pairs": float(sum(micro.num_pairs for micro in batch)),
            "tokens": float(sum(micro.num_tokens for micro in batch)),
            "flops": sum(part.total for part in work) + forwards,
        }

    @cached_property
    def _work(self) -> WorkCounter:
        """Made at the first step, when it is settled what the stage trains."""
        return WorkCounter(self.module)

    def loss(self, micro: PreferenceMicroBatch, counts: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's share of the loss and of the metrics.

        The loss is float64, as are the log-probabilities it is made of.
        """
        reference_RK = self._reference.scale_logps(micro)
        inputs = micro.inputs.to(self.module.device)
        policy_RK, output = run_pairs(self.module, inputs, 2 * micro.num_pairs)
        zero = keep_in_graph(output) if distributed.world_size() > 1 else 0.0
        assert output.bit_logits_ILd2 is not None
        if not micro.num_pairs:
            return policy_RK.sum() + zero, {}
        total, metrics = self._preference_share(policy_RK, reference_RK.to(policy_RK.device), inputs, counts["pairs"])
        metrics |= self._accuracies(output.bit_logits_ILd2, inputs, counts["pairs"])
        if self._stage.sft_weight:
            supervised = self._supervised_share(output.bit_logits_ILd2, inputs, counts["pairs"])
            metrics["sft_loss"] = supervised.detach()
            total = total + self._stage.sft_weight * supervised
        return total + zero, metrics

    def _preference_share(
        self, policy_RK: Tensor, reference_RK: Tensor, inputs: ModelInputs, all_pairs: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Share of the DPO loss, with rewards and log-probabilities of both sides."""
        stage = self._stage
        assert inputs.schedule is not None
        bits = self.module.config.image_tokenizer.bits
        weights_K = scale_weights(inputs.schedule, bits, self._reduction).to(policy_RK.device)
        policy, reference = (sums * weights_K for sums in (policy_RK, reference_RK))
        chosen, rejected = policy.sum(1).chunk(2)
        reference_chosen, reference_rejected = reference.sum(1).chunk(2)
        pair_losses, won, lost = losses.dpo_loss(
            chosen, rejected, reference_chosen, reference_rejected, stage.beta, stage.loss, stage.label_smoothing
        )
        share = pair_losses.sum() / all_pairs
        by_scale = (policy - reference).detach().chunk(2)
        metrics = {
            "dpo_loss": share.detach(),
            "rewards/chosen": won.sum() / all_pairs,
            "rewards/rejected": lost.sum() / all_pairs,
            "rewards/accuracies": (won > lost).double().sum() / all_pairs,
            "rewards/margins": (won - lost).sum() / all_pairs,
            "logps/chosen": chosen.detach().sum() / all_pairs,
            "logps/rejected": rejected.detach().sum() / all_pairs,
        }
        for scale_index, value in enumerate(stage.beta * (by_scale[0] - by_scale[1]).sum(0) / all_pairs):
            metrics[f"rewards/margins/scale{scale_index}"] = value
        return share, metrics

    @torch.no_grad()
    def _accuracies(self, logits_RLd2: Tensor, inputs: ModelInputs, all_pairs: float) -> dict[str, Tensor]:
        """Shares of the bits of either side that the policy holds for likelier."""
        assert inputs.labels_ILd is not None
        right_RLd = (logits_RLd2[..., 1] > logits_RLd2[..., 0]) == inputs.labels_ILd.bool()
        chosen, rejected = right_RLd.double().mean(dim=(1, 2)).chunk(2)
        return {
            "bit_accuracy/chosen": chosen.sum() / all_pairs,
            "bit_accuracy/rejected": rejected.sum() / all_pairs,
        }

    def _supervised_share(self, logits_RLd2: Tensor, inputs: ModelInputs, all_pairs: float) -> Tensor:
        """Share of the image loss of the chosen side."""
        assert inputs.labels_ILd is not None
        assert inputs.schedule is not None
        count = len(logits_RLd2) // 2
        weights = self.module.behaviour.image_loss_weights
        return losses.image_loss(logits_RLd2[:count], inputs.labels_ILd[:count], inputs.schedule, weights) * (
            count / all_pairs
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The same metrics on what was set aside, without noise; the same on every rank."""
        batch = self._validation_batch()
        counts = distributed.sum_counts(self.counts(batch))
        if not counts["pairs"]:
            return {}
        values: dict[str, float] = {}
        device = self.module.device.type
        for micro in batch:
            with torch.autocast(device, torch.bfloat16, enabled=self._stage.loop.precision == "bf16"):
                loss, metrics = self.loss(micro, counts)
            for name, value in {"loss": loss, **metrics}.items():
                values[name] = values.get(name, 0.0) + float(value)
        return distributed.sum_counts(values)
