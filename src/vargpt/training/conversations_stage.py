"""Supervised fine-tuning on drawing, captioning and editing conversations of an image folder.

Invariant: every random choice of a batch (examples, wording, dropped prompts, bit flips) is made in `batch`, from
(seed, step) alone, before any forward; the loss is a function of tensors.
Shapes as in `vargpt.scales`: `latents_IdHw` are tokenizer features of the images to draw.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vargpt import losses
from vargpt.data.folder import ImageFolder
from vargpt.data.instructions import (
    canonical_caption,
    canonical_draw,
    caption_conversation,
    draw_conversation,
    edit_conversation,
)
from vargpt.image_tokenizer import ImageTokenizer
from vargpt.inputs import ModelInputs
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.processing.collate import Encoded
from vargpt.processing.images import PreparedImage
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.recipe import Mixture, SftStage
from vargpt.training.tokenizer_stage import SampleOrder, load_targets, to_signed

_LATENT_BATCH = 64
_VALIDATION_EXAMPLES = 64
_GROUP_SIZE = 12
"""Rows per forward: examples sorted by length and cut this small waste little padding (draws: 34% -> 10%)."""
TASKS = ("draw", "caption", "edit")


@dataclass(frozen=True)
class Example:
    """One encoded conversation and the images it draws (file names, in order)."""

    encoded: Encoded
    drawn: tuple[str, ...]


class FolderCache:
    """Patches and tokenizer latents of a folder's images, prepared once: they never change while the model trains."""

    def __init__(
        self, folder: ImageFolder, processor: VargptProcessor, tokenizer: ImageTokenizer, schedule: ScaleSchedule
    ) -> None:
        self._folder, self._processor = folder, processor
        self._patches: dict[str, PreparedImage] = {}
        self._tokenizer, self._schedule = tokenizer, schedule
        self._names = [record.file_name for record in folder.images]
        self._index = {name: index for index, name in enumerate(self._names)}

    def patches(self, name: str) -> PreparedImage:
        """The image as patches to understand."""
        if name not in self._patches:
            self._patches[name] = self._processor.understand(self._folder.path(name))
        return self._patches[name]

    def latents(self, names: list[str]) -> Tensor:
        """Tokenizer features of the images, float32 [I, d, h, w]."""
        return self._all_latents[[self._index[name] for name in names]]

    @cached_property
    def _all_latents(self) -> Tensor:
        targets = load_targets(self._folder, self._names, self._schedule)
        with torch.no_grad():
            return torch.cat([self._tokenizer.features(to_signed(images)) for images in targets.split(_LATENT_BATCH)])


def task_counts(mixture: Mixture, batch_size: int) -> dict[str, int]:
    """Split a batch among the tasks by largest remainder, so that every batch has the same composition."""
    weights = {task: getattr(mixture, task) for task in TASKS}
    total = sum(weights.values())
    if total <= 0:
        raise ValueError(f"the mixture needs a positive weight, got {weights}")
    exact = {task: batch_size * weight / total for task, weight in weights.items()}
    counts = {task: int(share) for task, share in exact.items()}
    by_remainder = sorted(TASKS, key=lambda task: counts[task] - exact[task])
    for task in by_remainder[: batch_size - sum(counts.values())]:
        counts[task] += 1
    return counts


def draw_flips(
    count: int, schedule: ScaleSchedule, bits: int, strength: float, generator: torch.Generator
) -> Tensor | None:
    """Bit errors to inject, bool [I, L, d]: one strength per image and scale, uniform in [0, `strength`] (spec 4.4)."""
    if strength <= 0 or count == 0:
        return None
    strengths_IK = torch.rand(count, schedule.num_scales, generator=generator) * strength
    strengths_IL = strengths_IK[:, schedule.scale_ids()]
    return torch.rand(count, schedule.num_tokens, bits, generator=generator) < strengths_IL[..., None]


def _short_sequence_attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """On a CPU, the plain SDPA backend: its backward is 3 times faster than the blocked one below 100 tokens."""
    if device.type != "cpu":
        return contextlib.nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


