"""Sampling of bits and tokens from logits: pure functions, one random generator per image.

Invariant: the random numbers of an image depend on its own seed only, never on what else is in the batch; they are
drawn on the CPU, so they are the same on every device.

Legend: `l` tokens of a scale · `d` bits per token · `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_SEED_STEP = 0x9E3779B97F4A7C15  # odd, so that (seed, ordinal) pairs spread over all 64-bit seeds
_TEXT_STREAM = 0x5DEECE66D


@dataclass(frozen=True)
class Sampling:
    """How to generate: image settings, text settings, seeds and limits.

    Attributes:
        guidance_scale: strength s of guided = s * conditional + (1 - s) * unconditional, one number or one per
            scale. 1 everywhere runs no unconditional branch.
        temperature: divides the bit logits before guidance, one number or one per scale; 0 takes the likelier bit.
        top_p: a bit value with probability at most 1 - top_p is never drawn; 1 (or 0) switches this off.
        text_temperature, text_top_k, text_top_p: for words; temperature 0 is greedy, top-k 0 is off.
        max_new_tokens: limit on generated words per sequence; image slots do not count.
        max_images: limit on images per sequence; a further image start is treated as the end.
        force_image: draw an image at once, whatever the model would say.
        stop_after_image: end a sequence after its first image instead of going on talking.
        images_per_prompt: every prompt is continued this many times, with different seeds.
        seeds: one per sequence (prompts times `images_per_prompt`, those of a prompt adjacent); None: the
            sequence's index.
    """

    guidance_scale: float | Sequence[float] = 3.0
    temperature: float | Sequence[float] = 0.5
    top_p: float = 0.97
    text_temperature: float = 0.0
    text_top_k: int = 0
    text_top_p: float = 1.0
    max_new_tokens: int = 256
    max_images: int = 8
    force_image: bool = False
    stop_after_image: bool = False
    images_per_prompt: int = 1
    seeds: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name in ("top_p", "text_top_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        for name, least in (("text_top_k", 0), ("max_new_tokens", 0), ("max_images", 0), ("images_per_prompt", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        temperatures = self.temperature if isinstance(self.temperature, Sequence) else [self.temperature]
        if min(self.text_temperature, *temperatures) < 0:
            raise ValueError(f"temperatures must not be negative, got {self.text_temperature} and {self.temperature}")

    @classmethod
    def official(cls, **overrides: object) -> Sampling:
        """Settings of the published code: guidance 3, temperature 0.5, top-p 0.97, one image and stop."""
        settings: dict[str, object] = {"guidance_scale": 3.0, "temperature": 0.5, "top_p": 0.97}
        return cls(**{**settings, "stop_after_image": True, **overrides})  # type: ignore[arg-type]

    @classmethod
    def paper(cls, **overrides: object) -> Sampling:
        """Settings named in the paper: guidance 1.5, top-p 0.95 (temperature as in the code)."""
        return cls.official(**{"guidance_scale": 1.5, "top_p": 0.95, **overrides})

    def seed_list(self, sequences: int) -> list[int]:
        """Return one seed per sequence."""
        if self.seeds is None:
            return list(range(sequences))
        if len(self.seeds) != sequences:
            raise ValueError(
                f"seeds must hold one number per sequence, i.e. {sequences} (prompts x images_per_prompt), "
                f"got {len(self.seeds)}"
            )
        return [int(seed) for seed in self.seeds]


def per_scale(value: float | Sequence[float], num_scales: int, name: str) -> list[float]:
    """Return one float per scale from a number or a list of exactly that length."""
    if not isinstance(value, Sequence):
        return [float(value)] * num_scales
    if len(value) != num_scales:
        raise ValueError(f"{name} has {len(value)} entries, but this schedule has {num_scales} scales; give one each")
    return [float(item) for item in value]


def image_generator(seed: int, ordinal: int = 0) -> torch.Generator:
    """Return the generator of the `ordinal`-th image of a sequence; the first one is seeded with `seed` itself."""
    return torch.Generator().manual_seed((seed + ordinal * _SEED_STEP) % 2**63)


def text_generator(seed: int) -> torch.Generator:
    """Return the generator of a sequence's words, independent of its images' ones."""
    return torch.Generator().manual_seed((seed ^ _TEXT_STREAM) % 2**63)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Return scale * conditional + (1 - scale) * unconditional (spec 7.5, after the temperature)."""
    return scale * conditional + (1 - scale) * unconditional


