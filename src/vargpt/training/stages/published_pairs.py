"""The published preference JSON as pairs of a DPO stage: pictures from files, brought to the stage's size.

Invariant: a pair is a function of its record, its files and the schedule; it has no bits, so the stage makes them with
the model's own image tokenizer.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vargpt.data.pair_records import DrawnImage, Pair, encode_png
from vargpt.data.sources.published import PublishedPreferences
from vargpt.processing.conversation import DrawSource
from vargpt.processing.processor import VargptProcessor
from vargpt.sampling import pixels_to_uint8
from vargpt.scales import ScaleSchedule


class PublishedPairs:
    """Pairs by number.

    Args:
        processor: prepares the pictures as targets of drawing are prepared.
    """

    def __init__(self, records: PublishedPreferences, processor: VargptProcessor, schedule: ScaleSchedule) -> None:
        self._records, self._processor, self._schedule = records, processor, schedule

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int, /) -> Pair:
        """One pair.

        Raises:
            ValueError: naming the record, if it or a picture of it cannot be used.
        """
        record = self._records.preference(index)
        chosen, rejected = (self._drawn(picture) for picture in (record.chosen, record.rejected))
        return Pair(record.key, record.prompt, record.answer, chosen, rejected, self._schedule)

    def _drawn(self, picture: Path | DrawSource) -> DrawnImage:
        pixels_3HW = self._processor.target(picture, self._schedule)
        return DrawnImage(encode_png(Image.fromarray(pixels_to_uint8(pixels_3HW[None])[0].cpu().numpy())))
