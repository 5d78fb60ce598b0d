"""`vargpt draw` and `vargpt edit`: pictures from words, and pictures from a picture and words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vargpt.commands.common import (
    ScaleProgress,
    check_output,
    find_model,
    load_pipeline,
    numbered,
    open_picture,
    require_words,
)

if TYPE_CHECKING:
    from vargpt.inference.pipeline import Pictures, VargptPipeline


@dataclass(frozen=True)
class PictureOptions:
    """What both verbs take: where to write, how many, how large, and how to sample (None: the model's own)."""

    output: Path
    count: int = 1
    seed: int | None = None
    aspect: str | None = None
    size: str | None = None
    guidance: str | None = None
    temperature: str | None = None
    top_p: float | None = None
    negative: str | None = None
    previews: Path | None = None
    draft: str | None = None
    at_once: bool = False
    preset: str | None = None
    model: str | None = None
    dtype: str | None = None
    device: str | None = None

    def check(self) -> None:
        """Refuse, before a model is loaded, what can be refused by itself."""
        check_output(self.output)
        if self.count < 1:
            raise ValueError(f"-n takes a number of pictures from 1 on, got {self.count}")
        if self.previews is not None and self.previews.exists() and not self.previews.is_dir():
            raise ValueError(f"{self.previews}: is a file, expected a folder for the previews")
        if self.draft is not None:
            require_words(self.draft, "--draft")
            if self.at_once:
                raise ValueError("--draft and --at-once exclude each other: give the words, or draw without any")
        self.arguments()
        find_model(self.model)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the pipeline; what was not asked for is left out."""
        from vargpt.inference.sizes import parse_aspect

        if self.aspect is not None:
            parse_aspect(self.aspect)
        height, width = parse_size(self.size)
        given = {
            "height": height,
            "width": width,
            "aspect_ratio": self.aspect,
            "guidance_scale": parse_numbers("--guidance", self.guidance),
            "temperature": parse_numbers("--temperature", self.temperature),
            "top_p": self.top_p,
            "negative_prompt": self.negative,
            "draft": False if self.at_once else self.draft,
            "seed": self.seed,
            "num_images_per_prompt": self.count,
        }
        return {name: value for name, value in given.items() if value is not None}


def draw(prompt: str, options: PictureOptions) -> None:
    """Draw pictures of a prompt and write them as PNG."""
    words = require_words(prompt, "prompt")
    options.check()
    pipeline = load_pipeline(options.model, options.dtype, options.device, options.preset)
    reporter = ScaleReporter(options)
    pictures = pipeline.draw(words, callback_on_step_end=reporter, **options.arguments())
    write_pictures(pictures, pipeline, options, reporter, {"prompt": words})


def edit(source: Path, instruction: str, options: PictureOptions) -> None:
    """Change a picture as told and write the result as PNG."""
    words = require_words(instruction, "instruction")
    picture = open_picture(source)
    options.check()
    pipeline = load_pipeline(options.model, options.dtype, options.device, options.preset)
    reporter = ScaleReporter(options)
    pictures = pipeline.edit(picture, words, callback_on_step_end=reporter, **options.arguments())
    write_pictures(pictures, pipeline, options, reporter, {"prompt": words, "source": source.name})


class ScaleReporter(ScaleProgress):
    """Progress per scale on stderr, and previews as PNG where they were asked for."""

    def __init__(self, options: PictureOptions) -> None:
        super().__init__()
        self.options = options

    def __call__(self, pipeline: VargptPipeline, step: int, timestep: int, values: dict[str, Any]) -> None:
        """Report one finished scale of one batch of pictures."""
        super().__call__(pipeline, step, timestep, values)
        if self.options.previews is None:
            return
        from vargpt.inference.pictures import save_png

        for offset, preview in enumerate(pipeline.preview(values["canvas"])):
            name = numbered(self.options.output, values["first_image"] + offset).stem
            save_png(self.options.previews / f"{name}-scale-{step + 1}.png", preview)


def write_pictures(
    pictures: Pictures,
    pipeline: VargptPipeline,
    options: PictureOptions,
    reporter: ScaleReporter,
    about: dict[str, str],
) -> None:
    """Write every picture with what made it, and print the file names on stdout."""
    from vargpt.inference.pictures import save_png

    reporter.status.clear()
    for index, (image, seed) in enumerate(zip(pictures.images, pictures.seeds, strict=True)):
        path = numbered(options.output, index)
        settings = {**asdict(pictures.settings), "seeds": None, "images_per_prompt": 1}
        metadata = {**about, "seed": str(seed), "model": pipeline.name, "software": "vargpt", "settings": settings}
        if pictures.drafts and pictures.drafts[index]:  # a model may say nothing first
            metadata["draft"] = pictures.drafts[index]
            reporter.status.say(f"{path.name}: {pictures.drafts[index]}")
        save_png(path, image, metadata)
        print(path)
    reporter.status.say(f"{len(pictures.images)} drawn in {reporter.status.seconds:.1f} s")


def parse_size(text: str | None) -> tuple[int | None, int | None]:
    """Return (height, width) of '640x480' (width x height)."""
    if text is None:
        return None, None
    width, mark, height = text.lower().partition("x")
    if not mark or not width.isdecimal() or not height.isdecimal():
        raise ValueError(f"--size reads WIDTHxHEIGHT in pixels, such as 64x64, got {text!r}")
    return int(height), int(width)


def parse_numbers(option: str, text: str | None) -> float | list[float] | None:
    """Return one number, or a list of them, one per scale ('3' or '4,3,2')."""
    if text is None:
        return None
    try:
        numbers = [float(item) for item in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} takes a number, or one per scale separated by commas, got {text!r}") from error
    return numbers[0] if len(numbers) == 1 else numbers
