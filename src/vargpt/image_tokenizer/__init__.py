"""The image tokenizer: pixels to K scales of sign bits and back (spec section 4)."""

from vargpt.image_tokenizer.tokenizer import ImageTokenizer, ScaleBits

__all__ = ["ImageTokenizer", "ScaleBits"]
