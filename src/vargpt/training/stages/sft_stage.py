"""Supervised fine-tuning: reading, drawing and editing conversations under one loss rule (a `Task` of the trainer).

Invariant: the loss is a mean over all text targets (or conversations with some) and all drawn images of the step,
whatever the micro-batches and ranks it was split into; a batch is a function of (seed, step).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vargpt import losses
from vargpt.data.loader import Loader
from vargpt.data.sources.protocol import Source
from vargpt.inputs import ModelInputs
from vargpt.model.modeling import VargptForConditionalGeneration, VargptOutput
from vargpt.processing.conversation import Conversation
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training import distributed
from vargpt.training.planning.flops import WorkCounter
from vargpt.training.recipes.schema import SftStage
from vargpt.training.samples.examples import ExampleMaker, SampleStream
from vargpt.training.samples.image_cache import ImageCache
from vargpt.training.samples.micro_batches import (
    Collated,
    Example,
    MicroBatch,
    collate_examples,
    group_examples,
    make_micro_batch,
    with_bits,
)

_SHORT = 256
"""Columns up to which the plain SDPA backend is faster on a CPU (its backward is 3 times faster below 100)."""

_PLANNED = 1024
"""Columns up to which cuDNN's attention is not worth its plans. It makes one for every new shape, and the rows of every
step have another length: 234 of the 602 ms of a small model's profiled step on an H200 (docs/log.md)."""


