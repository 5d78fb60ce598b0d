"""Preference pairs as micro-batches: which pair stands where, its bits, the bit errors injected, the rows.

Invariant: what stands at a position is a function of (seed, stage, position) and the pairs. Policy and reference get
the same tensors, and both sides of a pair the same bit errors and crop: where the sides agree they cancel, so two equal
pictures have no margin. Only `reference_noise: independent` gives each of the four its own bit errors (the published
noise, spec 8.4).

Layout of a micro-batch of P pairs (TRL's): rows 0 to P-1 hold the chosen pictures, rows P to 2P-1 the rejected ones,
and under several ranks a filler row may follow.

Legend: `L d` image tokens, bits · `M` = L - n_0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from vargpt.data.order import Permutation
from vargpt.data.pairs import DrawnImage, Pair
from vargpt.image_tokenizer import ImageTokenizer
from vargpt.inputs import ModelInputs
from vargpt.processing.collate import Encoded
from vargpt.processing.conversation import Conversation, DrawPart, Message, assistant
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.recipes.schema import DpoStage
from vargpt.training.samples.micro_batches import filler_row, split_rows
from vargpt.training.steps import chance_at, draw_flips, stream_seed

_MOST_TRIES = 10_000


class Pairs(Protocol):
    """Pairs by number: a list, or a `PairFolder`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pair: ...


@dataclass(frozen=True)
class TeacherBits:
    """One picture as labels uint8 [L, d] and the inputs of the scales after the first [M, d]."""

    labels_Ld: Tensor
    next_inputs_Md: Tensor


@dataclass(frozen=True)
class PreparedPair:
    """A pair at a position: one encoded row (the words of both sides are the same) and the bits of (chosen, rejected).

    `reference` is `policy` itself unless the stage asks for independent noise.
    """

    position: int
    encoded: Encoded
    policy: tuple[TeacherBits, TeacherBits]
    reference: tuple[TeacherBits, TeacherBits]


@dataclass(frozen=True)
class PreferenceMicroBatch:
    """Rows for one forward of the policy and one of the reference.

    Attributes:
        inputs: 2P rows, chosen then rejected, and perhaps a filler row.
        reference_inputs: the same object where both see the same noise.
        positions: of the P pairs; none in a micro-batch that only keeps step with other ranks.
    """

    inputs: ModelInputs
    reference_inputs: ModelInputs
    positions: tuple[int, ...]

    @property
    def num_pairs(self) -> int:
        """P: pairs that count."""
        return len(self.positions)

    @property
    def num_tokens(self) -> int:
        """Tokens of the policy that are not padding."""
        return int(self.inputs.attention_mask_BT.sum())


class PairOrder:
    """Which pair stands at a position: all that are not held out, shuffled anew every epoch.

    A pair is held out by the hash of its key, so it stays out of training whatever folder it is in. Keys are read when
    a pair is: where the order meets one that is held out, another one is drawn for this position.
    """

    def __init__(self, pairs: Pairs, stage: str, seed: int, validation_fraction: float) -> None:
        if len(pairs) == 0:
            raise ValueError(f"stage {stage}: there is no pair to train on; make some with `vargpt prefer`")
        self._pairs, self._stage, self._seed, self._fraction = pairs, stage, seed, validation_fraction
        self._order = Permutation(len(pairs), stream_seed(seed, stage, 0, "order"))

    def at(self, position: int) -> Pair:
        """The pair at a position.

        Raises:
            ValueError: if (almost) all pairs are held out.
        """
        pair = self._pairs[self._order.at(position)]
        tries = 0
        while is_held_out(pair.key, self._fraction):
            tries += 1
            if tries > _MOST_TRIES:
                raise ValueError(
                    f"stage {self._stage}: none of the {len(self._pairs)} pairs is left to train on; lower "
                    f"validation_fraction ({self._fraction:g}) or make more pairs"
                )
            pair = self._pairs[stream_seed(self._seed, self._stage, position, f"instead {tries}") % len(self._pairs)]
        return pair

    def held_out(self, most: int) -> list[Pair]:
        """The first pairs that are set aside, at most `most` of them; looks at no more pairs than it has to."""
        found: list[Pair] = []
        if self._fraction == 0:
            return found
        for index in range(min(len(self._pairs), _MOST_TRIES)):
            pair = self._pairs[index]
            if is_held_out(pair.key, self._fraction):
                found.append(pair)
            if len(found) == most:
                break
        return found