class ConversationsTask:
    """Joint next-token and next-scale training (a `Task` of the trainer)."""

    def __init__(
        self,
        model: VargptForConditionalGeneration,
        processor: VargptProcessor,
        folder: ImageFolder,
        cache: FolderCache,
        schedule: ScaleSchedule,
        stage: SftStage,
        seed: int,
    ) -> None:
        self.module = model
        self._processor, self._folder, self._cache = processor, folder, cache
        self._schedule, self._stage, self._seed = schedule, stage, seed
        self._counts = task_counts(stage.mixture, stage.loop.batch_size)
        self._images = folder.split_images("train")
        self._edits = folder.split_edits("train")
        if self._counts["edit"] and not self._edits:
            raise ValueError(
                f"stage {stage.name} has a share of edits ({stage.mixture.edit:g}) but the data has no edit pair to "
                f"train on: write edits.jsonl, or set mixture.edit to 0"
            )
        self._order = {
            task: SampleOrder(len(self._edits if task == "edit" else self._images), seed * 31 + number)
            for number, task in enumerate(TASKS)
            if self._counts[task]
        }

    def batch(self, step: int) -> list[ModelInputs]:
        """The conversations of a step with bits and next-scale inputs, collated in groups of like task and length."""
        chance = random.Random(f"{self._seed}:{step}")
        generator = torch.Generator().manual_seed(self._seed * 9_176_263 + step)
        groups = []
        for task, count in self._counts.items():
            if count:
                examples = [self._example(task, index, chance) for index in self._order[task].take(step * count, count)]
                examples.sort(key=lambda example: example.encoded.ids.size)
                parts = -(-count // _GROUP_SIZE)
                bounds = [count * part // parts for part in range(parts + 1)]
                groups += [self._collate(examples[a:b], generator) for a, b in itertools.pairwise(bounds)]
        return groups

    def _example(self, task: str, index: int, chance: random.Random) -> Example:
        variety = self._stage.variety
        if task == "caption":
            record = self._images[index]
            patches = self._cache.patches(record.file_name)
            conversation = caption_conversation(patches, record.text, chance, variety)
            return Example(self._processor.encode(conversation), ())
        if task == "draw":
            record = self._images[index]
            drawn = record.file_name
            conversation = draw_conversation(record.text, None, chance, variety)
        else:
            edit = self._edits[index]
            drawn = edit.target
            source = self._cache.patches(edit.source)
            conversation = edit_conversation(source, None, edit.instruction, chance, variety)
        drop = chance.random() < self._stage.guidance_drop
        if drop and self.module.behaviour.guidance_dropout == "conversation":
            encoded = self._processor.encode_prompt_free(conversation, self._schedule)
        else:
            encoded = self._processor.encode(conversation, self._schedule, drop_start=drop)
        return Example(encoded, (drawn,))

    def _collate(self, examples: list[Example], generator: torch.Generator | None) -> ModelInputs:
        inputs = self._processor.collate([example.encoded for example in examples], multiple_of=1).inputs
        drawn = [name for example in examples for name in example.drawn]
        if not drawn:
            return inputs
        tokenizer = self.module.image_tokenizer
        flips = None
        if generator is not None:
            flips = draw_flips(len(drawn), self._schedule, tokenizer.config.bits, self._stage.flip_strength, generator)
        bits = tokenizer.quantize(self._cache.latents(drawn), self._schedule, flips)
        return replace(inputs, labels_ILd=bits.labels_BLd, next_inputs_IMd=bits.next_inputs_BMd)

    def loss(self, batch: list[ModelInputs]) -> tuple[Tensor, dict[str, Tensor]]:
        """Text loss plus weighted image loss (spec 6.6), with loss and accuracy of every scale.

        Both are means over all targets and all images of the step, however it was split into groups.
        """
        with _short_sequence_attention(self.module.device):
            outputs = [self.module(group, text_logits="targets") for group in batch]
        targets = torch.cat([output.targets_S for output in outputs])
        text = losses.selected_text_loss(torch.cat([output.target_logits_SV for output in outputs]), targets)
        metrics = {"text_loss": text.detach()}
        drawn = [(output, group) for output, group in zip(outputs, batch, strict=True) if group.labels_ILd is not None]
        image = None
        if drawn:
            logits_ILd2 = torch.cat([output.bit_logits_ILd2 for output, _ in drawn])
            labels_ILd = torch.cat([group.labels_ILd for _, group in drawn if group.labels_ILd is not None])
            weights = self.module.config.behaviour.image_loss_weights
            image = losses.image_loss(logits_ILd2, labels_ILd, self._schedule, weights)
            metrics["image_loss"] = image.detach()
            by_scale = losses.scale_metrics(logits_ILd2, labels_ILd, self._schedule)
            for name, values in zip(("bit_loss", "bit_accuracy"), by_scale, strict=True):
                metrics |= {f"{name}/scale{k}": value for k, value in enumerate(values)}
        return losses.total_loss(text, image, self._stage.image_loss_weight), metrics

    def evaluate(self) -> dict[str, float]:
        """Losses on held-out names: drawing and captioning in their canonical wording, no drops, no flips."""
        records = self._folder.split_images("validation")[:_VALIDATION_EXAMPLES]
        groups = []
        if records and self._counts["draw"]:
            draws = [
                Example(self._processor.encode(canonical_draw(record.text), self._schedule), (record.file_name,))
                for record in records
            ]
            groups.append(self._collate(draws, None))
        if records and self._counts["caption"]:
            captions = [
                Example(self._processor.encode(canonical_caption(self._cache.patches(r.file_name), r.text)), ())
                for r in records
            ]
            groups.append(self._collate(captions, None))
        if not groups:
            return {}
        _, metrics = self.loss(groups)
        return {name: float(value) for name, value in metrics.items()}
