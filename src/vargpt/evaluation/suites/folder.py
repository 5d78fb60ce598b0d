"""A folder of captioned pictures and edit pairs: what a model makes of pictures it was trained on, and of others.

Invariant: every request is in its canonical wording, and the seed of a picture follows from the name of its example.
Training and validation parts are told apart by the folder's own split.

    reconstruction  PSNR in dB of encode + decode, 8-bit levels
    naming          greedy answer to "what is this?" equals the caption, case and outer space aside
    drawing         the picture nearest to the drawing, by pixel distance among all of the folder, is the one named
    editing         the result is nearer to the target than to the source, by pixel distance
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vargpt.data.folder import ImageFolder
from vargpt.data.schema import EditRecord, ImageRecord
from vargpt.evaluation.harness import Suite, take
from vargpt.evaluation.intervals import Estimate
from vargpt.evaluation.metrics.image_quality import psnr
from vargpt.evaluation.subject import Subject
from vargpt.evaluation.task import Judged, Measure, Task, example_seed
from vargpt.preferences.prompts import folder_sha256
from vargpt.processing.images import target_pixels
from vargpt.sampling import pixels_to_uint8
from vargpt.scales import ScaleSchedule

Part = Literal["validation", "train"]
PARTS: tuple[Part, ...] = ("validation", "train")
_OF = {"validation": "of the validation part", "train": "of the training part"}
_CHUNK = 256


class Gallery:
    """The folder's pictures at the model's size, uint8 [H, W, 3], opened on first use and kept."""

    def __init__(self, folder: ImageFolder, schedule: ScaleSchedule) -> None:
        self.folder, self.schedule = folder, schedule
        self._bytes: dict[str, Tensor] = {}

    def __getitem__(self, file_name: str) -> Tensor:
        if file_name not in self._bytes:
            signed = target_pixels(self.folder.load(file_name), self.schedule)
            self._bytes[file_name] = pixels_to_uint8(signed[None])[0]
        return self._bytes[file_name]

    def all(self) -> Tensor:
        """Every picture, uint8 [n, H, W, 3], in the order of the folder."""
        return torch.stack([self[record.file_name] for record in self.folder.images])


class FolderTask:
    """One ability on one part of a folder.

    Args:
        limit: at most so many examples, evenly spread; None: all.
        seed: of all pictures.
    """

    ability = ""
    titles = ("", "")
    unit: Literal["percent", "dB"] = "percent"

    def __init__(self, gallery: Gallery, part: Part, limit: int | None = None, seed: int = 0) -> None:
        self.gallery, self.part, self.limit, self.seed = gallery, part, limit, seed
        self.folder = gallery.folder
        self.name = f"{self.ability}/{part}"
        self.title = f"{self.titles[0]} {_OF[part]}"
        measure = f"{self.titles[1]}, {'validation' if part == 'validation' else 'training'} names"
        self.measures: Sequence[Measure] = (Measure(self.name, measure, self.unit),)

    def examples(self) -> Sequence[Any]:
        """Captions of the part."""
        return take(self.folder.split_images(self.part), self.limit)

    def overall(self, judged: Sequence[Judged]) -> dict[str, Estimate]:
        """Nothing beyond means."""
        del judged
        return {}


class Reconstruction(FolderTask):
    """PSNR of encode and decode."""

    ability, unit = "reconstruction", "dB"
    titles = ("Pictures", "Reconstruction (PSNR)")

    def judge(self, subject: Subject, examples: Sequence[ImageRecord]) -> list[Judged]:
        """Encode, decode and compare."""
        originals = torch.stack([self.gallery[record.file_name] for record in examples])
        results, _ = subject.reconstructions(originals, self.gallery.schedule)
        return [
            Judged(
                record.file_name,
                {self.name: value},
                record.text,
                pictures={"target": originals[index], "result": results[index]},
            )
            for index, (record, value) in enumerate(zip(examples, psnr(originals, results).tolist(), strict=True))
        ]


class Naming(FolderTask):
    """Exact match of the greedy caption."""

    ability = "naming"
    titles = ("Naming", "Naming (exact match)")

    def judge(self, subject: Subject, examples: Sequence[ImageRecord]) -> list[Judged]:
        """Ask for the name and compare."""
        answers = subject.answers([subject.question(self.folder.path(record.file_name)) for record in examples])
        return [
            Judged(
                record.file_name,
                {self.name: float(answer.strip().casefold() == record.text.strip().casefold())},
                answer=answer.strip(),
                expected=record.text,
                pictures={"source": self.gallery[record.file_name]},
            )
            for record, answer in zip(examples, answers, strict=True)
        ]


class Drawing(FolderTask):
    """Top-1 retrieval of the named picture among all pictures of the folder."""

    ability = "drawing"
    titles = ("Drawing", "Drawing (nearest picture is the one named)")

    def judge(self, subject: Subject, examples: Sequence[ImageRecord]) -> list[Judged]:
        """Draw and find the nearest picture."""
        requests = [subject.draw_request(record.text) for record in examples]
        seeds = [example_seed(self.seed, self.name, record.file_name) for record in examples]
        drawn = subject.drawings(requests, seeds, self.gallery.schedule)
        distances = squared_distances(drawn.to(subject.device), self.gallery.all().to(subject.device))
        judged = []
        for record, picture, nearest in zip(examples, drawn, distances.argmin(1).tolist(), strict=True):
            found = self.folder.images[nearest]
            judged.append(
                Judged(
                    record.file_name,
                    {self.name: float(found.file_name == record.file_name)},
                    record.text,
                    f"nearest: {found.text}",
                    pictures={"target": self.gallery[record.file_name], "result": picture},
                )
            )
        return judged


class Editing(FolderTask):
    """Share of edits whose result is nearer to the target than to the source."""

    ability = "editing"
    titles = ("Editing", "Editing (nearer to the target than to the source)")

    def examples(self) -> Sequence[EditRecord]:
        """Edit pairs of the part, each once."""
        return take(list(dict.fromkeys(self.folder.split_edits(self.part))), self.limit)

    def judge(self, subject: Subject, examples: Sequence[EditRecord]) -> list[Judged]:
        """Edit and compare with both pictures."""
        keys = [f"{edit.source} -> {edit.target}: {edit.instruction}" for edit in examples]
        requests = [subject.edit_request(self.folder.path(edit.source), edit.instruction) for edit in examples]
        seeds = [example_seed(self.seed, self.name, key) for key in keys]
        results = subject.drawings(requests, seeds, self.gallery.schedule)
        judged = []
        for key, edit, result in zip(keys, examples, results, strict=True):
            source, target = self.gallery[edit.source], self.gallery[edit.target]
            nearer = squared_distances(result[None], torch.stack([target, source]))[0]
            judged.append(
                Judged(
                    key,
                    {self.name: float(nearer[0] < nearer[1])},
                    f"{self.folder.captions[edit.source]}: {edit.instruction}",
                    expected=self.folder.captions[edit.target],
                    pictures={"source": source, "target": target, "result": result},
                )
            )
        return judged


def folder_suite(
    folder: ImageFolder, schedule: ScaleSchedule, name: str, limit: int | None = None, seed: int = 0
) -> Suite:
    """The four abilities on both parts of a folder, where a part has examples.

    Args:
        name: of the suite, in files and reports.
        limit: at most so many examples of each ability and part.
    """
    gallery = Gallery(folder, schedule)
    kinds: tuple[type[FolderTask], ...] = (Reconstruction, Naming, Drawing, Editing)
    made: list[Any] = [kind(gallery, part, limit, seed) for part in PARTS for kind in kinds]
    tasks: list[Task] = [task for task in made if task.examples()]
    return Suite(
        name,
        f"Pictures and edits of {name}",
        tasks,
        headline=tuple(task.name for task in tasks if task.name.endswith("/validation")),
        conditions={
            "seed": seed,
            "limit": limit,
            "data": folder_sha256(folder),
            "validation_fraction": folder.validation_fraction,
        },
    )


def squared_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Mean squared pixel differences [queries, gallery] of pictures in bytes, the gallery in chunks to bound memory."""
    flat = queries.flatten(1).float()
    parts = [torch.cdist(flat, chunk.flatten(1).float()).square() / flat.shape[1] for chunk in gallery.split(_CHUNK)]
    return torch.cat(parts, 1)
