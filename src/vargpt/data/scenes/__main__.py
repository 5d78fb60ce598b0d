"""`python -m vargpt.data.scenes --output sheet.png`: a sheet of scenes to look at, their captions printed.

Invariant: the sheet is a function of the options; the file is written whole or not at all.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import random
import sys
from pathlib import Path

from PIL import Image

from vargpt.data.scenes.render import render_image
from vargpt.data.scenes.sampler import KIND_WEIGHTS, sample_scene
from vargpt.data.scenes.words import long_caption, short_caption


def main(arguments: list[str] | None = None) -> int:
    """Write the sheet; returns the exit status."""
    parser = argparse.ArgumentParser(prog="vargpt.data.scenes", description="A sheet of scenes; captions are printed.")
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=48, help="number of scenes (default: 48)")
    parser.add_argument("--size", type=int, default=128, help="pixels per side of a scene (default: 128)")
    parser.add_argument("--split", choices=("train", "validation", "unseen"), default="train")
    parser.add_argument("--kind", choices=tuple(KIND_WEIGHTS), help="one kind of scene only")
    parser.add_argument("--long", action="store_true", help="print captions of full sentences")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count must be at least 1, got {options.count}")
    columns = math.ceil(math.sqrt(options.count * 4 / 3))
    rows = math.ceil(options.count / columns)
    gap = max(options.size // 32, 1)
    cell = options.size + gap
    sheet = Image.new("RGB", (columns * cell + gap, rows * cell + gap), (255, 255, 255))
    try:
        for number in range(options.count):
            seed = f"{options.seed} {number}"
            scene = sample_scene(seed, options.split, options.kind)
            row, column = divmod(number, columns)
            image = render_image(scene, options.size, options.size)
            sheet.paste(image, (gap + column * cell, gap + row * cell))
            caption = (long_caption if options.long else short_caption)(scene, random.Random(seed))
            print(f"{row + 1}.{column + 1}  {caption}")
        _write(sheet, options.output)
    except (ValueError, OSError) as error:
        print(f"vargpt.data.scenes: {error}", file=sys.stderr)
        return 1
    return 0


def _write(sheet: Image.Image, path: Path) -> None:
    """Write a PNG beside the file and move it into place."""
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(buffer.getvalue())
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


if __name__ == "__main__":
    sys.exit(main())
