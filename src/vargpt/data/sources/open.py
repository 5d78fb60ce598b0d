"""Open a source of any format by the settings of a recipe.

Invariant: what `open_source` returns has samples; a path that leads nowhere, a damaged file under `stop`, or a source
that is empty is one clear error here, before training starts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from vargpt.data.folder import VALIDATION_FRACTION, read_folder
from vargpt.data.instructions import Style
from vargpt.data.sources.conversations import conversations_source
from vargpt.data.sources.folder import FolderSource
from vargpt.data.sources.llava import llava_source
from vargpt.data.sources.parquet import ParquetSource
from vargpt.data.sources.policy import BrokenLog, CheckedSource, OnError
from vargpt.data.sources.protocol import BrokenSample, Source
from vargpt.data.sources.published import PublishedPreferences, published_preferences_source, published_source
from vargpt.data.sources.tar import TarSource

Format = Literal["folder", "scenes", "conversations", "official", "official-preferences", "llava", "tar", "parquet"]
_PATTERNS = {"tar": ("*.tar",), "parquet": ("*.parquet",)}
_RECORDS = {
    "conversations": conversations_source,
    "official": published_source,
    "official-preferences": published_preferences_source,
    "llava": llava_source,
}


class SourceSettings(Protocol):
    """What a recipe says of a source.

    Attributes:
        path: a file, a folder, or a glob pattern; relative to the data folder.
        images: folder that image names are relative to; that of the first file by default.
        count: how many scenes there are; for `scenes` only.
        kinds, questions, question_kinds, long_captions, drafts, inventories: of scenes; for `scenes` only.
    """

    @property
    def format(self) -> Format: ...
    @property
    def path(self) -> str: ...
    @property
    def images(self) -> str | None: ...
    @property
    def on_error(self) -> OnError: ...
    @property
    def count(self) -> int | None: ...
    @property
    def kinds(self) -> Sequence[str] | None: ...
    @property
    def questions(self) -> int | None: ...
    @property
    def question_kinds(self) -> Sequence[str] | None: ...
    @property
    def long_captions(self) -> float | None: ...
    @property
    def drafts(self) -> float | None: ...
    @property
    def inventories(self) -> float | None: ...


def open_source(
    name: str,
    settings: SourceSettings,
    root: Path = Path(),
    validation_fraction: float = VALIDATION_FRACTION,
    *,
    style: Style = "short",
    side: int | None = None,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> CheckedSource:
    """Open a source.

    Args:
        name: what errors and logs call it.
        root: where relative paths start.
        validation_fraction: share that a `folder` sets aside (other formats are training data as a whole).
        style: family of wordings of samples that are made from captions and edit pairs (scenes keep their own).
        side: of generated scenes in pixels.
        seed: of generated scenes.
        report: takes the lines about skipped records; stderr by default.

    Raises:
        BrokenSample: under `on_error: stop`, if a file is damaged.
        ValueError: for a missing or empty source, or settings that the format does not have.
    """
    _check_settings(name, settings)
    log = BrokenLog(report)
    source, problems, count = _open(name, settings, root, validation_fraction, style, side, seed)
    if problems and settings.on_error == "stop":
        first = problems[0]
        more = f" (and {count - 1:,} more problems)" if count > 1 else ""
        advice = "mend it, or set on_error: skip to go on without"
        raise BrokenSample(first.source, first.key, f"{first.reason}{more}; {advice}")
    for problem in problems:
        log.left_out(problem)
    if not source.tasks or not any(source.count(task) for task in source.tasks):
        raise ValueError(f"source {name!r}: {settings.path} holds no records")
    return CheckedSource(source, settings.on_error, log)


def open_preferences(name: str, settings: SourceSettings, root: Path = Path()) -> PublishedPreferences:
    """Open published preference JSON as pairs (`format: official-preferences`).

    Raises:
        BrokenSample: if a file is damaged and `on_error` is `stop`.
        ValueError: for another format, or a missing file.
    """
    if settings.format != "official-preferences":
        raise ValueError(f"source {name!r}: expected the format official-preferences, got {settings.format}")
    paths = find_files(name, root, settings)
    found = PublishedPreferences(name, paths, _images_folder(settings, root, paths))
    if found.problems and settings.on_error == "stop":
        raise found.problems[0]
    return found


def find_files(name: str, root: Path, settings: SourceSettings) -> list[Path]:
    """The files that a path, a folder or a glob pattern stands for, in the order of their names.

    Raises:
        ValueError: if there are none.
    """
    path = root / settings.path
    if path.is_file():
        return [path]
    if path.is_dir():
        patterns = _PATTERNS.get(settings.format, ("*.jsonl", "*.json"))
        found = sorted(match for pattern in patterns for match in path.glob(pattern) if match.is_file())
        wanted = f"a folder with {' or '.join(patterns)}"
    else:
        given = Path(settings.path)
        start = Path(given.anchor) if given.is_absolute() else root
        found = sorted(match for match in start.glob(str(given.relative_to(given.anchor))) if match.is_file())
        wanted = "a file, a folder or a glob pattern"
    if not found:
        raise ValueError(f"source {name!r}: found nothing at {path}, expected {wanted}")
    return found


def _check_settings(name: str, settings: SourceSettings) -> None:
    if settings.count is not None and settings.format != "scenes":
        raise ValueError(f"source {name!r}: count is for scenes only, got it with {settings.format}")
    for setting in ("kinds", "questions", "question_kinds", "long_captions", "drafts", "inventories"):
        if getattr(settings, setting) is not None and settings.format != "scenes":
            raise ValueError(f"source {name!r}: {setting} is for scenes only, got it with {settings.format}")
    if settings.images is not None and settings.format in ("folder", "scenes", "tar"):
        raise ValueError(f"source {name!r}: images is not for {settings.format}, which has its own")


def _images_folder(settings: SourceSettings, root: Path, paths: Sequence[Path]) -> Path:
    folder = paths[0].parent if settings.images is None else root / settings.images
    if not folder.is_dir():
        raise ValueError(f"the images folder {folder} does not exist")
    return folder


def _open(
    name: str,
    settings: SourceSettings,
    root: Path,
    validation_fraction: float,
    style: Style,
    side: int | None,
    seed: int,
) -> tuple[Source, list[BrokenSample], int]:
    """The source, what is wrong with its files, and how many problems there are."""
    if settings.format == "folder":
        return FolderSource(name, read_folder(root / settings.path, validation_fraction), style), [], 0
    if settings.format == "scenes":
        from vargpt.data.sources.scenes import COUNT, SIDE, ScenesSource

        source = ScenesSource(
            name,
            settings.count or COUNT,
            side or SIDE,
            seed,
            settings.kinds,
            settings.questions or 1,
            settings.question_kinds,
            settings.long_captions or 0.0,
            settings.drafts or 0.0,
            settings.inventories or 0.0,
        )
        return source, [], 0
    paths = find_files(name, root, settings)
    if settings.format == "tar":
        shards = TarSource(name, paths, style)
        return shards, shards.problems, shards.problem_count
    images = _images_folder(settings, root, paths)
    if settings.format == "parquet":
        rows = ParquetSource(name, paths, images, style)
        return rows, rows.problems, len(rows.problems)
    records = _RECORDS[settings.format](name, paths, images)
    return records, records.problems, len(records.problems)
