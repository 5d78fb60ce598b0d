"""`ModelInputs`: everything `forward` needs, as tensors on one device.

Invariant: all randomness and all decisions (positions, bits, dropped prompts, targets) are made before this object
exists; `forward` is a function of it.

Legend: `B` rows · `T` columns · `I` generated images of the whole batch · `L` image tokens · `M` = L - n_0 ·
`d` bits per token.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vargpt.configuration import VargptConfig
from vargpt.scales import ScaleSchedule


@dataclass
class ModelInputs:
    """A batch of conversations, any number of them with images to read and images to generate.

    A generated image occupies, in its row, the column `start` of its `<|image_gen_start|>`, then `L+` columns of
    `<|image_gen_pad|>` (L rounded up to the behaviour's slot multiple), then `<|image_gen_end|>`. All generated
    images of a batch have the same schedule. Images are ordered by row, then by column.

    Attributes:
        input_ids_BT: int64. attention_mask_BT: bool, False on padding. position_ids_3BT: int64 (time, row, column).
        pixel_values: float patches of all images to read, in order; image_grid_thw: int64 [images, 3], on the CPU.
        image_sample_I, image_start_I: row and start column of each generated image, int64.
        labels_ILd: bits to predict (uint8 or int64); next_inputs_IMd: float inputs of the scales after the first.
        drop_start_I: bool, True where the start vector is replaced by the unconditional one.
        text_targets_BT: int64, the target id at its own position (the loss shifts), -100 where there is none.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    position_ids_3BT: Tensor
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None
    schedule: ScaleSchedule | None = None
    image_sample_I: Tensor | None = None
    image_start_I: Tensor | None = None
    labels_ILd: Tensor | None = None
    next_inputs_IMd: Tensor | None = None
    drop_start_I: Tensor | None = None
    text_targets_BT: Tensor | None = None

    @property
    def num_generated_images(self) -> int:
        """I: how many images the batch generates."""
        return 0 if self.image_sample_I is None else int(self.image_sample_I.shape[0])

    def to(self, device: torch.device | str) -> ModelInputs:
        """Return a copy with all tensors on the device, but `image_grid_thw`, which is read by the host only."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if field.name != "image_grid_thw" and isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def validate(self, config: VargptConfig) -> None:
        """Check shapes and placeholders against the configuration (call it where the tensors are on the CPU).

        Raises:
            ValueError: naming the tensor, what was expected and what was got.
        """
        rows, columns = self.input_ids_BT.shape
        _expect("attention_mask_BT", self.attention_mask_BT, (rows, columns))
        _expect("position_ids_3BT", self.position_ids_3BT, (3, rows, columns))
        if self.text_targets_BT is not None:
            _expect("text_targets_BT", self.text_targets_BT, (rows, columns))
        self._validate_read_images(config)
        if self.num_generated_images:
            self._validate_generated_images(config)
        elif (self.input_ids_BT == config.image_gen_pad_token_id).any():
            raise ValueError("input_ids_BT holds <|image_gen_pad|> slots but image_sample_I lists no generated image")

    def _validate_read_images(self, config: VargptConfig) -> None:
        slots = int((self.input_ids_BT == config.backbone.image_token_id).sum())
        if (self.pixel_values is None) != (self.image_grid_thw is None):
            raise ValueError("pixel_values and image_grid_thw must be given together (both come from the processor)")
        merge = config.backbone.vision_config.spatial_merge_size**2
        features = 0 if self.image_grid_thw is None else int(self.image_grid_thw.prod(-1).sum()) // merge
        if slots != features:
            raise ValueError(
                f"the rows hold {slots} <|image_pad|> tokens but image_grid_thw describes {features} features; "
                f"expand every <image> to t*h*w/{merge} placeholders (the processor does)"
            )

    def _validate_generated_images(self, config: VargptConfig) -> None:
        schedule, samples, starts = self.schedule, self.image_sample_I, self.image_start_I
        if schedule is None or starts is None or samples is None or self.next_inputs_IMd is None:
            raise ValueError("generated images need schedule, image_sample_I, image_start_I and next_inputs_IMd")
        images, bits = len(samples), config.image_tokenizer.bits
        _expect("image_start_I", starts, (images,))
        _expect("next_inputs_IMd", self.next_inputs_IMd, (images, schedule.num_tokens - schedule.lengths[0], bits))
        if self.labels_ILd is not None:
            _expect("labels_ILd", self.labels_ILd, (images, schedule.num_tokens, bits))
        if self.drop_start_I is not None:
            _expect("drop_start_I", self.drop_start_I, (images,))
        slots = schedule.padded_length(config.behaviour.image_slot_multiple)
        is_slot = torch.zeros_like(self.input_ids_BT, dtype=torch.bool)
        for image, (row, start) in enumerate(zip(samples.tolist(), starts.tolist(), strict=True)):
            if not 0 <= row < self.input_ids_BT.shape[0] or not 0 < start < self.input_ids_BT.shape[1] - slots:
                raise ValueError(
                    f"generated image {image}: row {row}, start column {start} and {slots} slots do not fit rows of "
                    f"{self.input_ids_BT.shape[1]} columns with at least one token before the start"
                )
            if self.input_ids_BT[row, start] != config.image_gen_start_token_id:
                raise ValueError(f"generated image {image}: no <|image_gen_start|> at row {row}, column {start}")
            is_slot[row, start + 1 : start + 1 + slots] = True
        if not torch.equal(is_slot, self.input_ids_BT == config.image_gen_pad_token_id):
            raise ValueError(
                f"the <|image_gen_pad|> tokens ({int((self.input_ids_BT == config.image_gen_pad_token_id).sum())}) "
                f"are not {slots} slots after each of the {images} start columns"
            )


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
