"""Samples of a step as micro-batches: few padded tokens, one schedule each, and the same shape of work on every rank.

Two steps: `collate_examples` needs no model, so that other processes can do it ahead of the loop; `with_bits` adds what
the image tokenizer makes of the pictures.

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

from vargpt.inputs import ModelInputs
from vargpt.losses import IGNORED
from vargpt.processing.collate import Encoded
from vargpt.processing.conversation import Conversation, DrawPart, ImagePart, assistant, user
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.samples.image_cache import ImageCache, Picture


@dataclass(frozen=True)
class DrawnTarget:
    """One image to draw, the place of its crop, and the bit errors to inject, bool [L, d] or None."""

    picture: Picture
    offset: tuple[float, float]
    flips_Ld: Tensor | None


@dataclass(frozen=True)
class Collated:
    """Rows for one forward that still lack their bits.

    Attributes:
        pictures: of the images to draw, by row; one tensor uint8 [I, 3, H, W] where all are bytes.
        flips_ILd: bit errors to inject, or None.
    """

    inputs: ModelInputs
    pictures: Tensor | tuple[Picture, ...]
    offsets: tuple[tuple[float, float], ...]
    flips_ILd: Tensor | None


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
    def num_answered(self) -> int:
        """Rows that have such positions."""
        targets = self.inputs.text_targets_BT
        return 0 if targets is None else int((targets[:, 1:] != IGNORED).any(dim=1).sum())

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


def group_examples(
    examples: Sequence[Example], max_rows: int, max_tokens: int | None = None, *, few: bool = False
) -> list[list[Example]]:
    """Group examples of one schedule (or none) and of like length; the order does not depend on how they came.

    Args:
        few: rows that draw nothing join those of the only schedule: more padding, fewer forwards.
    """
    by_schedule: dict[ScaleSchedule | None, list[Example]] = {}
    for example in examples:
        by_schedule.setdefault(example.encoded.schedule, []).append(example)
    if few and None in by_schedule and len(by_schedule) == 2:
        by_schedule = {max(by_schedule, key=lambda schedule: schedule is not None): list(examples)}
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


def collate_examples(
    examples: Sequence[Example], processor: VargptProcessor, stride: int, *, fill: bool = False
) -> Collated:
    """Collate examples of one schedule.

    Args:
        examples: none for a micro-batch that only keeps step with other ranks (`fill`).
        stride: pixels per latent position, for the schedule of a filler.
        fill: add a row so that something is read and something is drawn in any case.
    """
    rows = [example.encoded for example in examples]
    drawn = [target for example in examples for target in example.drawn]
    schedule = next((row.schedule for row in rows if row.schedule is not None), None)
    reads = any(row.images for row in rows)
    if fill and not (reads and drawn):
        small = schedule or ScaleSchedule(1.0, 1, stride)
        rows.append(filler_row(processor, small, reads=not reads, draws=not drawn))
    inputs = processor.collate(rows, multiple_of=1).inputs
    if len(rows) > len(examples):
        assert inputs.text_targets_BT is not None
        inputs.text_targets_BT[-1] = IGNORED
    return Collated(inputs, _stacked(drawn), tuple(target.offset for target in drawn), _flips(drawn))


def _stacked(drawn: Sequence[DrawnTarget]) -> Tensor | tuple[Picture, ...]:
    """Bytes of one size as one tensor: the fewer tensors, the cheaper the way between processes."""
    pictures = [target.picture for target in drawn]
    bytes_only = [p for p in pictures if isinstance(p, Tensor) and p.dtype == torch.uint8]
    return torch.stack(bytes_only) if pictures and len(bytes_only) == len(pictures) else tuple(pictures)


def _flips(drawn: Sequence[DrawnTarget]) -> Tensor | None:
    shape = next((target.flips_Ld.shape for target in drawn if target.flips_Ld is not None), None)
    if shape is None:
        return None
    none = torch.zeros(shape, dtype=torch.bool)
    return torch.stack([none if target.flips_Ld is None else target.flips_Ld for target in drawn])


@torch.no_grad()
def with_bits(rows: Collated, cache: ImageCache) -> MicroBatch:
    """Write the images that rows draw as bits, with what the model is fed (spec 4.4)."""
    inputs, images, tokenizer = rows.inputs, len(rows.pictures), cache.tokenizer
    schedule = inputs.schedule
    if schedule is None:
        return MicroBatch(inputs, 0)
    if not images:
        labels, following = _zero_bits(tokenizer.config.bits, schedule)
        return MicroBatch(replace(inputs, labels_ILd=labels, next_inputs_IMd=following), 0)
    latents_Idhw = cache.latents(rows.pictures, schedule, rows.offsets)
    flips = None if rows.flips_ILd is None else rows.flips_ILd.to(latents_Idhw.device)
    bits = tokenizer.quantize(latents_Idhw, schedule, flips)
    return MicroBatch(replace(inputs, labels_ILd=bits.labels_BLd, next_inputs_IMd=bits.next_inputs_BMd), images)


def make_micro_batch(
    examples: Sequence[Example], processor: VargptProcessor, cache: ImageCache, *, fill: bool = False
) -> MicroBatch:
    """Collate examples of one schedule, and write the images they draw as bits; see `collate_examples`."""
    return with_bits(collate_examples(examples, processor, cache.tokenizer.config.stride, fill=fill), cache)


def _zero_bits(bits: int, schedule: ScaleSchedule) -> tuple[Tensor, Tensor]:
    tokens = schedule.num_tokens
    return torch.zeros(1, tokens, bits, dtype=torch.uint8), torch.zeros(1, tokens - schedule.lengths[0], bits)
