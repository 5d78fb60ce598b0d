"""From a position in a stage's order to an encoded conversation: which record, how worded, what is dropped and flipped.

Invariant: `at(position)` is a function of (seed, stage, position) and the data: not of the batch, the rank, or what was
asked before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image

from vargpt.data.order import Mixture, Order
from vargpt.data.sources.protocol import Sample, Source, shuffled
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.processing.conversation import Conversation, DrawPart, DrawSource, ImagePart, Message, TextPart
from vargpt.processing.images import open_image
from vargpt.processing.processor import VargptProcessor
from vargpt.scales import ScaleSchedule
from vargpt.training.recipes.schema import DataEntry, SftStage
from vargpt.training.samples.image_cache import ImageCache
from vargpt.training.samples.micro_batches import DrawnTarget, Example
from vargpt.training.steps import chance_at, draw_flips, stream_seed


class SampleStream:
    """Samples of a stage's data in its order: a weighted mixture of sources, each shuffled anew every epoch.

    Args:
        entries: shares of the mixture; `sources` has each one's source.

    Raises:
        ValueError: for an entry whose source has nothing for its task.
    """

    def __init__(
        self, stage: str, entries: Sequence[DataEntry], sources: Mapping[str, Source], variety: float, seed: int
    ) -> None:
        self._stage, self._entries, self._sources = stage, list(entries), sources
        self._variety, self._seed = variety, seed
        self._mixture = Mixture([entry.weight for entry in entries])
        self._orders = [self._order(number, entry) for number, entry in enumerate(entries)]

    def _order(self, number: int, entry: DataEntry) -> Order:
        seed = stream_seed(self._seed, self._stage, number, "order")
        try:
            return shuffled(self._sources[entry.source], entry.task, seed)
        except ValueError as error:
            raise ValueError(f"stage {self._stage}, data.{number}: {error}; add some, or take the entry out") from error

    def at(self, position: int) -> Sample:
        """The sample at a position, worded."""
        entry_index, ordinal = self._mixture.at(position)
        entry = self._entries[entry_index]
        chance = chance_at(self._seed, self._stage, position, "wording")
        source = self._sources[entry.source]
        return source.sample(entry.task, self._orders[entry_index].at(ordinal), chance, self._variety)


class ExampleMaker:
    """Encodes samples for training.

    Args:
        stage: guidance drop, bit flips and aspect ratios are its settings.
        schedule: the stage's grids; with `aspect_ratios: buckets` its number of scales at each image's own aspect.
    """

    def __init__(
        self,
        stage: SftStage,
        model: VargptForConditionalGeneration,
        processor: VargptProcessor,
        cache: ImageCache,
        schedule: ScaleSchedule,
        seed: int,
    ) -> None:
        self._stage, self._model, self._processor, self._cache = stage, model, processor, cache
        self._schedule, self._seed = schedule, seed

    def training(self, sample: Sample, position: int) -> Example:
        """Encode a sample with everything that is drawn at random at its position."""
        stage = self._stage
        chance = chance_at(self._seed, stage.name, position, "encoding")
        drop = chance.random() < stage.guidance_drop
        official = self._processor.behaviour.target_crop == "official"
        offset = (chance.random(), chance.random()) if official else (0.5, 0.5)
        return self._encode(sample.conversation, drop, offset, position)

    def canonical(self, conversation: Conversation) -> Example:
        """Encode for validation: nothing dropped, nothing flipped, centred."""
        return self._encode(conversation, False, (0.5, 0.5), None)

    def _encode(
        self, conversation: Conversation, drop: bool, offset: tuple[float, float], position: int | None
    ) -> Example:
        images = [part.image for part in conversation.drawings]
        drawn: list[DrawSource] = [image for image in images if image is not None]
        if len(drawn) < len(images):
            raise ValueError("a conversation to train on lacks the picture to draw")
        schedule = self._schedule_for(drawn)
        bare = _replace_images(conversation, self._cache)
        drop = drop and bool(drawn)
        if drop and self._model.behaviour.guidance_dropout == "conversation":
            encoded = self._processor.encode_prompt_free(bare, schedule)
        else:
            encoded = self._processor.encode(bare, schedule, drop_start=drop)
        targets = [
            DrawnTarget(self._cache.picture(image, schedule, offset), offset, self._flips(schedule, position, number))
            for number, image in enumerate(drawn)
        ]
        return Example(encoded, tuple(targets))

    def _flips(self, schedule: ScaleSchedule, position: int | None, number: int) -> torch.Tensor | None:
        strength = self._stage.flip_strength
        if position is None or strength <= 0:
            return None
        name, bits = self._stage.name, self._model.config.image_tokenizer.bits
        return draw_flips(self._seed, name, position, schedule, bits, strength, f"flips of image {number}")

    def _schedule_for(self, drawn: list[DrawSource]) -> ScaleSchedule:
        if self._stage.aspect_ratios == "square" or not drawn:
            return self._schedule
        height, width = image_size(drawn[0])
        return ScaleSchedule.for_image(height, width, self._schedule.num_scales, self._schedule.stride)


def image_size(source: DrawSource) -> tuple[int, int]:
    """Height and width in pixels as the image is seen (upright)."""
    if isinstance(source, torch.Tensor):
        return int(source.shape[1]), int(source.shape[2])
    image = source if isinstance(source, Image.Image) else open_image(source)
    return image.height, image.width


def _replace_images(conversation: Conversation, cache: ImageCache) -> Conversation:
    """The same conversation with images to read as patches, and images to draw left to their bits."""
    turns = []
    for message in conversation.messages:
        parts: list[TextPart | ImagePart | DrawPart] = []
        for part in message.content:
            if isinstance(part, ImagePart):
                parts.append(ImagePart(image=cache.patches(part.image)))
            else:
                parts.append(DrawPart() if isinstance(part, DrawPart) else part)
        turns.append(Message(role=message.role, content=tuple(parts)))
    return Conversation(messages=tuple(turns))
