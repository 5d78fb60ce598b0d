"""The processor: conversations and image files in, batches for the model out; saved and loaded like any other.

Invariant: a processor reloaded from its folder encodes everything to the same tensors. It holds no state between
calls but caches of encoded text.

A folder holds `tokenizer.json`, `processor_config.json` and `chat_template.jinja`; Qwen2-VL's own files load too: the
three drawing tokens are added, and the published behaviour is taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from vargpt.configuration import Behaviour
from vargpt.processing.chat import CHAT_TEMPLATE, DEFAULT_SYSTEM_PROMPT, ChatFormat
from vargpt.processing.collate import Batch, Encoded, collate
from vargpt.processing.conversation import Conversation, DrawSource, ImagePart, Message, UnderstandSource
from vargpt.processing.images import PreparedImage, open_image, prepare_understanding, target_pixels
from vargpt.processing.text import SpecialIds, TextEncoder, add_image_gen_tokens, train_text_tokenizer
from vargpt.scales import ScaleSchedule


class VargptProcessor(ProcessorMixin):
    """Chat format, text tokenizer, image preparation and positions in one object.

    Args:
        image_processor: cuts images to understand into patches (the PIL backend; no torchvision).
        tokenizer: a Qwen2-VL tokenizer, or one made by `train_text_tokenizer`.
        chat_template: for `apply_chat_template`; ours by default.
        behaviour: the model's switches (a `Behaviour`, a preset's name or a saved dict); `vargpt` by default.
        system_prompt: system text where a conversation has none; None: no system turn.
    """

    def __init__(
        self,
        image_processor: Qwen2VLImageProcessorPil | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | None = None,
        behaviour: Behaviour | dict[str, Any] | str | None = None,
        system_prompt: str | None = None,
    ) -> None:
        if image_processor is None or tokenizer is None:
            raise ValueError("VargptProcessor needs an image_processor and a tokenizer")
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        add_image_gen_tokens(tokenizer)
        self.behaviour = Behaviour.from_any(behaviour)
        self.system_prompt = system_prompt
        self.special = SpecialIds.from_tokenizer(tokenizer)
        self.image_token, self.image_token_id = "<|image_pad|>", self.special.image_pad
        self.video_token, self.video_token_id = "<|video_pad|>", self.special.video_pad
        self._encoder = TextEncoder(tokenizer)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        patch_size: int = 14,
        min_pixels: int = 56 * 56,
        max_pixels: int = 28 * 28 * 1280,
        behaviour: Behaviour | dict[str, Any] | str | None = None,
        system_prompt: str | None = None,
    ) -> VargptProcessor:
        """Make a processor for a new small model: a byte-level BPE trained on the texts, patches of the given size.

        Args:
            min_pixels, max_pixels: area to which images to understand are brought (sides are multiples of
                2 * patch_size).
        """
        image_processor = Qwen2VLImageProcessorPil(
            patch_size=patch_size, size={"shortest_edge": min_pixels, "longest_edge": max_pixels}
        )
        tokenizer = train_text_tokenizer(texts, vocab_size)
        return cls(image_processor, tokenizer, behaviour=behaviour, system_prompt=system_prompt)

    @property
    def merge_size(self) -> int:
        """Side, in patches, of the square that becomes one image token."""
        return int(self.image_processor.merge_size)

    @property
    def draws_official(self) -> bool:
        """Whether targets are prepared as in published training."""
        return self.behaviour.target_crop == "official"

    # Encoding -------------------------------------------------------------------------------------------------------

    def encode(
        self,
        conversation: Conversation | list[Any],
        schedule: ScaleSchedule | None = None,
        *,
        training: bool = True,
        drop_start: bool = False,
        crop_offset: tuple[float, float] = (0.5, 0.5),
        fit: Literal["crop", "pad", "official"] | None = None,
    ) -> Encoded:
        """Encode one conversation.

        Args:
            conversation: a `Conversation`, or chat messages (`Conversation.parse`).
            schedule: grids of the images to draw; needed where there are any.
            training: close every turn; False leaves it open for the assistant to speak.
            drop_start: mark the example as prompt-free for guidance (give the prompt-free conversation too).
            crop_offset: place of the target crop; draw it outside for random crops.
            fit: how targets fill the frame; by the behaviour's `target_crop` when None.
        """
        conversation = Conversation.parse(conversation)
        images = tuple(
            self.understand(part.image, training=training)
            for turn in conversation.turns
            for part in turn.content
            if isinstance(part, ImagePart)
        )
        drawings = conversation.drawings
        if drawings and schedule is None:
            raise ValueError(f"the conversation draws {len(drawings)} images: give the schedule of their size")
        slots = schedule.padded_length(self.behaviour.image_slot_multiple) if schedule is not None else 0
        merged = self.merge_size**2
        rendered = self.chat.render(
            conversation,
            [image.grid[1] * image.grid[2] // merged for image in images],
            slots,
            for_generation=not training,
        )
        return Encoded(
            ids=np.array(rendered.ids, dtype=np.int64),
            is_answer=np.array(rendered.is_answer, dtype=bool),
            images=images,
            draw_columns=tuple(rendered.draw_columns),
            targets=tuple(
                None
                if part.image is None or schedule is None
                else self.target(part.image, schedule, fit=fit, offset=crop_offset)
                for part in drawings
            ),
            schedule=schedule if drawings else None,
            drop_start=drop_start,
        )

    def encode_prompt_free(
        self,
        conversation: Conversation | list[Any],
        schedule: ScaleSchedule | None = None,
        *,
        training: bool = True,
        negative_prompt: str = "",
        crop_offset: tuple[float, float] = (0.5, 0.5),
    ) -> Encoded:
        """Encode the prompt-free form of a conversation (`Conversation.without_prompt`) with `drop_start` set."""
        bare = Conversation.parse(conversation).without_prompt(negative_prompt)
        return self.encode(bare, schedule, training=training, drop_start=True, crop_offset=crop_offset)

    def collate(
        self, rows: list[Encoded], padding_side: Literal["left", "right"] = "right", multiple_of: int = 8
    ) -> Batch:
        """Pad encoded training conversations into a batch (positions and text targets by the behaviour)."""
        return collate(
            rows,
            self.special,
            padding_side=padding_side,
            multiple_of=multiple_of,
            merge_size=self.merge_size,
            sequential=self.behaviour.training_positions == "official",
            all_text_targets=self.behaviour.text_targets == "official",
        )

    def prompt(
        self,
        conversations: Conversation | list[Any],
        schedule: ScaleSchedule | None = None,
        *,
        drop_start: bool = False,
    ) -> Batch:
        """Make a left-padded batch that ends where the assistant is to speak, with M-RoPE positions.

        Args:
            conversations: one conversation, or a list of them (each a `Conversation` or chat messages).
            schedule: grids of images drawn earlier in the conversations; not needed where there are none.
        """
        if isinstance(conversations, Conversation) or (conversations and isinstance(conversations[0], dict | Message)):
            items: list[Any] = [conversations]
        else:
            items = list(conversations)
        rows = [self.encode(item, schedule, training=False, drop_start=drop_start) for item in items]
        return collate(
            rows,
            self.special,
            padding_side="left",
            multiple_of=1,
            merge_size=self.merge_size,
            sequential=False,
            all_text_targets=False,
        )

    def understand(self, image: UnderstandSource | str, *, training: bool = False) -> PreparedImage:
        """Prepare an image to understand; a `PreparedImage` passes through, so callers can keep them."""
        if isinstance(image, PreparedImage):
            return image
        official = training and self.behaviour.image_resize == "official"
        return prepare_understanding(open_image(image), self.image_processor, official_training=official)

    def target(
        self,
        image: DrawSource,
        schedule: ScaleSchedule,
        *,
        fit: Literal["crop", "pad", "official"] | None = None,
        offset: tuple[float, float] = (0.5, 0.5),
    ) -> torch.Tensor:
        """Prepare an image to draw: pixels [3, H, W] in [-1, 1] of the schedule's size; see `encode` for the rest."""
        if isinstance(image, torch.Tensor):
            expected = (3, *schedule.image_size)
            if tuple(image.shape) != expected:
                raise ValueError(f"target pixels must have shape {expected} for its schedule, got {tuple(image.shape)}")
            return image
        fit = fit or ("official" if self.draws_official else "crop")
        return target_pixels(open_image(image), schedule, fit=fit, offset=offset)

    @property
    def chat(self) -> ChatFormat:
        """The chat format of this tokenizer and system prompt."""
        return ChatFormat(self.special, self._encoder, self.system_prompt)

    # transformers ---------------------------------------------------------------------------------------------------

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """Expand one `<|image_pad|>` of a text (called by transformers' own `__call__`)."""
        grid = image_inputs["image_grid_thw"][image_idx]
        return self.image_token * (int(grid[0] * grid[1] * grid[2]) // self.merge_size**2)

    def to_dict(self) -> dict[str, Any]:
        """What `processor_config.json` holds."""
        kept = self.behaviour
        output = super().to_dict()
        output["behaviour"] = asdict(kept)
        return output

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> VargptProcessor:
        """Build from saved settings; a folder without ours is the published model's."""
        published = {"behaviour": asdict(Behaviour.official()), "system_prompt": DEFAULT_SYSTEM_PROMPT}
        if "behaviour" not in processor_dict:
            processor_dict = {**processor_dict, **published, "chat_template": None}
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Load the parts by their own classes: the automatic choice of an image processor asks for torchvision."""
        _check_folder(pretrained_model_name_or_path)
        kwargs.pop("_from_auto", None)
        image_processor = Qwen2VLImageProcessorPil.from_pretrained(pretrained_model_name_or_path, **kwargs)
        tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return [image_processor, tokenizer]


def _check_folder(path: str | os.PathLike[str]) -> None:
    """A local folder must hold a tokenizer; say so before transformers guesses."""
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ValueError(f"{folder}: no tokenizer.json, so this folder holds no processor")