def bit_probabilities(logits_ld2: Tensor, top_p: float) -> Tensor:
    """Probabilities [..., 2] of both values of every bit after top-p, float32, in closed form (spec 7.6).

    The less likely value is removed where its probability is at most 1 - top_p; on a tie value 0 counts as the less
    likely one.
    """
    logits = logits_ld2.float()
    probabilities = torch.softmax(logits, dim=-1)
    if not 0 < top_p < 1:
        return probabilities
    zero_is_less = logits[..., 0] <= logits[..., 1]
    less = torch.stack([zero_is_less, ~zero_is_less], dim=-1)
    removed = less & (probabilities <= 1 - top_p)
    return torch.softmax(logits.masked_fill(removed, float("-inf")), dim=-1)


def draw(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Draw an index over the last axis: argmax of probability / Exp(1).

    It consumes one exponential per entry, exactly as a one-sample multinomial draw on the CPU does.
    """
    noise = _exponential(probabilities.shape, generator)
    return (probabilities / noise.to(probabilities.device)).argmax(dim=-1)


def _exponential(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.empty(*shape, dtype=torch.float32).exponential_(generator=generator)


def sample_bits(logits_ld2: Tensor, top_p: float, generator: torch.Generator) -> Tensor:
    """Draw the bits of one scale of one image, uint8 [l, d], with one Exp(1) draw of shape [l * d, 2]."""
    probabilities = bit_probabilities(logits_ld2, top_p)
    return draw(probabilities.flatten(0, 1), generator).view(probabilities.shape[:-1]).to(torch.uint8)


def sample_bits_together(logits_Rld2: Tensor, top_p: float, generators: Sequence[torch.Generator]) -> Tensor:
    """The same for R images at once, uint8 [R, l, d]: each gets the bits that `sample_bits` draws for it alone."""
    rows, tokens, bits, _ = logits_Rld2.shape
    noise = torch.stack([_exponential((tokens * bits, 2), generator) for generator in generators])
    noise_Rld2 = noise.to(logits_Rld2.device).view(rows, tokens, bits, 2)
    return (bit_probabilities(logits_Rld2, top_p) / noise_Rld2).argmax(dim=-1).to(torch.uint8)


def likelier_bits(logits_ld2: Tensor) -> Tensor:
    """Return the likelier value of every bit, uint8 [l, d]; 0 on a tie."""
    return (logits_ld2[..., 1] > logits_ld2[..., 0]).to(torch.uint8)


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Set to -inf what top-k and then top-p (nucleus) remove; 0 (top-k) and 0 or 1 (top-p) switch them off.

    Top-p removes, from the least likely on, the values whose cumulated probability is at most 1 - top_p, and never
    the most likely one.
    """
    if 0 < top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    if 0 < top_p < 1:
        ascending, order = torch.sort(logits, dim=-1, stable=True)
        removed = torch.softmax(ascending, dim=-1).cumsum(dim=-1) <= 1 - top_p
        removed[..., -1] = False
        logits = logits.masked_fill(removed.scatter(-1, order, removed), float("-inf"))
    return logits


def sample_token(logits_V: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> int:
    """Choose one word: greedy at temperature 0, else drawn after top-k and top-p."""
    if temperature == 0:
        return int(logits_V.argmax())
    filtered = filter_logits(logits_V.float() / temperature, top_k, top_p)
    return int(draw(torch.softmax(filtered, dim=-1), generator))


def pixels_to_uint8(images_B3HW: Tensor, rounding: Literal["official", "nearest"] = "nearest") -> Tensor:
    """Bytes [B, H, W, 3] of images in [-1, 1]: truncated (`official`) or rounded to the nearest level."""
    levels = (images_B3HW.float().clamp(-1, 1) + 1) / 2 * 255
    if rounding == "nearest":
        levels = levels.round()
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
