"""Measure a model on a folder of captioned images and edit pairs: `vargpt eval MODEL --data DIR`.

Invariant: every request is in its canonical wording (`vargpt.data.instructions`) and seeded by its place in the list,
so the numbers can be had again. Training and validation parts are told apart by the folder's own split.

    reconstruction  PSNR in dB of encode + decode, 8-bit levels
    naming          greedy answer to "what is this?" equals the caption, case and outer space aside
    drawing         the picture nearest to the drawing, by pixel distance among all of the folder, is the one named
    editing         the result is nearer to the target than to the source, by pixel distance
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from vargpt.data.folder import ImageFolder
from vargpt.data.instructions import caption_prompt, draw_prompt, edit_prompt
from vargpt.data.schema import EditRecord, ImageRecord
from vargpt.evaluation.intervals import Estimate, bootstrap
from vargpt.model.events import Finished, ImageDone
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.processing.conversation import Conversation
from vargpt.processing.images import target_pixels
from vargpt.processing.processor import VargptProcessor
from vargpt.sampling import Sampling, pixels_to_uint8
from vargpt.scales import ScaleSchedule

Part = Literal["train", "validation"]
_CHUNK = 256


@dataclass(frozen=True)
class Sample:
    """One judged example, kept for the page: `value` is 1 for right and 0 for wrong, or a PSNR."""

    label: str
    answer: str
    value: float
    source: Tensor | None = None
    target: Tensor | None = None
    result: Tensor | None = None


@dataclass(frozen=True)
class Outcome:
    """One measure on one part."""

    name: str
    part: str
    estimate: Estimate
    samples: list[Sample] = field(repr=False)


def take(items: Sequence[Any], limit: int | None) -> list[Any]:
    """At most `limit` items, evenly spread over the list (all of them when None)."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


