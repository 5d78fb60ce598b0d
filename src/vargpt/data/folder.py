"""A plain folder of images with captions, and optionally edit pairs, as training data.

Invariant: the split depends on names alone (a hash), so it is the same on every machine, in every order, and stays
the same when files are added. No image of the validation part is ever shown to training, in any role.

Layout: `metadata.jsonl` (`file_name`, `text`) beside the images, in the folder itself or in its `images/`;
`edits.jsonl` (`source`, `target`, `instruction`) in either place.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from PIL import Image

from vargpt.data.schema import EditRecord, ImageRecord, read_jsonl
from vargpt.processing.images import open_image

METADATA = "metadata.jsonl"
EDITS = "edits.jsonl"
VALIDATION_FRACTION = 0.05

Part = Literal["train", "validation", "unused"]


@dataclass(frozen=True)
class ImageFolder:
    """Captioned images and edit pairs of a folder.

    Attributes:
        root: the folder that holds the image files.
        images: caption records, in the order of the file.
        edits: edit pairs, in the order of the file; empty where there is no `edits.jsonl`.
        validation_fraction: share of the images, and of the pairs, set aside.
    """

    root: Path
    images: tuple[ImageRecord, ...]
    edits: tuple[EditRecord, ...]
    validation_fraction: float = VALIDATION_FRACTION

    @cached_property
    def captions(self) -> dict[str, str]:
        """File name -> caption."""
        return {record.file_name: record.text for record in self.images}

    def path(self, file_name: str) -> Path:
        """Where an image lies."""
        return self.root / file_name

    def load(self, file_name: str) -> Image.Image:
        """Open an image as RGB on white; errors name the file."""
        return open_image(self.path(file_name))

    def image_part(self, file_name: str) -> Part:
        """`train` or `validation`, by the hash of the file name."""
        return "validation" if _fraction(file_name) < self.validation_fraction else "train"

    def edit_part(self, edit: EditRecord) -> Part:
        """Where a pair belongs.

        `validation`: by the hash of its two names, whichever way round, so a pair and its inverse go together.
        `unused`: any other pair that touches a validation image. `train`: the rest, hence pairs of training images
        only.
        """
        first, second = sorted((edit.source, edit.target))
        if _fraction(f"{first}\n{second}") < self.validation_fraction:
            return "validation"
        if "validation" in (self.image_part(edit.source), self.image_part(edit.target)):
            return "unused"
        return "train"

    def split_images(self, part: Part) -> tuple[ImageRecord, ...]:
        """Caption records of one part."""
        return tuple(record for record in self.images if self.image_part(record.file_name) == part)

    def split_edits(self, part: Part) -> tuple[EditRecord, ...]:
        """Edit pairs of one part."""
        return tuple(edit for edit in self.edits if self.edit_part(edit) == part)


def read_folder(folder: str | Path, validation_fraction: float = VALIDATION_FRACTION) -> ImageFolder:
    """Read a data folder and check that every file it names is there.

    Raises:
        ValueError: no such folder, no `metadata.jsonl`, a broken line (file and line are named), a listed image that
            does not exist, a name listed twice, an edit of an unlisted image.
    """
    folder = Path(folder)
    if not 0.0 <= validation_fraction < 1.0:
        raise ValueError(f"validation_fraction must be in [0, 1), got {validation_fraction}")
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder, expected one with {METADATA} and images")
    metadata = _find(folder, METADATA)
    if metadata is None:
        raise ValueError(
            f"{folder}: no {METADATA} here or in images/; write one line per image: "
            '{"file_name": "cat.png", "text": "a cat"}'
        )
    images = read_jsonl(metadata, ImageRecord)
    if not images:
        raise ValueError(f"{metadata}: lists no image")
    twice = [name for name, count in Counter(record.file_name for record in images).items() if count > 1]
    if twice:
        raise ValueError(f"{metadata}: {twice[0]} is listed more than once")
    root = metadata.parent
    missing = [record.file_name for record in images if not (root / record.file_name).is_file()]
    if missing:
        raise ValueError(f"{metadata}: {len(missing)} listed images do not exist, the first is {root / missing[0]}")
    edits_path = _find(folder, EDITS)
    edits = read_jsonl(edits_path, EditRecord) if edits_path is not None else []
    known = {record.file_name for record in images}
    for edit in edits:
        for name in (edit.source, edit.target):
            if name not in known:
                raise ValueError(f"{edits_path}: {name} is not an image of {metadata}")
    return ImageFolder(root, tuple(images), tuple(edits), validation_fraction)


def _find(folder: Path, name: str) -> Path | None:
    for candidate in (folder / name, folder / "images" / name):
        if candidate.is_file():
            return candidate
    return None


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
