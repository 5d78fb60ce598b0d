"""The unified model: backbone, next-scale decoder, forward and generation."""

from vargpt.model.modeling import VargptForConditionalGeneration, VargptOutput

__all__ = ["VargptForConditionalGeneration", "VargptOutput"]
