"""`VargptPipeline`: words and pictures in, words and pictures out.

Invariant: a picture depends on its own request and seed only, never on what is drawn beside it; nothing but the model
and the processor is kept between calls.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from vargpt.checkpoint.loading import resolve_folder
from vargpt.configuration import Behaviour
from vargpt.inference.drafting import Draft, choose_drafts
from vargpt.inference.habits import Habits, read_habits
from vargpt.inference.pictures import OUTPUT_TYPES, OutputType, composite, to_output
from vargpt.inference.requests import draw_request, edit_request, opened, prompt_free_request
from vargpt.inference.sizes import choose_schedule, nearest_schedule
from vargpt.inference.streams import TextStream, group_requests, parse_messages, with_drawings
from vargpt.inputs import ModelInputs
from vargpt.model.events import Event, Finished, ImageDone, ScaleDone, TextDelta
from vargpt.model.modeling import VargptForConditionalGeneration
from vargpt.processing.conversation import Conversation
from vargpt.processing.images import open_image
from vargpt.processing.processor import VargptProcessor
from vargpt.sampling import Sampling
from vargpt.scales import ScaleSchedule

Picture = str | os.PathLike[str] | bytes | Image.Image
StepCallback = Callable[["VargptPipeline", int, int, dict[str, Any]], None]
"""`callback(pipeline, step, timestep, values)` after every scale: step counts up from 0, timestep down to 0; values are
`canvas` [n, d, h, w] (for `pipeline.preview`), `grid` (rows, columns) of the scale, and `first_image`, the index of the
first of the n pictures."""


@dataclass(frozen=True)
class Pictures:
    """What `draw` and `edit` return: one entry per picture, those of a prompt adjacent.

    `drafts` is empty where none was made.
    """

    images: list[Any]
    prompts: list[str]
    seeds: list[int]
    settings: Sampling
    drafts: list[str] = field(default_factory=list)


class VargptPipeline:
    """Draws, reads and edits with one model.

    Args:
        habits: defaults of this model; the published settings where there are none.
        name: how files and reports call the model.
    """

    def __init__(
        self,
        model: VargptForConditionalGeneration,
        processor: VargptProcessor,
        habits: Habits | None = None,
        name: str = "vargpt",
    ) -> None:
        self.model, self.processor, self.name = model.eval(), processor, name
        self.habits = habits or Habits()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        behaviour: Behaviour | str | None = None,
    ) -> Self:
        """Load a model and its processor from a folder or a hub repository, in either layout.

        Args:
            dtype: 'float32', 'bfloat16', ...; None: as stored on a GPU, float32 on a CPU.
            device: 'cpu', 'cuda', ...; None: the GPU where there is one.
            behaviour: switches in place of the model's own ('official', 'vargpt', or a `Behaviour`).

        Raises:
            ValueError: in one line, for a folder that is no model, a device that is not here, an unknown type.
        """
        place = _pick_device(device)
        folder = resolve_folder(Path(name_or_path))
        if dtype is None and place.type == "cpu":
            dtype = "float32"
        model = VargptForConditionalGeneration.from_pretrained(folder, dtype=dtype, device_map={"": str(place)})
        if behaviour is not None:
            model.set_behaviour(behaviour)
        processor = VargptProcessor.from_pretrained(folder)
        name = Path(name_or_path).name if Path(name_or_path).is_dir() else str(name_or_path)
        return cls(model, processor, read_habits(folder), name)

    @property
    def sampling(self) -> Sampling:
        """The settings where a call gives none."""
        return self.habits.sampling

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.model.lm_head.weight.dtype

    @property
    def num_parameters(self) -> int:
        """How many weights the model has."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    # Pictures -------------------------------------------------------------------------------------------------------

    def draw(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        aspect_ratio: str | float | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        temperature: float | Sequence[float] | None = None,
        top_p: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        draft: Draft = None,
        callback_on_step_end: StepCallback | None = None,
        output_type: OutputType = "pil",
        batch_size: int = 8,
    ) -> Pictures:
        """Draw `num_images_per_prompt` pictures of each prompt.

        Args:
            negative_prompt: what guidance leads away from.
            height, width: pixels, of a size that the model draws; or `aspect_ratio` as 'width:height'; or a square.
            guidance_scale, temperature: a number, or one per scale.
            seed: of the first picture of each prompt (the next ones count up; default 0), or one per picture.
            generator: draws the seeds instead.
            draft: words that the answer begins with, such as a layout; True lets the model write them, a new draft for
                every seed; False draws at once.
            callback_on_step_end: called after every scale, see `StepCallback`.
            output_type: 'pil', 'np' (uint8 [H, W, 3]) or 'pt' (float [3, H, W] in [0, 1]).
            batch_size: how many pictures are drawn at once.

        Raises:
            ValueError: in one line, for an empty prompt, a size that the model lacks, settings out of range.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts or not all(isinstance(text, str) and text.strip() for text in prompts):
            raise ValueError("the prompt is empty: say in words what to draw")
        schedule = choose_schedule(self.model.config, height, width, aspect_ratio)
        settings = self._settings(guidance_scale, temperature, top_p, schedule)
        seeds = _seeds(seed, generator, num_images_per_prompt)
        conversations = [draw_request(self.model.config, self.habits.subject(text)) for text in prompts]
        pixels, drafts = self._pixels(
            conversations,
            schedule,
            settings,
            seeds,
            negative_prompt,
            draft,
            callback_on_step_end,
            output_type,
            batch_size,
        )
        images = self.to_output(pixels, output_type)
        return Pictures(images, [text for text in prompts for _ in seeds], seeds * len(prompts), settings, drafts)

    def edit(
        self,
        image: Picture,
        instruction: str,
        *,
        mask: Picture | None = None,
        negative_prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        aspect_ratio: str | float | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        temperature: float | Sequence[float] | None = None,
        top_p: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        draft: Draft = None,
        callback_on_step_end: StepCallback | None = None,
        output_type: OutputType = "pil",
        batch_size: int = 8,
    ) -> Pictures:
        """Change a picture as told; arguments as in `draw`. Without a size, the nearest aspect to the picture's.

        Args:
            mask: white where the picture may change; elsewhere the result gets the original's pixels back.
        """
        if not isinstance(instruction, str) or not instruction.strip():
            raise ValueError("the instruction is empty: say in words what to change")
        source = open_image(image)
        if height is None and width is None and aspect_ratio is None:
            schedule = nearest_schedule(self.model.config, source.height, source.width)
        else:
            schedule = choose_schedule(self.model.config, height, width, aspect_ratio)
        settings = self._settings(guidance_scale, temperature, top_p, schedule)
        seeds = _seeds(seed, generator, num_images_per_prompt)
        conversation = edit_request(self.model.config, source, instruction.strip())
        pixels, drafts = self._pixels(
            [conversation],
            schedule,
            settings,
            seeds,
            negative_prompt,
            draft,
            callback_on_step_end,
            output_type,
            batch_size,
        )
        if mask is not None:
            pixels = [composite(result, source, open_image(mask)) for result in pixels]
        images = self.to_output(pixels, output_type)
        return Pictures(images, [instruction] * len(seeds), seeds, settings, drafts)

    def preview(self, canvas_Idhw: Tensor) -> list[Image.Image]:
        """Decode unfinished pictures (the `canvas` of a step)."""
        with torch.no_grad():
            return self.to_output([self.model.image_tokenizer.decode(row[None])[0] for row in canvas_Idhw], "pil")

    # Words ----------------------------------------------------------------------------------------------------------

    def chat(
        self,
        messages: Any,
        *,
        max_new_tokens: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> Iterator[str]:
        """Stream the answer to a conversation, piece by piece. It speaks only: `Dialogue` draws too.

        Args:
            messages: a question, a `Conversation`, or a list of {"role", "content"}, where a content is a string or a
                list of strings, pictures and parts such as {"type": "image", "image": PATH}.
            temperature, top_k, top_p: of the words; temperature 0 takes the likeliest.
        """
        words = _given(text_temperature=temperature, text_top_k=top_k, text_top_p=top_p)
        settings = replace(
            self.sampling, max_new_tokens=max_new_tokens, max_images=0, seeds=[seed], guidance_scale=1.0, **words
        )
        inputs = self.inputs([parse_messages(messages)])
        return self._words(inputs, settings)

    def _words(self, inputs: ModelInputs, settings: Sampling) -> Iterator[str]:
        text = TextStream(self.processor.tokenizer)
        for event in self.model.generate(inputs, settings):
            if isinstance(event, TextDelta):
                piece = text.add(event.token_id)
            elif isinstance(event, Finished):
                piece = text.close()
            else:
                continue
            if piece:
                yield piece

    # Shared with `Dialogue` -------------------------------------------------------------------------------------------

    def inputs(
        self,
        conversations: list[Conversation],
        schedule: ScaleSchedule | None = None,
        drawn: Sequence[Tensor] = (),
        *,
        drop_start: bool = False,
    ) -> ModelInputs:
        """Make the batch that `model.generate` continues; `drawn` are bits of pictures drawn earlier in it."""
        batch = self.processor.prompt(conversations, schedule, drop_start=drop_start).inputs
        if schedule is not None:
            batch = with_drawings(batch, drawn, self.model.image_tokenizer, schedule)
        return batch.to(self.device)

    def unconditional(self, conversation: Conversation, negative_prompt: str | None) -> ModelInputs | None:
        """Make the prompt-free (or negative) conversation of guidance; None where the weights have their own branch.

        Raises:
            ValueError: for a negative prompt with weights whose unconditional branch has no conversation.
        """
        behaviour = self.model.behaviour
        if behaviour.guidance_backbone == behaviour.guidance_context == "official":
            if negative_prompt:
                raise ValueError(
                    "a negative prompt cannot act on these weights: their unconditional branch reads no words; load "
                    "them with behaviour='vargpt' to give it some"
                )
            return None
        return self.inputs([prompt_free_request(conversation, negative_prompt or "")], drop_start=True)

    def generate(
        self,
        inputs: ModelInputs,
        settings: Sampling,
        schedule: ScaleSchedule,
        conversation: Conversation,
        negative_prompt: str | None = None,
    ) -> Iterator[Event]:
        """Continue a batch with guidance against the prompt-free form of one of its conversations."""
        other = None if _unguided(settings) else self.unconditional(conversation, negative_prompt)
        return self.model.generate(inputs, settings, unconditional=other, schedule=schedule)

    def _settings(
        self,
        guidance_scale: float | Sequence[float] | None,
        temperature: float | Sequence[float] | None,
        top_p: float | None,
        schedule: ScaleSchedule,
    ) -> Sampling:
        given = _given(guidance_scale=guidance_scale, temperature=temperature, top_p=top_p)
        settings = replace(self.sampling, force_image=True, stop_after_image=True, **given)
        for name in ("guidance_scale", "temperature"):
            value = getattr(settings, name)
            if isinstance(value, Sequence) and len(value) != schedule.num_scales:
                raise ValueError(
                    f"{name} has {len(value)} entries, but this picture has {schedule.num_scales} scales; give one each"
                )
        return settings

    def _pixels(
        self,
        conversations: list[Conversation],
        schedule: ScaleSchedule,
        settings: Sampling,
        seeds: list[int],
        negative_prompt: str | None,
        draft: Draft,
        callback: StepCallback | None,
        output_type: OutputType,
        batch_size: int,
    ) -> tuple[list[Tensor], list[str]]:
        """Draw every conversation with every seed; pixels [3, H, W] in [-1, 1], those of a conversation adjacent.

        Returns:
            the pixels, and the draft of each picture, none where none was made.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        drafts = choose_drafts(self, conversations, seeds, draft, batch_size)
        if drafts:  # a conversation of its own for every picture
            seeds_of = [[seed] for _ in conversations for seed in seeds]
            conversations = list(map(opened, (each for each in conversations for _ in seeds), drafts))
        else:
            seeds_of = [seeds] * len(conversations)
        done: dict[int, Tensor] = {}
        for group in group_requests(len(conversations), range(len(seeds_of[0])), batch_size):
            chosen = [conversations[index] for index in group.prompts]
            copies = len(group.seeds)
            flat = [seeds_of[index][copy] for index in group.prompts for copy in group.seeds]
            here = replace(settings, images_per_prompt=copies, seeds=flat)
            first = group.prompts[0] * len(seeds_of[0]) + group.first_copy
            canvases: list[Tensor] = []
            for event in self.generate(self.inputs(chosen), here, schedule, chosen[0], negative_prompt):
                if isinstance(event, ScaleDone) and callback is not None:
                    canvases.append(event.canvas_1dhw)
                    if len(canvases) == copies * len(chosen):
                        values = {
                            "canvas": torch.cat(canvases),
                            "grid": schedule.sizes[event.scale_index],
                            "first_image": first,
                        }
                        callback(self, event.scale_index, schedule.num_scales - 1 - event.scale_index, values)
                        canvases = []
                elif isinstance(event, ImageDone):
                    done[first + event.sequence] = event.image_3HW
        return [done[index] for index in range(len(done))], drafts

    def to_output(self, pixels: Sequence[Tensor], output_type: OutputType) -> list[Any]:
        """Turn pixels [3, H, W] in [-1, 1] into what callers get."""
        return to_output(torch.stack(list(pixels)), output_type, self.model.behaviour.pixel_rounding)