class FolderEvaluation:
    """The four measures of one model on one folder."""

    def __init__(
        self,
        model: VargptForConditionalGeneration,
        processor: VargptProcessor,
        folder: ImageFolder,
        sampling: Sampling,
        batch_size: int = 48,
        limit: int | None = None,
    ) -> None:
        self.model, self.processor, self.folder = model, processor, folder
        self.sampling, self.batch_size, self.limit = sampling, batch_size, limit
        self.schedule: ScaleSchedule = model.config.schedule()
        self._bytes: dict[str, Tensor] = {}

    def pixels(self, file_name: str) -> Tensor:
        """The image at the model's size, uint8 [H, W, 3]."""
        if file_name not in self._bytes:
            signed = target_pixels(self.folder.load(file_name), self.schedule)
            self._bytes[file_name] = pixels_to_uint8(signed[None])[0]
        return self._bytes[file_name]

    def run(self) -> list[Outcome]:
        """All measures on both parts."""
        outcomes = []
        for part in ("validation", "train"):
            for measure in (self.reconstruction, self.naming, self.drawing, self.editing):
                outcome = self._timed(measure, part)
                if outcome is not None:
                    outcomes.append(outcome)
        return outcomes

    def _timed(self, measure: Callable[[Part], Outcome | None], part: Part) -> Outcome | None:
        start = time.monotonic()
        outcome = measure(part)
        if outcome is not None:
            e = outcome.estimate
            print(
                f"{outcome.name} ({part}): {e.mean:.3f} [{e.low:.3f}, {e.high:.3f}], n = {e.count}, "
                f"{time.monotonic() - start:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        return outcome

    def reconstruction(self, part: Part) -> Outcome | None:
        """PSNR of encode and decode."""
        samples = []
        for records in self._batches(take(self.folder.split_images(part), self.limit)):
            originals = torch.stack([self.pixels(record.file_name) for record in records])
            signed = originals.permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.no_grad():
                bits = self.model.image_tokenizer.encode(signed.to(self.model.device), self.schedule)
                decoded = self.model.image_tokenizer.decode(bits.canvas_Bdhw)
            results = pixels_to_uint8(decoded).cpu()
            error = (results.float() - originals.float()).square().mean((1, 2, 3)).clamp_min(1e-6)
            psnr = 10 * torch.log10(255.0**2 / error)
            for index, record in enumerate(records):
                samples.append(
                    Sample(record.text, "", float(psnr[index]), target=originals[index], result=results[index])
                )
        return self._outcome("reconstruction", part, samples)

    def naming(self, part: Part) -> Outcome | None:
        """Exact match of the greedy caption."""
        samples = []
        for records in self._batches(take(self.folder.split_images(part), self.limit)):
            prompts = [caption_prompt(self.processor.understand(self.folder.path(r.file_name))) for r in records]
            for record, answer in zip(records, self._answers(prompts), strict=True):
                right = answer.strip().casefold() == record.text.strip().casefold()
                samples.append(Sample(record.text, answer, float(right), source=self.pixels(record.file_name)))
        return self._outcome("naming", part, samples)

    def drawing(self, part: Part) -> Outcome | None:
        """Top-1 retrieval of the named picture among all pictures of the folder."""
        samples: list[Sample] = []
        gallery = torch.stack([self.pixels(record.file_name) for record in self.folder.images]).flatten(1).float()
        for records in self._batches(take(self.folder.split_images(part), self.limit)):
            drawn = self._drawings([draw_prompt(record.text) for record in records], len(samples))
            nearest = squared_distances(drawn.flatten(1).float(), gallery).argmin(1)
            for index, record in enumerate(records):
                found = self.folder.images[int(nearest[index])]
                samples.append(
                    Sample(
                        record.text,
                        found.text,
                        float(found.file_name == record.file_name),
                        target=self.pixels(record.file_name),
                        result=drawn[index],
                    )
                )
        return self._outcome("drawing", part, samples)

    def editing(self, part: Part) -> Outcome | None:
        """Share of edits whose result is nearer to the target than to the source."""
        samples: list[Sample] = []
        for edits in self._batches(take(self.folder.split_edits(part), self.limit)):
            prompts = [
                edit_prompt(self.processor.understand(self.folder.path(edit.source)), edit.instruction)
                for edit in edits
            ]
            results = self._drawings(prompts, len(samples))
            for index, edit in enumerate(edits):
                source, target, result = self.pixels(edit.source), self.pixels(edit.target), results[index]
                nearer = _distance(result, target) < _distance(result, source)
                label = f"{self.folder.captions[edit.source]}: {edit.instruction}"
                samples.append(Sample(label, "", float(nearer), source, target, result))
        return self._outcome("editing", part, samples)

    def _batches(self, items: Sequence[ImageRecord] | Sequence[EditRecord]) -> list[list[Any]]:
        return [list(items[i : i + self.batch_size]) for i in range(0, len(items), self.batch_size)]

    def _answers(self, prompts: list[Conversation]) -> list[str]:
        inputs = self.processor.prompt(prompts).inputs.to(self.model.device)
        answers = [""] * len(prompts)
        for event in self.model.generate(inputs, Sampling(max_new_tokens=48, max_images=0)):
            if isinstance(event, Finished):
                answers[event.sequence] = self.processor.tokenizer.decode(event.token_ids, skip_special_tokens=True)
        return answers

    def _drawings(self, prompts: list[Conversation], first_seed: int) -> Tensor:
        """Draw one picture per prompt, uint8 [n, H, W, 3]; the seed is the example's place in the list."""
        inputs = self.processor.prompt(prompts, self.schedule).inputs.to(self.model.device)
        bare = self.processor.prompt([prompts[0].without_prompt()], self.schedule, drop_start=True)
        sampling = replace(
            self.sampling,
            force_image=True,
            stop_after_image=True,
            seeds=[first_seed + index for index in range(len(prompts))],
        )
        images: list[Tensor | None] = [None] * len(prompts)
        unconditional = bare.inputs.to(self.model.device)
        for event in self.model.generate(inputs, sampling, unconditional=unconditional, schedule=self.schedule):
            if isinstance(event, ImageDone):
                images[event.sequence] = pixels_to_uint8(event.image_3HW[None])[0].cpu()
        return torch.stack([image for image in images if image is not None])

    def _outcome(self, name: str, part: str, samples: list[Sample]) -> Outcome | None:
        if not samples:
            return None
        return Outcome(name, part, bootstrap([sample.value for sample in samples]), samples)


def squared_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Mean squared pixel differences [queries, gallery], in chunks of the gallery to bound memory."""
    parts = [torch.cdist(queries, chunk).square() / queries.shape[1] for chunk in gallery.split(_CHUNK)]
    return torch.cat(parts, 1)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).square().mean())
