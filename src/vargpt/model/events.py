"""What `generate` yields, and the seams through which a caller replaces its sampling.

Invariant: events of one sequence come in order (`ScaleDone` coarse to fine, then `ImageDone`; `Finished` last);
sequences of a batch are interleaved. Tensors belong to the receiver.

Legend: `l` tokens of a scale · `L` all image tokens · `d` bits · `h w` last grid · `H W` pixels · `C D` widths ·
`G` guidance branches (1, or 2: conditional, unconditional) · `n` columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

from vargpt.scales import ScaleSchedule

FinishReason = Literal["stop", "length", "image"]


class BitSampler(Protocol):
    """Chooses the bits of one scale: uint8 [l, d] from guided logits [l, d, 2] (already divided by temperature)."""

    def __call__(self, logits_ld2: Tensor, sequence: int, image: int, scale_index: int) -> Tensor: ...


class TokenSampler(Protocol):
    """Chooses the next token id of a sequence from logits [V]; `step` counts the choices it has made."""

    def __call__(self, logits_V: Tensor, sequence: int, step: int) -> int: ...


@dataclass(frozen=True)
class CallTrace:
    """One language-model call of a sequence before or between images: positions, history length, hidden states."""

    position_ids_3n: Tensor
    past_length: int
    hidden_nD: Tensor


@dataclass(frozen=True)
class ScaleTrace:
    """Intermediate values of one scale of one image; the unconditional ones are None without guidance."""

    past_length: int
    backbone_inputs_GlD: Tensor
    backbone_hidden_GlD: Tensor
    raw_logits_Gld2: Tensor
    guided_logits_ld2: Tensor


@dataclass(frozen=True)
class ImageTrace:
    """Intermediate values of one image phase."""

    calls: tuple[CallTrace, ...]
    hidden_nD: Tensor
    condition_GC: Tensor
    contexts: tuple[Tensor, ...]
    """Cross-attention context rows [n, C] of each branch."""


@dataclass(frozen=True)
class TextDelta:
    """A sequence said one more token (image markers are not reported here)."""

    sequence: int
    token_id: int


@dataclass(frozen=True)
class ScaleDone:
    """One scale of an image is fixed; `image_tokenizer.decode(canvas_1dhw)` gives a preview."""

    sequence: int
    image: int
    scale_index: int
    schedule: ScaleSchedule
    bits_ld: Tensor
    canvas_1dhw: Tensor
    trace: ScaleTrace | None = None


@dataclass(frozen=True)
class ImageDone:
    """An image is finished.

    `image_3HW` is in [-1, 1]. `stray_token_id` is the token that the published loop draws after the image start and
    never feeds (None unless the behaviour's `stray_token` is official).
    """

    sequence: int
    image: int
    schedule: ScaleSchedule
    bits_Ld: Tensor
    canvas_1dhw: Tensor
    image_3HW: Tensor
    stray_token_id: int | None = None
    trace: ImageTrace | None = None


@dataclass(frozen=True)
class Finished:
    """A sequence ended: by its end token, by a limit, or after its image.

    `token_ids` is all it generated: words, and for each image its start, its slots and its end.
    """

    sequence: int
    reason: FinishReason
    token_ids: list[int] = field(default_factory=list)


Event = TextDelta | ScaleDone | ImageDone | Finished
