"""Images in: opening files safely, pixels to understand (patches), pixels to draw (targets in [-1, 1]).

Invariant: whatever comes in, what leaves `open_image` is an 8-bit RGB image of a reasonable size, upright, on white;
anything else has been refused with one `ValueError` line that names the image.
"""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import Qwen2VLImageProcessorPil

from vargpt.scales import ScaleSchedule

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO")
MAX_PIXELS = 89_478_485
MIN_SIDE = 2
MAX_ASPECT = 200
MAX_FILE_BYTES = 256 * 1024 * 1024

OFFICIAL_MAX_AREA = 262_144
OFFICIAL_MIN_SIDE = 28
OFFICIAL_ENLARGE = 1.125

_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    MemoryError,
    AttributeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise on damaged files, depending on the format."""


@dataclass(frozen=True)
class PreparedImage:
    """An image to understand, cut into patches by the image processor.

    Attributes:
        patches: float32 [patches, patch_dim] in the processor's merge order.
        grid: (1, rows, columns) of patches.
    """

    patches: torch.Tensor
    grid: tuple[int, int, int]


def open_image(source: str | os.PathLike[str] | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """Open an image as 8-bit RGB, upright, transparency laid on white.

    Accepts a path, encoded bytes or a PIL image; grey, palette, CMYK and 16-bit images are converted.

    Args:
        name: what to call the image in an error; the path by default.

    Raises:
        ValueError: in one line, for a missing, unreadable, truncated, animated, tiny or absurdly large image.
    """
    if isinstance(source, Image.Image):
        label = name or "image"
        _check_header(source, label)
        return _normalise(source, label)
    if isinstance(source, bytes):
        label, data = name or "image", source
    else:
        path = Path(source)
        label, data = name or str(path), _read_file(path, name or str(path))
    if not data:
        raise ValueError(f"{label}: the file is empty, expected an image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on size and metadata; sizes are checked below
        try:
            image = Image.open(io.BytesIO(data), formats=_known_formats())
        except UnidentifiedImageError as error:
            raise ValueError(f"{label}: not an image in a known format (PNG, JPEG, WebP, BMP, TIFF, ...)") from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"{label}: absurdly large, the limit is {MAX_PIXELS:,} pixels; shrink it") from error
        except _DECODE_ERRORS as error:
            raise ValueError(f"{label}: damaged image header ({_reason(error)})") from error
        with image:
            _check_header(image, label)
            try:
                image.load()
            except _DECODE_ERRORS as error:
                raise ValueError(f"{label}: truncated or damaged image ({_reason(error)})") from error
            return _normalise(image, label)


@lru_cache(maxsize=1)
def _known_formats() -> tuple[str, ...]:
    """The formats that this build of Pillow has (it fails on the name of any other)."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _read_file(path: Path, label: str) -> bytes:
    try:
        if path.is_dir():
            raise ValueError(f"{label}: is a folder, expected an image file")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{label}: {size:,} bytes, the limit for an image file is {MAX_FILE_BYTES:,}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{label}: no such file") from error
    except OSError as error:
        raise ValueError(f"{label}: cannot be read ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    text = (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
    return " ".join(text.split())[:120]


def _check_header(image: Image.Image, label: str) -> None:
    """Refuse, before any pixel is decoded, sizes and kinds that cannot work."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{label}: {width}x{height} pixels is absurdly large, the limit is {MAX_PIXELS:,}; shrink it")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{label}: {width}x{height} pixels is too small, each side needs at least {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{label}: {width}x{height} is too narrow, the sides may differ at most {MAX_ASPECT} times")
    if image.format == "MPO":  # a phone's still picture with a second view
        return
    try:
        frames = getattr(image, "n_frames", 1)  # Pillow defines it only for formats that can hold several
    except _DECODE_ERRORS as error:
        raise ValueError(f"{label}: truncated or damaged image ({_reason(error)})") from error
    if frames > 1:
        raise ValueError(f"{label}: animated or multi-page ({frames} frames), expected a still image; extract one")


def _normalise(image: Image.Image, label: str) -> Image.Image:
    """Turn upright, convert to 8-bit RGB and lay transparency on white."""
    try:
        upright = ImageOps.exif_transpose(image)
    except _DECODE_ERRORS:  # a damaged EXIF block says nothing about the pixels
        upright = image
    if upright.mode == "RGB" and "transparency" not in upright.info:
        return upright if upright is not image else image.copy()
    if upright.mode.startswith("I"):
        return _from_16_bit(upright, label)
    if upright.mode == "F":
        raise ValueError(f"{label}: floating-point pixels have no known range; save it as 8-bit RGB")
    try:
        if upright.has_transparency_data:
            layered = upright.convert("RGBA")
            white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, layered).convert("RGB")
        return upright.convert("RGB")
    except _DECODE_ERRORS as error:
        raise ValueError(f"{label}: colours of mode {upright.mode} cannot be converted ({_reason(error)})") from error


def _from_16_bit(image: Image.Image, label: str) -> Image.Image:
    """Scale 16-bit grey to 8 bits (Pillow's own conversion clips it)."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65_535:
        raise ValueError(f"{label}: integer pixels from {low} to {high} do not fit 16 bits; save it as 8-bit RGB")
    grey = np.rint(values.astype(np.float32) / 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def official_shrink(image: Image.Image) -> Image.Image:
    """Published training's preparation of every image (spec 2.3, steps 1 to 4): nearest neighbour throughout."""
    width, height = image.size
    if width * height > OFFICIAL_MAX_AREA:
        factor = math.sqrt(OFFICIAL_MAX_AREA / (width * height))
        image = image.resize((int(width * factor), int(height * factor)), Image.Resampling.NEAREST)
    width, height = image.size
    if min(width, height) < OFFICIAL_MIN_SIDE:
        size = (max(width, OFFICIAL_MIN_SIDE), max(height, OFFICIAL_MIN_SIDE))
        image = image.resize(size, Image.Resampling.NEAREST)
    width, height = image.size
    if width / height > 200:
        image = image.resize((height * 180, height), Image.Resampling.NEAREST)
    elif height / width > 200:
        image = image.resize((width, width * 180), Image.Resampling.NEAREST)
    return image


def prepare_understanding(
    image: Image.Image, image_processor: Qwen2VLImageProcessorPil, *, official_training: bool = False
) -> PreparedImage:
    """Cut an RGB image into the patches of the vision tower (spec 2.3).

    Args:
        official_training: shrink with nearest neighbour first, as published training does.
    """
    if official_training:
        image = official_shrink(image)
    out = image_processor(images=[image], return_tensors="pt")
    rows, columns = (int(side) for side in out["image_grid_thw"][0][1:])
    return PreparedImage(out["pixel_values"], (1, rows, columns))


def target_pixels(
    image: Image.Image,
    schedule: ScaleSchedule,
    *,
    fit: Literal["crop", "pad", "official"] = "crop",
    offset: tuple[float, float] = (0.5, 0.5),
) -> torch.Tensor:
    """Make the pixels to draw, float32 [3, H, W] in [-1, 1], at the schedule's size.

    One Lanczos resize from the original: `crop` covers the frame, `pad` shows all of the image on white. `official`
    is the published recipe (spec 2.4; square schedules only): nearest-neighbour shrink, Lanczos to 1.125 times the
    side, crop.

    Args:
        offset: (vertical, horizontal) place of the crop or of the padded image in [0, 1); 0.5 is the centre.
    """
    if not all(0.0 <= part < 1.0 for part in offset):
        raise ValueError(f"a crop offset must be two numbers in [0, 1), got {offset}")
    height, width = schedule.image_size
    if fit == "official":
        framed = _official_frame(image, height, width, offset)
    elif fit == "crop":
        framed = _cover(image, height, width, offset)
    elif fit == "pad":
        framed = _contain(image, height, width, offset)
    else:
        raise ValueError(f"fit must be 'crop', 'pad' or 'official', got {fit!r}")
    return to_signed(framed)


def to_signed(image: Image.Image) -> torch.Tensor:
    """Map 8-bit RGB to float32 [3, H, W]: 2 * byte / 255 - 1."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return to_signed_pixels(pixels.permute(2, 0, 1).contiguous())


def to_signed_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Map bytes of any shape to float32: 2 * byte / 255 - 1."""
    return pixels.float().div_(255.0).mul_(2.0).sub_(1.0)


def to_bytes(signed: torch.Tensor) -> torch.Tensor:
    """The bytes that `to_signed_pixels` made these values of, uint8; a quarter of the memory."""
    return ((signed + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _cover(image: Image.Image, height: int, width: int, offset: tuple[float, float]) -> Image.Image:
    factor = max(height / image.height, width / image.width)
    box_h, box_w = min(height / factor, image.height), min(width / factor, image.width)
    top, left = (image.height - box_h) * offset[0], (image.width - box_w) * offset[1]
    return image.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + box_w, top + box_h))


def _contain(image: Image.Image, height: int, width: int, offset: tuple[float, float]) -> Image.Image:
    factor = min(height / image.height, width / image.width)
    inner = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    canvas = Image.new("RGB", (width, height), (255, 255, 255))
    place = (round((width - inner[0]) * offset[1]), round((height - inner[1]) * offset[0]))
    canvas.paste(image.resize(inner, Image.Resampling.LANCZOS), place)
    return canvas


def _official_frame(image: Image.Image, height: int, width: int, offset: tuple[float, float]) -> Image.Image:
    if height != width:
        raise ValueError(f"published target preparation is square only, got {height}x{width}: use fit='crop'")
    image = official_shrink(image)
    short = round(OFFICIAL_ENLARGE * height)
    if image.width <= image.height:
        size = (short, int(short * image.height / image.width))
    else:
        size = (int(short * image.width / image.height), short)
    image = image.resize(size, Image.Resampling.LANCZOS)
    top = int(offset[0] * (image.height - height + 1))
    left = int(offset[1] * (image.width - width + 1))
    return image.crop((left, top, left + width, top + height))
