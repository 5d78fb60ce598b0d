"""N pictures per prompt, with the bits that they were drawn from.

Invariant: the seed of a picture is a function of (seed, number of the prompt, number of the sample), so which pictures
are drawn does not depend on how they are put into batches, on shards or on restarts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from vargpt.data.pair_records import image_tokenizer_hash, schedule_to_json
from vargpt.inference.drafting import with_drafts
from vargpt.inference.pipeline import VargptPipeline
from vargpt.inference.requests import prompt_free_request
from vargpt.inference.streams import group_requests
from vargpt.inputs import ModelInputs
from vargpt.model.events import ImageDone
from vargpt.processing.conversation import Conversation, DrawSource
from vargpt.processing.images import open_image, target_pixels
from vargpt.sampling import Sampling, pixels_to_uint8
from vargpt.scales import ScaleSchedule

_SAMPLED_VALUES = 256


@dataclass(frozen=True)
class Drawing:
    """A picture and its bits (uint8 [L, d], on the CPU); `seed` is None for one that was not sampled."""

    image: Image.Image
    bits_Ld: Tensor
    seed: int | None


class Painter(Protocol):
    """What makes the pictures of pairs."""

    schedule: ScaleSchedule

    def draw(self, requests: Sequence[Conversation], seeds: Sequence[Sequence[int]]) -> list[list[Drawing]]:
        """Draw every request once with each of its seeds; all requests have equally many."""

    def encode(self, picture: DrawSource) -> Drawing:
        """Bring a given picture to the schedule's size and write it as bits."""

    def describe(self) -> dict[str, Any]:
        """All that decides what is drawn beside requests and seeds, as JSON values."""


def picture_seed(seed: int, prompt: int, sample: int) -> int:
    """The seed, 63 bits, of one sample of one prompt."""
    digest = hashlib.sha256(f"{seed}:pairs:{prompt}:{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def draw_samples(
    painter: Painter, requests: Sequence[Conversation], seeds: Sequence[Sequence[int]], batch_size: int
) -> Iterator[list[tuple[int, Drawing]]]:
    """Draw every request with each of its seeds, at most `batch_size` pictures at once.

    Yields:
        After each batch its pictures with the number of their request, samples of a request in their order.
    """
    copies = len(seeds[0])
    for group in group_requests(len(requests), range(copies), batch_size):
        chosen = [[seeds[prompt][copy] for copy in group.seeds] for prompt in group.prompts]
        drawn = painter.draw([requests[prompt] for prompt in group.prompts], chosen)
        yield [(prompt, picture) for prompt, row in zip(group.prompts, drawn, strict=True) for picture in row]


class ModelPainter:
    """A painter that samples from a model.

    Args:
        pipeline: of a loaded model, or `VargptPipeline(model, processor)` of one in memory (which puts it into
            evaluation mode).
        sampling: guidance, temperature and top-p; the rest is decided here.
        schedule: grids of the pictures; the model's own square by default.
        drafts: let the model say first what it will draw, anew for every seed. Not for pairs: both of their pictures
            follow the same words.
    """

    def __init__(
        self,
        pipeline: VargptPipeline,
        sampling: Sampling | None = None,
        schedule: ScaleSchedule | None = None,
        drafts: bool = False,
    ) -> None:
        self.pipeline, self.drafts = pipeline, drafts
        self.sampling = sampling or pipeline.sampling
        self.schedule = schedule or pipeline.model.config.schedule()

    def draw(self, requests: Sequence[Conversation], seeds: Sequence[Sequence[int]]) -> list[list[Drawing]]:
        """Draw every request once with each of its seeds; all requests have equally many."""
        asked, copies = len(requests), len(seeds[0])
        flat = [seed for row in seeds for seed in row]
        if self.drafts:
            requests = [request for request in requests for _ in range(copies)]
            requests = with_drafts(self.pipeline, requests, flat, len(flat))
        per_request = len(flat) // len(requests)
        settings = replace(
            self.sampling, images_per_prompt=per_request, seeds=flat, force_image=True, stop_after_image=True
        )
        inputs = self.pipeline.inputs(list(requests))
        done: dict[int, Drawing] = {}
        events = self.pipeline.model.generate(
            inputs, settings, unconditional=self._unconditional(requests), schedule=self.schedule
        )
        for event in events:
            if isinstance(event, ImageDone):
                image = self.pipeline.to_output([event.image_3HW], "pil")[0]
                done[event.sequence] = Drawing(image, event.bits_Ld.to("cpu", torch.uint8), flat[event.sequence])
        return [[done[row * copies + copy] for copy in range(copies)] for row in range(asked)]

    def encode(self, picture: DrawSource) -> Drawing:
        """Bring a given picture to the schedule's size and write it as bits.

        Raises:
            ValueError: for a picture that cannot be opened, or pixels of another size.
        """
        if isinstance(picture, Tensor):
            expected = (3, *self.schedule.image_size)
            if tuple(picture.shape) != expected:
                raise ValueError(f"pixels of a given picture must be {expected}, got {tuple(picture.shape)}")
            pixels = picture
        else:
            height, width = self.schedule.image_size
            official = self.pipeline.processor.draws_official and height == width  # defined for squares only
            fit: Literal["official", "crop"] = "official" if official else "crop"
            pixels = target_pixels(open_image(picture), self.schedule, fit=fit)
        tokenizer = self.pipeline.model.image_tokenizer
        bits = tokenizer.encode(pixels[None].to(self.pipeline.device), self.schedule).labels_BLd[0]
        image = Image.fromarray(pixels_to_uint8(pixels[None])[0].cpu().numpy())
        return Drawing(image, bits.to("cpu", torch.uint8), None)

    def describe(self) -> dict[str, Any]:
        """Fingerprints of the weights, settings of the sampling, the schedule."""
        settings = asdict(self.sampling)
        return {
            "model": model_fingerprint(self.pipeline.model),
            "image_tokenizer": image_tokenizer_hash(self.pipeline.model.image_tokenizer),
            "dtype": str(self.pipeline.dtype).removeprefix("torch."),
            "schedule": schedule_to_json(self.schedule),
            **({"drafts": True} if self.drafts else {}),
            "sampling": {name: settings[name] for name in ("guidance_scale", "temperature", "top_p")},
        }

    def _unconditional(self, requests: Sequence[Conversation]) -> ModelInputs | None:
        """The prompt-free conversations of guidance: one for all where they are alike, else one each."""
        scales = self.sampling.guidance_scale
        behaviour = self.pipeline.model.behaviour
        if all(scale == 1 for scale in (scales if isinstance(scales, Sequence) else [scales])):
            return None
        if behaviour.guidance_backbone == behaviour.guidance_context == "official":
            return None
        bare = [prompt_free_request(request) for request in requests]
        alike = all(request.system == requests[0].system for request in requests)
        return self.pipeline.inputs(bare[:1] if alike else bare, drop_start=True)


def model_fingerprint(model: torch.nn.Module) -> str:
    """A hash of some values of every tensor of a model: the same weights give the same, trained ones another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, flat.numel() // _SAMPLED_VALUES)].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()
