"""The image phase of generation: K scales, coarse to fine, for all sequences that wait for an image (spec 7.3 to 7.7).

Invariant: `advance` makes the next scale's input, as in encoding; random numbers come from one generator per image.
The conditional branch extends the sequences' history; the unconditional one lives for this phase only.

Legend: `R` sequences · `G` guidance branches · `l` tokens of a scale · `L` all image tokens · `P` context rows ·
`C D` decoder and backbone width · `d` bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vargpt.inputs import ModelInputs
from vargpt.model.backbone import causal_mask, run_language_model
from vargpt.model.cache import DecoderCache
from vargpt.model.events import BitSampler, CallTrace, ImageDone, ImageTrace, ScaleDone, ScaleTrace
from vargpt.model.history import History
from vargpt.sampling import Sampling, guide, per_scale
from vargpt.scales import ScaleSchedule

if TYPE_CHECKING:
    from vargpt.model.modeling import VargptForConditionalGeneration


@dataclass(frozen=True)
class ImageRequest:
    """One image to draw: which sequence, its ordinal there, and what to report with it."""

    sequence: int
    image: int
    stray_token_id: int | None = None
    calls: tuple[CallTrace, ...] = ()


RowsBitSampler = Callable[[Tensor, Sequence[ImageRequest], int], Tensor]
"""Chooses the bits of one scale of all images: uint8 [R, l, d] from guided logits [R, l, d, 2]."""

_DECODED_TOGETHER = 64


def one_by_one(sampler: BitSampler) -> RowsBitSampler:
    """Ask a caller's sampler for each image in turn."""

    def sample(logits_Rld2: Tensor, requests: Sequence[ImageRequest], scale_index: int) -> Tensor:
        return torch.stack(
            [
                sampler(logits_ld2, request.sequence, request.image, scale_index)
                for logits_ld2, request in zip(logits_Rld2, requests, strict=True)
            ]
        )

    return sample