def is_held_out(key: str, fraction: float) -> bool:
    """Whether a pair is set aside for validation: by the hash of its key."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


class PairMaker:
    """Prepares pairs: their row, their bits, and everything that is drawn at random at a position.

    Stored bits are taken where no errors are injected: they are what was sampled, and encoding a sampled picture gives
    other bits. Where errors are injected, the pictures are encoded: labels that repair an error need the latent, which
    bits do not hold. Both sides are always made the same way.

    Args:
        bits_fit: the pairs' bits were made by this image tokenizer (`image_tokenizer_hash`).
    """

    def __init__(
        self, stage: DpoStage, processor: VargptProcessor, tokenizer: ImageTokenizer, seed: int, bits_fit: bool
    ) -> None:
        self._stage, self._processor, self._tokenizer = stage, processor, tokenizer
        self._seed, self._bits_fit = seed, bits_fit

    def training(self, pair: Pair, position: int) -> PreparedPair:
        """A pair with the noise and crop of its position."""
        offset = (0.5, 0.5)
        if self._processor.behaviour.target_crop == "official":
            chance = chance_at(self._seed, self._stage.name, position, "crop")
            offset = (chance.random(), chance.random())
        purposes = ("flips",) * 4
        if self._stage.reference_noise == "independent":
            purposes = ("policy chosen", "policy rejected", "reference chosen", "reference rejected")
        flips = {purpose: self._flips(position, purpose, pair.schedule) for purpose in purposes}
        return self._prepare(pair, position, offset, tuple(flips[purpose] for purpose in purposes))

    def validation(self, pair: Pair, position: int) -> PreparedPair:
        """A pair without noise, centred."""
        return self._prepare(pair, position, (0.5, 0.5), (None,) * 4)

    def _flips(self, position: int, purpose: str, schedule: ScaleSchedule) -> Tensor | None:
        if self._stage.flip_strength == 0:
            return None
        bits, strength = self._tokenizer.config.bits, self._stage.flip_strength
        return draw_flips(self._seed, self._stage.name, position, schedule, bits, strength, purpose)

    def _prepare(
        self, pair: Pair, position: int, offset: tuple[float, float], flips: tuple[Tensor | None, ...]
    ) -> PreparedPair:
        conversation = Conversation(messages=(*pair.prompt.messages, _answer(pair.answer)))
        encoded = self._processor.encode(conversation, pair.schedule)
        policy = self._bits(pair, offset, flips[:2])
        reference = policy
        if self._stage.reference_noise == "independent" and flips[2] is not None:
            reference = self._bits(pair, offset, flips[2:])
        return PreparedPair(position, encoded, policy, reference)

    def _bits(
        self, pair: Pair, offset: tuple[float, float], flips: tuple[Tensor | None, ...]
    ) -> tuple[TeacherBits, TeacherBits]:
        stored = (pair.chosen.bits, pair.rejected.bits)
        if flips[0] is None and self._bits_fit and stored[0] is not None and stored[1] is not None:
            return self._stored(stored[0], pair), self._stored(stored[1], pair)
        chosen, rejected = (
            self._encoded(side, pair.schedule, offset, flip)
            for side, flip in zip((pair.chosen, pair.rejected), flips, strict=True)
        )
        return chosen, rejected

    def _encoded(
        self, side: DrawnImage, schedule: ScaleSchedule, offset: tuple[float, float], flips_Ld: Tensor | None
    ) -> TeacherBits:
        """Bits of a picture, encoded alone and in full precision: the same in any batch and under autocast."""
        device = self._tokenizer.encoder.conv_in.weight.device
        pixels_3HW = self._processor.target(side.png, schedule, offset=offset)
        flips_1Ld = None if flips_Ld is None else flips_Ld[None].to(device)
        with torch.autocast(device.type, enabled=False):
            bits = self._tokenizer.encode(pixels_3HW[None].to(device), schedule, flips_1Ld)
        return TeacherBits(bits.labels_BLd[0].cpu(), bits.next_inputs_BMd[0].cpu())

    def _stored(self, bits_Ld: Tensor, pair: Pair) -> TeacherBits:
        expected = (pair.schedule.num_tokens, self._tokenizer.config.bits)
        if tuple(bits_Ld.shape) != expected:
            raise ValueError(f"pair {pair.key!r}: bits must have shape {expected}, got {tuple(bits_Ld.shape)}")
        canvas, following = None, []
        for scale_index in range(pair.schedule.num_scales):
            scale = bits_Ld[None, pair.schedule.slice(scale_index)]
            canvas, next_inputs = self._tokenizer.advance(canvas, scale, scale_index, pair.schedule)
            if next_inputs is not None:
                following.append(next_inputs[0])
        inputs = torch.cat(following) if following else torch.zeros(0, expected[1])
        return TeacherBits(bits_Ld, inputs)


def _answer(words: str) -> Message:
    return assistant(words, DrawPart()) if words else assistant(DrawPart())


def group_pairs(pairs: Sequence[PreparedPair], max_pairs: int, max_tokens: int | None) -> list[list[PreparedPair]]:
    """Group pairs of one schedule and like length: at most `max_pairs`, and `max_tokens` tokens of both sides."""
    by_schedule: dict[ScaleSchedule, list[PreparedPair]] = {}
    for pair in pairs:
        assert pair.encoded.schedule is not None
        by_schedule.setdefault(pair.encoded.schedule, []).append(pair)
    groups = []
    for schedule in sorted(by_schedule, key=lambda s: (s.template, s.num_scales)):
        rows = sorted(by_schedule[schedule], key=lambda pair: pair.encoded.ids.size)
        groups += [rows[part] for part in split_rows([2 * r.encoded.ids.size for r in rows], max_pairs, max_tokens)]
    return groups


def make_micro_batch(
    pairs: Sequence[PreparedPair], processor: VargptProcessor, tokenizer: ImageTokenizer, *, fill: bool = False
) -> PreferenceMicroBatch:
    """Collate pairs of one schedule.

    Args:
        pairs: none for a micro-batch that only keeps step with other ranks (`fill`).
        fill: add a row so that a picture is read and one is drawn in any case.
    """
    rows = [pair.encoded for pair in pairs] * 2
    schedule = rows[0].schedule if rows else ScaleSchedule(1.0, 1, tokenizer.config.stride)
    assert schedule is not None
    reads = any(row.images for row in rows)
    if fill and not (reads and rows):
        rows = [*rows, filler_row(processor, schedule, reads=not reads, draws=not rows)]
    bare = processor.collate(rows, multiple_of=1).inputs
    inputs = _with_bits(bare, [pair.policy for pair in pairs], schedule, tokenizer.config.bits)
    reference = inputs
    if any(pair.reference is not pair.policy for pair in pairs):
        reference = _with_bits(bare, [pair.reference for pair in pairs], schedule, tokenizer.config.bits)
    return PreferenceMicroBatch(inputs, reference, tuple(pair.position for pair in pairs))


def _with_bits(
    inputs: ModelInputs, sides: Sequence[tuple[TeacherBits, TeacherBits]], schedule: ScaleSchedule, bits: int
) -> ModelInputs:
    """Bits of all chosen, then of all rejected pictures; zeros for the drawing of a filler row."""
    pictures = [chosen for chosen, _ in sides] + [rejected for _, rejected in sides]
    if not pictures:
        tokens = schedule.num_tokens
        empty = torch.zeros(tokens, bits, dtype=torch.uint8), torch.zeros(tokens - schedule.lengths[0], bits)
        pictures = [TeacherBits(*empty)]
    return replace(
        inputs,
        labels_ILd=torch.stack([picture.labels_Ld for picture in pictures]),
        next_inputs_IMd=torch.stack([picture.next_inputs_Md for picture in pictures]),
    )
