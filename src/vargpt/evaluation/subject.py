"""The model under evaluation: batches of questions, drawings, edits and reconstructions, and the reading of pictures.

Invariant: an answer or picture depends on its own conversation, seed and schedule alone, never on the batch (up to the
order of float sums); words are greedy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from vargpt.data.instructions import CAPTION_QUESTION
from vargpt.data.scenes.checker import Reading
from vargpt.evaluation.reading import SceneReader
from vargpt.inference.drafting import with_drafts
from vargpt.inference.pipeline import VargptPipeline
from vargpt.inference.requests import draw_request, edit_request
from vargpt.model.events import Finished, ImageDone
from vargpt.processing.conversation import Conversation, ImagePart, UnderstandSource, user
from vargpt.processing.images import to_signed_pixels
from vargpt.sampling import Sampling, pixels_to_uint8
from vargpt.scales import ScaleSchedule


class Subject:
    """One model with the settings that it is measured with. A context manager: leaving it ends reading processes.

    Args:
        pipeline: of the model.
        sampling: guidance, temperature and top-p of pictures; the model's own by default.
        schedule: of pictures; the model's own square by default.
        batch_size: how many conversations the model continues at once.
        workers: processes that read pictures into scenes.
        drafts: whether the model says first what it will draw; None: its habit.

    Raises:
        ValueError: for a batch or number of workers below one.
    """

    def __init__(
        self,
        pipeline: VargptPipeline,
        sampling: Sampling | None = None,
        schedule: ScaleSchedule | None = None,
        batch_size: int = 48,
        workers: int = 1,
        drafts: bool | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.pipeline = pipeline
        self.sampling = sampling or pipeline.sampling
        self.schedule = schedule or pipeline.model.config.schedule()
        self.batch_size = batch_size
        self.drafts = pipeline.habits.draft if drafts is None else drafts
        self._reader = SceneReader(workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pipeline.device

    @property
    def workers(self) -> int:
        """Processes that read pictures."""
        return self._reader.workers

    def draw_request(self, words: str) -> Conversation:
        """The canonical drawing request of this model."""
        return draw_request(self.pipeline.model.config, words)

    def edit_request(self, source: UnderstandSource, instruction: str) -> Conversation:
        """The canonical editing request of this model."""
        return edit_request(self.pipeline.model.config, source, instruction)

    def question(self, image: UnderstandSource, text: str = CAPTION_QUESTION) -> Conversation:
        """A question about a picture; by default the canonical one for its caption."""
        return Conversation(messages=(user(ImagePart(image=image), text),))

    def answers(self, conversations: Sequence[Conversation], max_new_tokens: int = 48) -> list[str]:
        """Greedy answers in words, in order; the model may not draw."""
        settings = Sampling(max_new_tokens=max_new_tokens, max_images=0)
        found: list[str] = []
        for batch in self._batches(conversations):
            answers = [""] * len(batch)
            for event in self.pipeline.model.generate(self.pipeline.inputs(batch), settings):
                if isinstance(event, Finished):
                    answers[event.sequence] = self.pipeline.processor.tokenizer.decode(
                        event.token_ids, skip_special_tokens=True
                    )
            found += answers
        return found

    def drawings(
        self, conversations: Sequence[Conversation], seeds: Sequence[int], schedule: ScaleSchedule | None = None
    ) -> Tensor:
        """One picture per conversation and seed, uint8 [n, H, W, 3] on the CPU, guided against the empty request.

        With `drafts` the model says first what it will draw.

        Raises:
            ValueError: if there is not one seed per conversation, or no conversation.
        """
        if len(seeds) != len(conversations) or not conversations:
            raise ValueError(f"expected one seed for each of 1 or more conversations, got {len(seeds)} seeds for "
                             f"{len(conversations)}")  # fmt: skip
        schedule = schedule or self.schedule
        if self.drafts:
            conversations = with_drafts(self.pipeline, conversations, seeds, self.batch_size)
        pictures: list[Tensor | None] = [None] * len(conversations)
        for start in range(0, len(conversations), self.batch_size):
            batch = list(conversations[start : start + self.batch_size])
            settings = replace(
                self.sampling,
                force_image=True,
                stop_after_image=True,
                images_per_prompt=1,
                seeds=list(seeds[start : start + self.batch_size]),
            )
            for event in self.pipeline.generate(self.pipeline.inputs(batch), settings, schedule, batch[0]):
                if isinstance(event, ImageDone):
                    pictures[start + event.sequence] = self._bytes(event.image_3HW[None])[0]
        return torch.stack([picture for picture in pictures if picture is not None])

    def reconstructions(self, images_nHW3: Tensor, schedule: ScaleSchedule | None = None) -> tuple[Tensor, Tensor]:
        """Encode and decode pictures of the schedule's size.

        Returns:
            uint8 [n, H, W, 3], and the bits, uint8 [n, L, d]; both on the CPU.
        """
        tokenizer = self.pipeline.model.image_tokenizer
        pictures, bits = [], []
        for batch in images_nHW3.split(self.batch_size):
            signed = to_signed_pixels(batch.to(self.device).permute(0, 3, 1, 2))
            with torch.no_grad():
                encoded = tokenizer.encode(signed, schedule or self.schedule)
                pictures.append(self._bytes(tokenizer.decode(encoded.canvas_Bdhw)))
            bits.append(encoded.labels_BLd.to("cpu", torch.uint8))
        return torch.cat(pictures), torch.cat(bits)

    def read(self, images_nHW3: Tensor) -> list[Reading]:
        """What the checker of the small world sees in pictures, uint8 [n, H, W, 3] on the CPU."""
        return self._reader(images_nHW3)

    def _bytes(self, images_B3HW: Tensor) -> Tensor:
        return pixels_to_uint8(images_B3HW, self.pipeline.model.behaviour.pixel_rounding).cpu()

    def _batches(self, conversations: Sequence[Conversation]) -> Iterator[list[Conversation]]:
        for start in range(0, len(conversations), self.batch_size):
            yield list(conversations[start : start + self.batch_size])
