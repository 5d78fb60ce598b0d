"""Scorer: likeness to a target picture, by the pixels of small blurred copies.

Invariant: 0 for the target itself at any size, never above 0, at least -1; a shift by a pixel costs little.

    targets                 the target of each prompt (its own picture in the data)
    targets?folder=DIR      for prompts without one, pictures of a data folder whose caption is the prompt's
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from vargpt.data.folder import read_folder
from vargpt.preferences.scorers import Context
from vargpt.processing.conversation import Conversation

_SIDE = 32
_BLUR = 1.0


class TargetScorer:
    """Minus the distance between a picture and its target; the nearest one where several pictures have the caption.

    Args:
        folder: a data folder (`metadata.jsonl` beside images); None: prompts bring their targets.
        side: pixels of the longer side of the copies that are compared.
        blur: radius of the Gaussian blur of the copies, in their pixels.

    Raises:
        ValueError: for a folder that is none, sizes out of range.
    """

    def __init__(self, folder: str | None = None, side: int = _SIDE, blur: float = _BLUR) -> None:
        if side < 1 or blur < 0:
            raise ValueError(f"scorer targets: side must be at least 1 and blur not negative, got {side} and {blur}")
        self.side, self.blur, self.place = side, blur, folder
        self._folder = read_folder(folder) if folder is not None else None
        self._files: dict[str, list[str]] = {}
        for record in self._folder.images if self._folder is not None else ():
            self._files.setdefault(_plain(record.text), []).append(record.file_name)

    def __call__(self, prompt: Conversation, images: list[Image.Image], context: Context) -> Sequence[float]:
        """Score pictures by their nearest target."""
        del prompt
        targets = [context.target] if context.target is not None else self._named(context)
        return [max(-self.distance(image, target) for target in targets) for image in images]

    def distance(self, image: Image.Image, target: Image.Image) -> float:
        """Root mean square difference of two small blurred copies, in [0, 1]; the target is cropped to the aspect."""
        fitted = ImageOps.fit(target.convert("RGB"), image.size, Image.Resampling.LANCZOS)
        difference = self._small(image) - self._small(fitted)
        return float(np.sqrt(np.square(difference).mean()))

    def _small(self, image: Image.Image) -> np.ndarray:
        factor = self.side / max(image.size)
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        copy = image.convert("RGB").resize(size, Image.Resampling.BOX)
        return np.asarray(copy.filter(ImageFilter.GaussianBlur(self.blur)), dtype=np.float64) / 255

    def _named(self, context: Context) -> list[Image.Image]:
        if self._folder is None:
            raise ValueError(
                f"scorer targets: {context.key} has no target picture; give prompts with targets, or targets?folder=DIR"
            )
        names = self._files.get(_plain(context.caption), [])
        if not names:
            raise ValueError(
                f"scorer targets: {self.place} has no picture with the caption {context.caption!r} ({context.key})"
            )
        return [self._folder.load(name) for name in names]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
