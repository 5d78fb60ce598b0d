"""The unified model: backbone, next-scale decoder, forward and generation."""

from vargpt.model.events import (
    BitSampler,
    CallTrace,
    Event,
    Finished,
    ImageDone,
    ImageTrace,
    ScaleDone,
    ScaleTrace,
    TextDelta,
    TokenSampler,
)
from vargpt.model.modeling import VargptForConditionalGeneration, VargptOutput

__all__ = [
    "BitSampler",
    "CallTrace",
    "Event",
    "Finished",
    "ImageDone",
    "ImageTrace",
    "ScaleDone",
    "ScaleTrace",
    "TextDelta",
    "TokenSampler",
    "VargptForConditionalGeneration",
    "VargptOutput",
]
