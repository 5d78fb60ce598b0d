"""Pictures out: model pixels to PIL, NumPy or torch, and PNG files that remember how they were made.

Invariant: a file appears under its name complete or not at all.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from vargpt.processing.images import to_signed
from vargpt.sampling import pixels_to_uint8

OutputType = Literal["pil", "np", "pt"]
OUTPUT_TYPES = ("pil", "np", "pt")


def to_output(
    images_I3HW: Tensor, output_type: OutputType, rounding: Literal["official", "nearest"] = "nearest"
) -> list[Any]:
    """Turn pixels in [-1, 1] into one item per image.

    Returns:
        `pil`: 8-bit RGB images; `np`: uint8 [H, W, 3]; `pt`: float32 [3, H, W] in [0, 1] (not rounded).
    """
    if output_type == "pt":
        return list((images_I3HW.float().clamp(-1, 1) + 1) / 2)
    arrays = pixels_to_uint8(images_I3HW, rounding).cpu().numpy()
    if output_type == "np":
        return list(arrays)
    if output_type == "pil":
        return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]
    raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")


def composite(result_3HW: Tensor, source: Image.Image, mask: Image.Image) -> Tensor:
    """Keep a result where the mask is white and the source where it is black, at the result's size."""
    height, width = result_3HW.shape[1:]
    size = (int(width), int(height))
    original = to_signed(source.convert("RGB").resize(size, Image.Resampling.LANCZOS)).to(result_3HW)
    share = (to_signed(mask.convert("L").convert("RGB").resize(size, Image.Resampling.BILINEAR)).to(result_3HW) + 1) / 2
    return share * result_3HW + (1 - share) * original


def png_bytes(image: Image.Image, metadata: Mapping[str, Any] | None = None) -> bytes:
    """Encode a PNG; each metadata entry becomes a UTF-8 text chunk (non-strings as JSON)."""
    info = PngInfo()
    for key, value in (metadata or {}).items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        info.add_itxt(key, text.replace("\0", ""))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file by way of a temporary one beside it; missing folders are made."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected the name of a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(scratch, 0o666 & ~umask)
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        raise


def save_png(path: str | os.PathLike[str], image: Image.Image, metadata: Mapping[str, Any] | None = None) -> None:
    """Write one PNG atomically, with its metadata."""
    write_atomically(Path(path), png_bytes(image, metadata))


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the text entries of a PNG, e.g. the prompt, seed and model of a picture drawn here."""
    with Image.open(path) as image:
        image.load()
        return {str(key): value for key, value in image.info.items() if isinstance(value, str)}


def contact_sheet(
    rows: Sequence[Sequence[Image.Image | None]],
    labels: Sequence[str] = (),
    cell: int = 128,
    gap: int = 8,
) -> Image.Image:
    """Lay pictures out in rows of square cells on white, small ones enlarged.

    Args:
        rows: pictures per row; None leaves a hole.
        labels: one text per row, written above it.
    """
    columns = max((len(row) for row in rows), default=0)
    caption = 22 if labels else 0
    font = ImageFont.load_default(14)
    width, height = columns * (cell + gap) + gap, len(rows) * (cell + gap + caption) + gap
    sheet = Image.new("RGB", (max(width, 1), height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        top = gap + index * (cell + gap + caption)
        if index < len(labels):
            draw.text((gap, top), labels[index], fill=(60, 60, 67), font=font)
        for column, picture in enumerate(row):
            if picture is None:
                continue
            factor = cell / max(picture.size)
            size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
            fitted = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
            left = gap + column * (cell + gap) + (cell - size[0]) // 2
            sheet.paste(fitted, (left, top + caption + (cell - size[1]) // 2))
    return sheet
