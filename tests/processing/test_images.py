"""Opening images safely, patches to understand, target pixels."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from transformers import Qwen2VLImageProcessorPil

from vargpt.processing.images import official_shrink, open_image, prepare_understanding, target_pixels
from vargpt.scales import ScaleSchedule

SMALL = ScaleSchedule(1.0, 3)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(height: int, width: int) -> Image.Image:
    values = np.arange(height * width * 3, dtype=np.int64).reshape(height, width, 3) * 7 % 256
    return Image.fromarray(values.astype(np.uint8))


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with next to no data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_plain_rgb_is_unchanged():
    image = gradient(5, 7)
    assert np.array_equal(np.asarray(open_image(encoded(image))), np.asarray(image))


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 1), (255, 0, 0, 255))
    image.putpixel((2, 2), (0, 0, 0, 51))
    pixels = np.asarray(open_image(encoded(image)))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [255, 0, 0]
    assert pixels[2, 2].tolist() == [204, 204, 204]


@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_palette_transparency_is_laid_on_white(transparency: int | bytes):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 0, 0, 255])
    image.putpixel((3, 3), 1)
    pixels = np.asarray(open_image(encoded(image, transparency=transparency)))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[3, 3].tolist() == [0, 0, 255]


def test_transparent_colour_of_rgb_is_laid_on_white():
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    assert np.asarray(open_image(encoded(image, transparency=(1, 2, 3)))).min() == 255


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 257, 65_535], [32_896, 128, 129]], dtype=np.uint16)
    pixels = np.asarray(open_image(encoded(Image.fromarray(values))))
    assert pixels[..., 0].tolist() == [[0, 1, 255], [128, 0, 1]]


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = np.asarray(open_image(encoded(image, "TIFF")))[0, 0]
    assert red > 200 and green < 60 and blue < 60


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    assert open_image(encoded(gradient(10, 30), "JPEG", exif=exif)).size == (10, 30)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "YCbCr", "LAB", "HSV", "RGBA", "RGB", "RGBX", "I;16", "I"])
def test_every_mode_becomes_rgb(mode: str):
    assert open_image(Image.new(mode, (4, 4))).mode == "RGB"


def test_a_pil_image_given_is_not_changed_or_closed():
    image = gradient(4, 4)
    opened = open_image(image)
    opened.putpixel((0, 0), (9, 9, 9))
    assert image.getpixel((0, 0)) != (9, 9, 9)


BROKEN = {
    "empty": (b"", "empty"),
    "text": (b"hello, this is no image", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "truncated png": (encoded(noise(64, 64))[:9000], "truncated"),
    "truncated jpeg": (encoded(noise(64, 64), "JPEG")[:2000], "truncated"),
    "1x1": (encoded(gradient(1, 1)), "too small"),
    "1x900": (encoded(gradient(900, 1)), "too small"),
    "narrow": (encoded(gradient(2, 500)), "too narrow"),
    "bomb": (png_of_size(100_000, 100_000), "absurdly large"),
    "large": (png_of_size(10_000, 9_500), "absurdly large"),
    "animated gif": (
        encoded(gradient(4, 4), "GIF", save_all=True, append_images=[Image.new("RGB", (4, 4))]),
        "animated",
    ),
    "animated png": (
        encoded(gradient(4, 4), save_all=True, append_images=[Image.new("RGB", (4, 4))]),
        "animated",
    ),
    "float": (encoded(Image.new("F", (4, 4)), "TIFF"), "floating-point"),
    "32 bit": (encoded(Image.new("I", (4, 4), 70_000), "TIFF"), "16 bits"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_bad_files_give_one_clear_line(name: str, tmp_path: Path):
    data, reason = BROKEN[name]
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=reason) as caught:
        open_image(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"none\.png: no such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="is a folder"):
        open_image(tmp_path)


SEEDS = [encoded(gradient(9, 11)), encoded(gradient(9, 11), "JPEG"), encoded(gradient(9, 11), "GIF")]
SEEDS += [encoded(gradient(9, 11), "WEBP"), encoded(gradient(9, 11), "TIFF"), encoded(gradient(9, 11), "BMP")]
if "AVIF" in Image.registered_extensions().values():  # its decoder fails with other exceptions than the rest
    SEEDS.append(encoded(gradient(9, 11), "AVIF"))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SEEDS), st.integers(0, 2000), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255))))
def test_damaged_bytes_open_or_raise_one_line(seed: bytes, cut: int, changes: list[tuple[int, int]]):
    data = bytearray(seed[: max(1, cut)])
    for place, value in changes:
        data[place % len(data)] = value
    try:
        outcome = open_image(bytes(data), name="x").mode
    except ValueError as error:
        outcome = str(error)
    assert outcome == "RGB" or (outcome.startswith("x: ") and "\n" not in outcome)


# Understanding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "image", "patches", "grid"),
    [
        ("understand", "image_a_u8", "single.pixel_values", "single.image_grid_thw"),
        ("train_edit", "input_image_u8", "pixel_values", "image_grid_thw"),
        ("gen_edit", "input_image_u8", "pixel_values", "image_grid_thw"),
    ],
)
def test_patches_match_the_recordings(goldens: Path, file: str, image: str, patches: str, grid: str):
    recorded = load_file(goldens / f"{file}.safetensors")
    data = encoded(Image.fromarray(recorded[image].numpy()))
    for official in (False, True):  # these images are too small for the training shrink to act
        prepared = prepare_understanding(open_image(data), Qwen2VLImageProcessorPil(), official_training=official)
        assert prepared.grid == tuple(recorded[grid][0].tolist())
        torch.testing.assert_close(prepared.patches, recorded[patches], rtol=0, atol=1e-6)


def test_second_image_of_the_batch_matches_the_recording(goldens: Path):
    recorded = load_file(goldens / "understand.safetensors")
    image = Image.fromarray(recorded["image_b_u8"].numpy())
    prepared = prepare_understanding(image, Qwen2VLImageProcessorPil())
    torch.testing.assert_close(prepared.patches, recorded["batch.pixel_values_b"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 512), (724, 362)),  # 512² pixels at most, sides truncated
        ((20, 100), (28, 100)),
        ((10, 10), (28, 28)),
        ((6000, 29), (5220, 29)),
        ((300, 200), (300, 200)),
    ],
)
def test_official_shrink_sizes(size: tuple[int, int], expected: tuple[int, int]):
    assert official_shrink(Image.new("RGB", size)).size == expected


def test_official_shrink_is_nearest_neighbour():
    board = (np.indices((1024, 1024)).sum(0) % 2 * 255).astype(np.uint8)
    shrunk = np.asarray(official_shrink(Image.fromarray(board).convert("RGB")))
    assert set(np.unique(shrunk)) <= {0, 255}


# Targets --------------------------------------------------------------------------------------------------------------


def test_target_at_its_own_size_is_twice_the_byte_minus_one():
    pixels = target_pixels(Image.new("RGB", (64, 64), (0, 255, 51)), SMALL)
    assert pixels.shape == (3, 64, 64) and pixels.dtype == torch.float32
    assert pixels[:, 3, 5].tolist() == pytest.approx([-1.0, 1.0, -0.6])


def halves() -> Image.Image:
    """Left half black, right half white, twice as wide as high."""
    image = Image.new("RGB", (256, 128), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 128, 128))
    return image


def test_crop_offset_chooses_the_part():
    assert target_pixels(halves(), SMALL, offset=(0.5, 0.0))[:, :, :-2].max() < -0.9
    assert target_pixels(halves(), SMALL, offset=(0.5, 0.99))[:, :, 2:].min() > 0.9
    centre = target_pixels(halves(), SMALL)
    assert centre[0, 0, 0] < -0.9 < 0.9 < centre[0, 0, -1]


def test_pad_shows_everything_on_white():
    pixels = target_pixels(halves(), SMALL, fit="pad")
    assert pixels[:, :16].min() == 1.0 and pixels[:, 48:].min() == 1.0
    assert pixels[0, 32, 2] == -1.0 and pixels[0, 32, 61] == 1.0


def test_reduction_is_antialiased():
    stripes = Image.fromarray((np.indices((256, 256))[1] % 2 * 255).astype(np.uint8)).convert("RGB")
    assert target_pixels(stripes, SMALL)[:, 4:-4, 4:-4].abs().max() < 0.05


def test_other_aspects_take_their_own_size():
    schedule = ScaleSchedule.for_image(3, 4, 5)
    assert target_pixels(halves(), schedule).shape == (3, *schedule.image_size)


def test_official_target_is_a_crop_of_the_enlarged_image():
    schedule = ScaleSchedule(1.0, 7)
    image = gradient(300, 200)
    pixels = target_pixels(image, schedule, fit="official", offset=(0.0, 0.999))
    enlarged = image.resize((288, int(288 * 300 / 200)), Image.Resampling.LANCZOS)
    expected = np.asarray(enlarged)[:256, 32:288].astype(np.float32) / 255 * 2 - 1
    torch.testing.assert_close(pixels, torch.from_numpy(expected).permute(2, 0, 1))


def test_target_options_are_checked():
    with pytest.raises(ValueError, match="square only"):
        target_pixels(halves(), ScaleSchedule(2.0, 5), fit="official")
    with pytest.raises(ValueError, match="offset"):
        target_pixels(halves(), SMALL, offset=(0.0, 1.0))
    with pytest.raises(ValueError, match="'crop', 'pad' or 'official'"):
        target_pixels(halves(), SMALL, fit="stretch")  # type: ignore[arg-type]