def _given(**settings: Any) -> dict[str, Any]:
    """The settings that are not None."""
    return {name: value for name, value in settings.items() if value is not None}


def _unguided(settings: Sampling) -> bool:
    scales = settings.guidance_scale
    return all(scale == 1 for scale in (scales if isinstance(scales, Sequence) else [scales]))


def _seeds(seed: int | Sequence[int] | None, generator: torch.Generator | None, count: int) -> list[int]:
    """One seed per picture of a prompt."""
    if count < 1:
        raise ValueError(f"num_images_per_prompt must be at least 1, got {count}")
    if generator is not None:
        if seed is not None:
            raise ValueError("give either seed or generator, not both")
        return torch.randint(2**31, (count,), generator=generator, device=generator.device).tolist()
    if isinstance(seed, Sequence):
        seeds = [int(item) for item in seed]
        if len(seeds) != count:
            raise ValueError(f"seed lists {len(seeds)} numbers for {count} pictures per prompt; give one each")
    else:
        seeds = [(seed or 0) + index for index in range(count)]
    if min(seeds) < 0 or max(seeds) >= 2**63:
        raise ValueError(f"a seed is a whole number from 0 to 2**63 - 1, got {min(seeds)}")
    return seeds


def _pick_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"the device {str(device)!r} is not here; use cpu, cuda or mps") from error
    return place
