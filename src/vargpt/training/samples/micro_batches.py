"""Samples of a step as micro-batches: few padded tokens, one schedule each, and the same shape of work on every rank.

Invariant: which sample is in which micro-batch does not change the step's gradient (up to rounding), since losses are
divided by counts over the whole step. Under several ranks every micro-batch reads and draws at least one image, and all
ranks have equally many: sharded modules then run in the same order everywhere, without which their collectives hang.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vargpt.image_tokenizer import ImageTokenizer
from vargpt.inputs import ModelInputs
from vargpt.losses import IGNORED
from vargpt.processing.collate import Encoded
from vargpt.processing.conversation import Conversation, DrawPart, ImagePart, assistant, user
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule


@dataclass(frozen=True)
class DrawnTarget:
    """What one image to draw is made of: its latent [d, h, w] and the bit errors to inject, bool [L, d] or None."""

    latent_dhw: Tensor
    flips_Ld: Tensor | None


@dataclass(frozen=True)
class Example:
    """One encoded conversation and the images it draws, in order."""

    encoded: Encoded
    drawn: tuple[DrawnTarget, ...] = ()


@dataclass(frozen=True)
class MicroBatch:
    """Rows for one forward; `num_images` of the drawn images count, those of the filler row after them do not."""

    inputs: ModelInputs
    num_images: int

    @property
    def num_targets(self) -> int:
        """Text positions with a loss (the first column predicts nothing)."""
        targets = self.inputs.text_targets_BT
        return 0 if targets is None else int((targets[:, 1:] != IGNORED).sum())

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.inputs.attention_mask_BT.sum())


def split_rows(lengths: Sequence[int], max_rows: int, max_tokens: int | None) -> list[slice]:
    """Cut rows, sorted by length, into groups of at most `max_rows` rows and `max_tokens` padded tokens.

    A row that is longer than `max_tokens` gets a group of its own. Groups of equal limits are equally large where they
    can be.
    """
    groups: list[slice] = []
    parts = -(-len(lengths) // max_rows) if lengths else 0
    for part in range(parts):
        start, end = len(lengths) * part // parts, len(lengths) * (part + 1) // parts
        while start < end:
            stop = start + 1
            while stop < end and (
                max_tokens is None or (stop + 1 - start) * max(lengths[start : stop + 1]) <= max_tokens
            ):
                stop += 1
            groups.append(slice(start, stop))
            start = stop
    return groups


def group_examples(examples: Sequence[Example], max_rows: int, max_tokens: int | None = None) -> list[list[Example]]:
    """Group examples of one schedule (or none) and of like length; the order does not depend on how they came."""
    by_schedule: dict[ScaleSchedule | None, list[Example]] = {}
    for example in examples:
        by_schedule.setdefault(example.encoded.schedule, []).append(example)
    groups = []
    for schedule in sorted(
        by_schedule, key=lambda s: (s is not None, s.template if s else 0.0, s.num_scales if s else 0)
    ):
        rows = sorted(by_schedule[schedule], key=lambda example: example.encoded.ids.size)
        groups += [rows[part] for part in split_rows([row.encoded.ids.size for row in rows], max_rows, max_tokens)]
    return groups


def filler_row(processor: VargptProcessor, schedule: ScaleSchedule, *, reads: bool, draws: bool) -> Encoded:
    """A short row that says nothing: no text target, a tiny image to read, a drawing that does not count."""
    prompt = user(ImagePart(image=Image.new("RGB", (8, 8))), "") if reads else user("")
    answer = assistant(DrawPart()) if draws else assistant("")
    row = processor.encode(Conversation(messages=(prompt, answer)), schedule)
    return replace(row, is_answer=np.zeros_like(row.is_answer))


def make_micro_batch(
    examples: Sequence[Example],
    processor: VargptProcessor,
    tokenizer: ImageTokenizer,
    *,
    fill: bool = False,
) -> MicroBatch:
    """Collate examples of one schedule, and write the images they draw as bits with what the model is fed.

    Args:
        examples: none for a micro-batch that only keeps step with other ranks (`fill`).
        fill: add a row so that something is read and something is drawn in any case.
    """
    rows = [example.encoded for example in examples]
    drawn = [target for example in examples for target in example.drawn]
    schedule = next((row.schedule for row in rows if row.schedule is not None), None)
    reads = any(row.images for row in rows)
    if fill and not (reads and drawn):
        small = schedule or ScaleSchedule(1.0, 1, tokenizer.config.stride)
        schedule = small if not drawn else schedule
        rows.append(filler_row(processor, small, reads=not reads, draws=not drawn))
    inputs = processor.collate(rows, multiple_of=1).inputs
    if len(rows) > len(examples):
        assert inputs.text_targets_BT is not None
        inputs.text_targets_BT[-1] = IGNORED
    if schedule is None:
        return MicroBatch(inputs, 0)
    bits = quantize(drawn, tokenizer, schedule) if drawn else _zero_bits(tokenizer, schedule)
    inputs = replace(inputs, labels_ILd=bits[0], next_inputs_IMd=bits[1])
    return MicroBatch(inputs, len(drawn))


@torch.no_grad()
def quantize(drawn: Sequence[DrawnTarget], tokenizer: ImageTokenizer, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
    """Labels [I, L, d] and next-scale inputs [I, M, d] of images, on the tokenizer's device (spec 4.4)."""
    device = tokenizer.encoder.conv_in.weight.device
    latents_Idhw = torch.stack([target.latent_dhw for target in drawn]).to(device)
    none = torch.zeros(schedule.num_tokens, tokenizer.config.bits, dtype=torch.bool)
    flips = None
    if any(target.flips_Ld is not None for target in drawn):
        flips = torch.stack([none if t.flips_Ld is None else t.flips_Ld for t in drawn]).to(device)
    bits = tokenizer.quantize(latents_Idhw, schedule, flips)
    return bits.labels_BLd, bits.next_inputs_BMd


def _zero_bits(tokenizer: ImageTokenizer, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
    bits, tokens = tokenizer.config.bits, schedule.num_tokens
    return torch.zeros(1, tokens, bits, dtype=torch.uint8), torch.zeros(1, tokens - schedule.lengths[0], bits)
