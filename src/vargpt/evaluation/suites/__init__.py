"""The suites of `vargpt eval --suite`, by name.

Invariant: a suite is made before the model answers anything, so a mistake in what was asked costs no time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vargpt.configuration import VargptConfig
from vargpt.data.folder import ImageFolder
from vargpt.evaluation.harness import Suite
from vargpt.evaluation.suites.folder import folder_suite
from vargpt.evaluation.suites.scenes import SIZES, Size, scenes_suite
from vargpt.scales import ScaleSchedule

FOLDER_LIMITS: dict[Size, int | None] = {"small": 24, "default": 200, "full": None}
"""Examples of each ability and part of a folder."""

TOKENIZER_SCENES: dict[Size, int] = {"small": 64, "default": 300, "full": 2000}


@dataclass(frozen=True)
class SuiteRequest:
    """What was asked for.

    Attributes:
        schedule: of the pictures.
        limit: at most so many examples of each kind; None: as many as the size has.
        folder: captioned pictures, for the suites that use some.
        folder_name: how reports call it.
    """

    schedule: ScaleSchedule
    size: Size = "default"
    limit: int | None = None
    seed: int = 0
    folder: ImageFolder | None = None
    folder_name: str = "folder"

    @property
    def folder_limit(self) -> int | None:
        """Examples of each ability and part of a folder."""
        return self.limit if self.limit is not None else FOLDER_LIMITS[self.size]


def _scenes(request: SuiteRequest) -> Suite:
    return scenes_suite(request.schedule, request.size, request.limit, request.seed)


def _folder(request: SuiteRequest) -> Suite:
    if request.folder is None:
        raise ValueError("this suite needs a folder of captioned pictures: name it with --data DIR")
    return folder_suite(request.folder, request.schedule, request.folder_name, request.folder_limit, request.seed)


def _tokenizer(request: SuiteRequest) -> Suite:
    from vargpt.evaluation.suites.tokenizer import tokenizer_suite

    scenes = TOKENIZER_SCENES[request.size]
    scenes = scenes if request.limit is None else min(scenes, request.limit)
    return tokenizer_suite([request.schedule], scenes, request.folder, request.folder_limit, request.seed)


SUITES: dict[str, Callable[[SuiteRequest], Suite]] = {"scenes": _scenes, "emoji": _folder, "tokenizer": _tokenizer}
"""By name; any other name is that of a folder, measured as `emoji` is."""

WITH_FOLDER = ("emoji", "tokenizer")
"""Suites that use the folder of --data: `emoji` needs one, `tokenizer` takes it where there is one."""


def make_suite(name: str, request: SuiteRequest) -> Suite:
    """Make a suite by its name; a name that is none is taken for that of a folder.

    Raises:
        ValueError: where a folder is needed and none is there, or for an unknown size.
    """
    if request.size not in SIZES:
        raise ValueError(f"unknown size {request.size!r}, expected one of {', '.join(SIZES)}")
    return SUITES.get(name, _folder)(request)


def square_schedule(config: VargptConfig, side: int | None) -> ScaleSchedule:
    """The schedule of square pictures with this side in pixels; the model's own where None.

    Raises:
        ValueError: for a side that no prefix of the model's scales gives.
    """
    if side is None:
        return config.schedule()
    stride = config.image_tokenizer.stride
    known = [ScaleSchedule.from_template(1.0, scales, stride) for scales in range(1, config.num_scales + 1)]
    for schedule in known:
        if schedule.image_size == (side, side):
            return schedule
    sides = ", ".join(str(schedule.image_size[0]) for schedule in known if schedule.image_size[0] >= 32)
    raise ValueError(f"--resolution {side}: this model's scales end at sides of {sides} pixels")