class ImagePhase:
    """Draws one image for each row of a history whose last column is `<|image_gen_start|>`."""

    def __init__(
        self,
        model: VargptForConditionalGeneration,
        history: History,
        requests: list[ImageRequest],
        schedule: ScaleSchedule,
        sampling: Sampling,
        sample_rows: RowsBitSampler,
        unconditional: ModelInputs | None,
        unconditional_rows: list[int],
        trace: bool,
    ) -> None:
        self.model, self.history, self.requests, self.schedule = model, history, requests, schedule
        self.guidance_scale = per_scale(sampling.guidance_scale, schedule.num_scales, "guidance_scale")
        self.temperature = per_scale(sampling.temperature, schedule.num_scales, "temperature")
        self.sample_rows, self.trace = sample_rows, trace
        self.rows = len(requests)
        self.device = history.valid_RS.device
        guided = [index for index, scale in enumerate(self.guidance_scale) if scale != 1.0]
        self.last_guided = guided[-1] if guided else -1
        self.branches = 2 if guided else 1
        self.cache = DecoderCache(model.config.decoder.depth, schedule.num_tokens)
        self.unconditional_history: History | None = None
        start = history.valid_RS.shape[1] - 1
        contexts = [self._context(history)]
        if self.branches == 2:
            contexts.append(self._unconditional_context(contexts[0][1], unconditional, unconditional_rows))
        self.contexts = contexts
        if model.behaviour.image_positions == "official":
            history.count_positions()
            if self.unconditional_history is not None:
                self.unconditional_history.count_positions()
        self._prepare_decoder()
        self.image_trace_hidden = history.hidden_RSD[:, : start + 1] if trace else None
        self.image_trace_valid = history.valid_RS.clone()

    def _context(self, history: History) -> tuple[Tensor, Tensor]:
        """Return the projected states of everything before the start token [R, P, C], and which rows are real."""
        hidden, valid = history.hidden_RSD, history.valid_RS
        started = valid.long().cumsum(1) == valid.sum(1, keepdim=True)  # from the last real column on
        return self.model.out_projector(hidden), valid & ~started

    def _unconditional_context(
        self, real_RP: Tensor, unconditional: ModelInputs | None, rows: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Return the context of the unconditional branch, starting its history where the behaviour has one."""
        behaviour = self.model.behaviour
        if "official" not in (behaviour.guidance_backbone, behaviour.guidance_context) or unconditional is not None:
            history = self._start_unconditional(unconditional, rows)
            if behaviour.guidance_backbone == "history":
                self.unconditional_history = history
            if behaviour.guidance_context == "hidden":
                return self._context(history)
        # Raw rows, as many as the conditional branch has, taken cyclically beyond the last one (quirk 3).
        table = self.model.decoder.unconditional
        index = (real_RP.long().cumsum(1) - 1).clamp(min=0) % table.shape[0]
        return table[index], real_RP

    def _start_unconditional(self, unconditional: ModelInputs | None, rows: list[int]) -> History:
        """Run the prompt-free conversations and `<|image_gen_start|>`; row i of the result is `rows[i]` of them."""
        model = self.model
        if unconditional is None:
            raise ValueError(
                "guidance needs the prompt-free (or negative) conversation of each prompt: pass `unconditional`, "
                "made by the processor from conversation.without_prompt(), or set guidance_scale to 1"
            )
        history = History(model.backbone)
        embeddings = model.embed_inputs(unconditional)
        history.prefill(embeddings, unconditional.attention_mask_BT, unconditional.position_ids_3BT)
        start_id = torch.full((len(embeddings), 1), model.config.image_gen_start_token_id, device=self.device)
        everyone = torch.ones(len(embeddings), dtype=torch.bool, device=self.device)
        history.append(model.get_input_embeddings()(start_id), everyone)
        history.select(torch.tensor(rows, device=self.device))
        return history

    def _prepare_decoder(self) -> None:
        """Make condition vectors and cross-attention keys and values of all branches, padded to one length."""
        decoder = self.model.decoder
        drop = torch.arange(self.branches, device=self.device).repeat_interleave(self.rows) == 1
        self.condition_QC = decoder.condition(self.model.start_embedding, drop)
        longest = max(context.shape[1] for context, _ in self.contexts)
        padded = [F.pad(rows, (0, 0, 0, longest - rows.shape[1])) for rows, _ in self.contexts]
        masks = [F.pad(real, (0, longest - real.shape[1])) for _, real in self.contexts]
        self.context_mask = torch.cat(masks)
        self.keys_values = decoder.context_keys_values(torch.cat([rows.to(padded[0].dtype) for rows in padded]))

    def _drop_unconditional(self) -> None:
        """Go on with the conditional branch alone: no later scale is guided."""
        self.branches, self.unconditional_history = 1, None
        self.cache.keep(self.rows)
        self.condition_QC = self.condition_QC[: self.rows]
        self.context_mask = self.context_mask[: self.rows]
        self.keys_values = [(k[: self.rows], v[: self.rows]) for k, v in self.keys_values]

    def run(self) -> Iterator[ScaleDone | ImageDone]:
        """Yield `ScaleDone` for every sequence and scale, then `ImageDone` for every sequence."""
        decoder, tokenizer = self.model.decoder, self.model.image_tokenizer
        canvas: Tensor | None = None
        scale_inputs = decoder.embed_start(self.condition_QC)
        bits_of_scales: list[Tensor] = []
        for scale_index in range(self.schedule.num_scales):
            if self.branches == 2 and scale_index > self.last_guided:
                self._drop_unconditional()
                scale_inputs = scale_inputs[: self.rows]
            past_length = self.history.valid_RS.sum(1)
            backbone_inputs = self.model.in_projector(scale_inputs)
            hidden = self._run_backbone(backbone_inputs)
            raw = decoder(
                self.model.out_projector(hidden),
                self.condition_QC,
                self.schedule,
                self.keys_values,
                self.context_mask,
                self.cache,
                scale_index,
            ).float()
            guided = self._guided(raw, scale_index)
            bits = self.sample_rows(guided, self.requests, scale_index).to(self.device)
            bits_of_scales.append(bits)
            canvas, next_inputs = tokenizer.advance(canvas, bits, scale_index, self.schedule)
            for row, request in enumerate(self.requests):
                trace = None
                if self.trace:
                    every = slice(row, None, self.rows)  # this row in each branch
                    trace = ScaleTrace(
                        int(past_length[row]), backbone_inputs[every], hidden[every], raw[every], guided[row]
                    )
                yield ScaleDone(
                    request.sequence, request.image, scale_index, self.schedule, bits[row], canvas[row : row + 1], trace
                )
            if next_inputs is not None:
                scale_inputs = decoder.embed_next(next_inputs).repeat(self.branches, 1, 1)
        assert canvas is not None
        yield from self._finish(torch.cat(bits_of_scales, dim=1), canvas)

    def _run_backbone(self, inputs_QlD: Tensor) -> Tensor:
        """Run the language model over one scale in both branches; causal inside the scale."""
        active = torch.ones(self.rows, dtype=torch.bool, device=self.device)
        hidden = self.history.append(inputs_QlD[: self.rows], active)
        if self.branches == 1:
            return hidden
        inputs = inputs_QlD[self.rows :]
        if self.unconditional_history is not None:
            return torch.cat([hidden, self.unconditional_history.append(inputs, active)])
        # The published unconditional branch has no memory: each scale alone, from position 0 (quirk 1).
        length = inputs.shape[1]
        positions = torch.arange(length, device=self.device).expand(3, self.rows, length)
        mask = causal_mask(torch.ones(self.rows, length, dtype=torch.bool, device=self.device), length)
        return torch.cat([hidden, run_language_model(self.model.backbone, inputs, positions, mask)])

    def _guided(self, raw_Qld2: Tensor, scale_index: int) -> Tensor:
        """Apply temperature, then guidance; temperature 0 (take the likelier bit) leaves the logits undivided."""
        logits = raw_Qld2 / (self.temperature[scale_index] or 1.0)
        if self.branches == 1:
            return logits
        return guide(logits[: self.rows], logits[self.rows :], self.guidance_scale[scale_index])

    def _finish(self, bits_RLd: Tensor, canvas_Rdhw: Tensor) -> Iterator[ImageDone]:
        pixels_R3HW = self._decode(canvas_Rdhw)
        for row, request in enumerate(self.requests):
            trace = None
            if self.image_trace_hidden is not None:
                real = self.image_trace_valid[row]
                contexts = tuple(rows[row][mask[row]] for rows, mask in self.contexts)
                condition = self.condition_QC[row :: self.rows]
                trace = ImageTrace(request.calls, self.image_trace_hidden[row][real], condition, contexts)
            canvas = canvas_Rdhw[row : row + 1]
            pixels, stray = next(pixels_R3HW), request.stray_token_id
            yield ImageDone(request.sequence, request.image, self.schedule, bits_RLd[row], canvas, pixels, stray, trace)

    def _decode(self, canvas_Rdhw: Tensor) -> Iterator[Tensor]:
        """Pixels [3, H, W] of each canvas.

        On a CPU one picture at a time: its pixels do not depend on the batch, and memory stays small. An accelerator
        would wait for launches most of the time, so it gets several at once.
        """
        size = 1 if canvas_Rdhw.device.type == "cpu" else _DECODED_TOGETHER
        for canvases in canvas_Rdhw.split(size):
            yield from self.model.image_tokenizer.decode(canvases)