def short_sequence_attention(inputs: ModelInputs, model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """SDPA backends for short rows: the plain one on a CPU, all but cuDNN's on a GPU; PyTorch's own choice for long.

    Not where blocks recompute their activations: the backward runs outside of this context, and must do what the
    forward did.
    """
    columns, on_cpu = inputs.input_ids_BT.shape[1], inputs.input_ids_BT.device.type == "cpu"
    if columns > (_SHORT if on_cpu else _PLANNED):
        return contextlib.nullcontext()
    if any(block.gradient_checkpointing for block in distributed.transformer_blocks(model)):
        return contextlib.nullcontext()
    if on_cpu:
        return sdpa_kernel(SDPBackend.MATH)
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def keep_in_graph(output: VargptOutput) -> Tensor:
    """Zero, computed from all that the forward made.

    Under several ranks a micro-batch may hold nothing but a filler row; its backward must still pass through every
    sharded module, or the gradients' collectives of the other ranks wait for ever.
    """
    zero = 0.0 * output.hidden_BTD.float().sum()
    for part in (output.target_logits_SV, output.bit_logits_ILd2):
        if part is not None:
            zero = zero + 0.0 * part.float().sum()
    return zero


class SftTask:
    """Joint next-token and next-scale training.

    Args:
        validation: conversations by name (`draw`, `caption`, ...) that are evaluated in their canonical wording.
    """

    def __init__(
        self,
        model: VargptForConditionalGeneration,
        processor: VargptProcessor,
        sources: Mapping[str, Source],
        cache: ImageCache,
        schedule: ScaleSchedule,
        stage: SftStage,
        seed: int,
        validation: Mapping[str, Sequence[Conversation]] | None = None,
    ) -> None:
        self.module = model
        self._processor, self._schedule, self._stage, self._cache = processor, schedule, stage, cache
        self._stream = SampleStream(stage.name, stage.data, sources, stage.variety, seed)
        self._maker = ExampleMaker(stage, model, processor, cache, schedule, seed)
        self._loader = Loader(self._collated, stage.workers, end=stage.loop.stop_at or stage.loop.steps)
        tasks = {entry.task for entry in stage.data}
        self._validation = {name: list(items) for name, items in (validation or {}).items() if name in tasks and items}

    def positions(self, step: int) -> range:
        """Positions of this rank's samples in a step: every rank takes its own stretch of the step's samples."""
        size = self._stage.loop.batch_size
        mine = distributed.share(size)
        return range(step * size + mine.start, step * size + mine.stop)

    def batch(self, step: int) -> list[MicroBatch]:
        """This rank's samples of a step, collated in micro-batches of like length."""
        groups = self._loader.get(step)
        several = distributed.world_size() > 1
        missing = distributed.max_int(len(groups)) - len(groups) if several else 0
        return [with_bits(group, self._cache) for group in groups] + [self._filler() for _ in range(missing)]

    def _collated(self, step: int) -> list[Collated]:
        """What of a step needs no model: `workers` processes make it ahead."""
        loop, stride = self._stage.loop, self._cache.tokenizer.config.stride
        examples = [self._maker.training(self._stream.at(position), position) for position in self.positions(step)]
        fill, few = distributed.world_size() > 1, self._cache.encodes_together
        groups = group_examples(examples, loop.micro_batch_size, loop.micro_batch_tokens, few=few)
        return [collate_examples(group, self._processor, stride, fill=fill) for group in groups]

    def _filler(self) -> MicroBatch:
        """A micro-batch that only keeps step with other ranks."""
        return make_micro_batch([], self._processor, self._cache, fill=True)

    def close(self) -> None:
        """Stop preparing samples ahead, and keep the latents that were made."""
        self._loader.close()
        self._cache.flush()

    def counts(self, batch: Sequence[MicroBatch]) -> dict[str, float]:
        """Denominators: text targets, conversations with some, drawn images; `tokens` and `flops` for the record."""
        recompute = self._stage.loop.activation_checkpointing
        return {
            "targets": float(sum(micro.num_targets for micro in batch)),
            "answered": float(sum(micro.num_answered for micro in batch)),
            "images": float(sum(micro.num_images for micro in batch)),
            "tokens": float(sum(micro.num_tokens for micro in batch)),
            "flops": sum(self._work.batch(micro.inputs, recompute).total for micro in batch),
        }

    @cached_property
    def _work(self) -> WorkCounter:
        """Made at the first step, when it is settled what the stage trains."""
        return WorkCounter(self.module)

    def loss(self, micro: MicroBatch, counts: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's share of text loss plus weighted image loss (spec 6.6), with both by name and scale."""
        inputs = micro.inputs.to(self.module.device)
        with short_sequence_attention(inputs, self.module):
            output = self.module(inputs, text_logits="targets")
        text = self._text_share(output, inputs, counts)
        metrics = {"text_loss": text.detach()} if counts["targets"] else {}
        image = None
        if micro.num_images:
            image, image_metrics = self._image_share(output, inputs, micro.num_images, counts["images"])
            metrics |= image_metrics
        total = losses.total_loss(text, image, self._stage.image_loss_weight)
        return (total + keep_in_graph(output) if distributed.world_size() > 1 else total), metrics

    def _text_share(self, output: VargptOutput, inputs: ModelInputs, counts: Mapping[str, float]) -> Tensor:
        assert output.targets_S is not None
        assert output.target_logits_SV is not None
        assert inputs.text_targets_BT is not None
        if self._stage.text_loss_over == "conversations":
            weights_S = losses.conversation_weights(inputs.text_targets_BT) / max(counts["answered"], 1.0)
            return losses.selected_text_loss(output.target_logits_SV, output.targets_S, weights_S)
        share = output.targets_S.numel() / max(counts["targets"], 1.0)
        return losses.selected_text_loss(output.target_logits_SV, output.targets_S) * share

    def _image_share(
        self, output: VargptOutput, inputs: ModelInputs, num_images: int, all_images: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Shares of image loss and of loss and accuracy per scale; a filler's drawing, the last, is left out."""
        assert output.bit_logits_ILd2 is not None
        assert inputs.labels_ILd is not None
        assert inputs.schedule is not None
        logits_ILd2, labels_ILd = output.bit_logits_ILd2[:num_images], inputs.labels_ILd[:num_images]
        share = num_images / all_images
        weights = self.module.config.behaviour.image_loss_weights
        image = losses.image_loss(logits_ILd2, labels_ILd, inputs.schedule, weights) * share
        metrics = {"image_loss": image.detach()}
        by_scale = losses.scale_metrics(logits_ILd2, labels_ILd, inputs.schedule)
        for name, values in zip(("bit_loss", "bit_accuracy"), by_scale, strict=True):
            metrics |= {f"{name}/scale{k}": value * share for k, value in enumerate(values)}
        return image, metrics

    def evaluate(self) -> dict[str, float]:
        """Losses by task on what was set aside: canonical wording, no drops, no flips; the same on every rank."""
        values: dict[str, float] = {}
        for task, conversations in self._validation.items():
            batch = self._validation_batch([self._maker.canonical(conversation) for conversation in conversations])
            counts = self.counts(batch)
            for micro in batch:
                for name, value in self.loss(micro, counts)[1].items():
                    if "/" not in name:  # the scales of three tasks would be too many curves
                        values[f"{task}/{name}"] = values.get(f"{task}/{name}", 0.0) + float(value)
        return values

    def _validation_batch(self, examples: Sequence[Example]) -> list[MicroBatch]:
        """The same micro-batches on every rank."""
        loop, several = self._stage.loop, distributed.world_size() > 1
        groups = group_examples(examples, loop.micro_batch_size, loop.micro_batch_tokens)
        return [make_micro_batch(group, self._processor, self._cache, fill=several) for group in groups]
