"""What the verbs share: finding a model, opening the user's files, progress on stderr.

Invariant: a user's mistake is a `ValueError` of one line, raised before the model is loaded wherever that is possible.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from vargpt.inference.pipeline import VargptPipeline

BUNDLED = "vargpt-small"
"""The model that comes with the checkout."""
MODEL_VARIABLE = "VARGPT_MODEL"
SMALL_MODEL = 200_000_000
"""Weights below which one CPU thread is as fast as two alone, and far faster on a busy machine (docs/log.md)."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def bundled_model() -> Path | None:
    """Folder of the model that comes with the package or the checkout, or None where it is absent."""
    package = Path(__file__).resolve().parents[1]
    for root in (package, package.parents[1]):
        folder = root / "models" / BUNDLED
        if (folder / "config.json").is_file():
            return folder
    return None


def find_model(name: str | None) -> str:
    """Return the folder or hub name to load: the argument, else $VARGPT_MODEL, else the bundled model.

    The bundled one may be named without its folder (`vargpt-small`), where there is no such path.
    """
    chosen = name or os.environ.get(MODEL_VARIABLE)
    if not chosen:
        folder = bundled_model()
        if folder is None:
            raise ValueError(
                f"the bundled model models/{BUNDLED} is not here: name a model folder with --model or "
                f"{MODEL_VARIABLE}, or train one with: vargpt train recipes/emoji-small.yaml --data DIR"
            )
        return str(folder)
    path = Path(chosen).expanduser()
    if chosen == BUNDLED and not path.exists():
        path = bundled_model() or path
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{chosen}: is no model folder, it has no config.json")
        return str(path)
    if path.exists():
        raise ValueError(f"{chosen}: is a file, expected the folder of a model")
    if not _HUB_NAME.fullmatch(chosen):
        raise ValueError(f"{chosen}: no such folder (and not the name of a hub repository, which reads OWNER/NAME)")
    return chosen


def load_pipeline(name: str | None, dtype: str | None, device: str | None, preset: str | None = None) -> VargptPipeline:
    """Load a model and its processor, saying so on stderr."""
    folder = find_model(name)
    status = StatusLine()
    status.show(f"loading {folder}")
    from vargpt.inference.pipeline import VargptPipeline

    try:
        pipeline = VargptPipeline.from_pretrained(folder, dtype=dtype, device=device, behaviour=preset)
    finally:
        status.clear()
    choose_threads(pipeline)
    return pipeline


def choose_threads(pipeline: VargptPipeline) -> None:
    """Run a small model on one CPU thread, unless OMP_NUM_THREADS says otherwise."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and pipeline.num_parameters < SMALL_MODEL:
        torch.set_num_threads(1)


def require_words(text: str, what: str) -> str:
    """Return a text without outer spaces; an empty one is refused."""
    words = text.strip()
    if not words:
        raise ValueError(f"the {what} is empty: say in words what you want")
    return words


def open_picture(path: Path) -> Image.Image:
    """Open the user's picture as 8-bit RGB, refusing what would have to be guessed (CMYK, 16 bits per channel)."""
    from vargpt.processing.images import open_image

    picture = open_image(path)
    mode, deep = _stored_colours(path)
    if mode == "CMYK":
        raise ValueError(f"{path}: CMYK colours, expected RGB; convert it first (their look depends on a profile)")
    if deep:
        raise ValueError(f"{path}: 16 bits per channel, expected 8; save it as 8-bit RGB first")
    return picture


def _stored_colours(path: Path) -> tuple[str, bool]:
    """Colour mode as stored in the file, and whether channels have more than 8 bits."""
    from PIL import Image

    with Image.open(path) as image:
        raw_modes = [str(tile[3]) for tile in image.tile]
        deep = image.mode.startswith("I;16") or image.mode in ("I", "F") or any("16" in raw for raw in raw_modes)
        return image.mode, deep


def check_output(path: Path, overwrite_folder: bool = False) -> Path:
    """Refuse an output name that cannot be a PNG file before anything is computed."""
    if path.is_dir() and not overwrite_folder:
        raise ValueError(f"{path}: is a folder, expected the name of a PNG file to write")
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: pictures are written as PNG, name the file something.png")
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise ValueError(f"{path}: {parent} is a file, not a folder")
    return path


def numbered(path: Path, index: int) -> Path:
    """heart.png for the first picture, then heart-2.png, heart-3.png, ..."""
    return path if index == 0 else path.with_name(f"{path.stem}-{index + 1}{path.suffix}")


class StatusLine:
    """One line of progress on stderr: redrawn in place on a terminal, one line per step elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self.started = time.perf_counter()
        self._width = 0

    @property
    def seconds(self) -> float:
        """Wall time since the line was made."""
        return time.perf_counter() - self.started

    def show(self, text: str, *, step: bool = False) -> None:
        """Show a state. Off a terminal only those marked `step` are printed."""
        if self.live:
            sys.stderr.write("\r" + text.ljust(self._width))
            self._width = len(text)
            sys.stderr.flush()
        elif step:
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove the line from a terminal."""
        if self.live and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.clear()
        print(text, file=sys.stderr, flush=True)


class ScaleProgress:
    """Callback of the pipeline: shows every finished scale on stderr."""

    def __init__(self) -> None:
        self.status = StatusLine()

    def __call__(self, pipeline: VargptPipeline, step: int, timestep: int, values: dict[str, Any]) -> None:
        """Report one finished scale of one batch of pictures."""
        total, (height, width) = step + 1 + timestep, values["grid"]
        pictures = f", {len(values['canvas'])} pictures" if len(values["canvas"]) > 1 else ""
        text = f"scale {step + 1}/{total} {bar(step + 1, total)} {width}x{height} tokens{pictures}"
        self.status.show(f"{text}, {self.status.seconds:.1f} s", step=True)


def bar(done: int, total: int, width: int = 12) -> str:
    """A small bar of text."""
    filled = width * done // max(total, 1)
    return "█" * filled + "░" * (width - filled)
