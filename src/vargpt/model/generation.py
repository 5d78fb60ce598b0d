"""The readable oracle of generation: an iterator of events in which text and images interleave (spec section 7).

Invariant: nothing is left on the model, so generations may interleave; closing the iterator cancels. Sequences of a
batch talk in lockstep; one that starts an image waits until the others start theirs or end, then all draw together.

A sequence's random numbers do not depend on its batch. Its logits do, by float32 summation order (about 1e-6), so a
bit can flip where the drawn threshold falls into that gap: none did in 48 images of 521 tokens and 16 bits (400,128
bits) drawn alone and in batches of eight, with the published settings and untrained weights on a CPU.

Legend: `B` prompts · `R` live sequences · `T` prompt columns · `D` backbone width · `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vargpt.inputs import ModelInputs
from vargpt.model.events import (
    BitSampler,
    CallTrace,
    Event,
    Finished,
    FinishReason,
    TextDelta,
    TokenSampler,
)
from vargpt.model.history import History
from vargpt.model.image_phase import ImagePhase, ImageRequest, one_by_one
from vargpt.sampling import (
    Sampling,
    image_generator,
    likelier_bits,
    per_scale,
    sample_bits_together,
    sample_token,
    text_generator,
)
from vargpt.scales import ScaleSchedule

if TYPE_CHECKING:
    from vargpt.model.modeling import VargptForConditionalGeneration


@dataclass
class _Sequence:
    """One sequence in flight."""

    index: int
    prompt: int
    choices: int = 0
    words: int = 0
    images: int = 0
    pending: int | None = None
    waiting: bool = False
    stray_token_id: int | None = None
    token_ids: list[int] = field(default_factory=list)
    calls: list[CallTrace] = field(default_factory=list)


class DefaultSamplers:
    """The samplers of a `Sampling`: one generator per image and one per sequence for words, made on first use."""

    def __init__(self, sampling: Sampling, seeds: list[int], schedule: ScaleSchedule) -> None:
        self._sampling, self._seeds = sampling, seeds
        self._temperature = per_scale(sampling.temperature, schedule.num_scales, "temperature")
        self._image_generators: dict[tuple[int, int], torch.Generator] = {}
        self._text_generators: dict[int, torch.Generator] = {}

    def bits(self, logits_Rld2: Tensor, requests: Sequence[ImageRequest], scale_index: int) -> Tensor:
        """Draw the bits of one scale of all images (a `RowsBitSampler`)."""
        if self._temperature[scale_index] == 0:
            return likelier_bits(logits_Rld2)
        keys = [(request.sequence, request.image) for request in requests]
        for sequence, image in keys:
            if (sequence, image) not in self._image_generators:
                self._image_generators[sequence, image] = image_generator(self._seeds[sequence], image)
        return sample_bits_together(logits_Rld2, self._sampling.top_p, [self._image_generators[key] for key in keys])

    def token(self, logits_V: Tensor, sequence: int, step: int) -> int:
        """Choose the next word (a `TokenSampler`)."""
        del step
        if sequence not in self._text_generators:
            self._text_generators[sequence] = text_generator(self._seeds[sequence])
        settings = self._sampling
        return sample_token(
            logits_V,
            settings.text_temperature,
            settings.text_top_k,
            settings.text_top_p,
            self._text_generators[sequence],
        )


class Generation:
    """The state of one call of `generate`."""

    def __init__(
        self,
        model: VargptForConditionalGeneration,
        inputs: ModelInputs,
        sampling: Sampling,
        unconditional: ModelInputs | None,
        schedule: ScaleSchedule | None,
        bit_sampler: BitSampler | None,
        token_sampler: TokenSampler | None,
        trace: bool,
    ) -> None:
        self.model, self.config, self.sampling, self.trace = model, model.config, sampling, trace
        self.schedule = schedule or inputs.schedule or model.config.schedule()
        self.unconditional = unconditional
        prompts, copies = inputs.input_ids_BT.shape[0], sampling.images_per_prompt
        self.device = inputs.input_ids_BT.device
        self._check(inputs, unconditional, prompts)
        samplers = DefaultSamplers(sampling, sampling.seed_list(prompts * copies), self.schedule)
        self.sample_rows = samplers.bits if bit_sampler is None else one_by_one(bit_sampler)
        self.token_sampler = token_sampler or samplers.token
        self.live = [_Sequence(index, index // copies) for index in range(prompts * copies)]
        self.history = History(model.backbone)
        hidden = self.history.prefill(model.embed_inputs(inputs), inputs.attention_mask_BT, inputs.position_ids_3BT)
        if trace:
            self._trace_prefill(inputs, hidden)
        if copies > 1:
            self.history.select(torch.arange(prompts, device=self.device).repeat_interleave(copies))
        self.last_RD = self.history.hidden_RSD[:, -1]

    def _check(self, inputs: ModelInputs, unconditional: ModelInputs | None, prompts: int) -> None:
        if self.model.training:
            raise RuntimeError("the model is in training mode: call model.eval() before generating")
        for name, given in (("inputs", inputs), ("unconditional", unconditional)):
            if given is not None and not bool(given.attention_mask_BT[:, -1].all()):
                raise ValueError(
                    f"{name}: prompts must be padded on the left, but attention_mask_BT ends in padding or has an "
                    "empty row; make them with the processor's `prompt`"
                )
        if unconditional is None:
            return
        rows = unconditional.input_ids_BT.shape[0]
        if rows not in (1, prompts):
            raise ValueError(f"`unconditional` must have 1 row or one per prompt ({prompts}), got {rows}")
        behaviour = self.model.behaviour
        if behaviour.guidance_backbone == behaviour.guidance_context == "official":
            raise ValueError(
                "the official unconditional branch has no conversation, so a negative prompt cannot act: use "
                "model.set_behaviour(replace(model.behaviour, guidance_backbone='history', guidance_context='hidden'))"
            )

    def run(self) -> Iterator[Event]:
        """Yield events until every sequence has finished."""
        if self.sampling.force_image:
            for sequence in self.live:
                sequence.pending = self.config.image_gen_start_token_id
            self._feed()
        while self.live:
            yield from self._talk()
            if self.live:
                yield from self._draw()

    def _talk(self) -> Iterator[Event]:
        """Let all live sequences talk until each of them waits for its image or has ended."""
        while any(not sequence.waiting for sequence in self.live):
            logits_RV = self.model.lm_head(self.last_RD)
            keep = []
            for row, sequence in enumerate(self.live):
                event = None if sequence.waiting else self._choose(sequence, logits_RV[row])
                if event is not None:
                    yield event
                if not isinstance(event, Finished):
                    keep.append(row)
            self._select(keep)
            self._feed()

    def _choose(self, sequence: _Sequence, logits_V: Tensor) -> TextDelta | Finished | None:
        """Choose the next token of a sequence; None where it is an image start."""
        if sequence.words >= self.sampling.max_new_tokens:
            return self._finished(sequence, "length")
        token = self._sample(sequence, logits_V)
        if token in self._end_ids():
            return self._finished(sequence, "stop")
        if token == self.config.image_gen_start_token_id:
            if sequence.images >= self.sampling.max_images:
                return self._finished(sequence, "length")
            sequence.pending = token
            return None
        sequence.words += 1
        sequence.token_ids.append(token)
        sequence.pending = token
        return TextDelta(sequence.index, token)

    def _sample(self, sequence: _Sequence, logits_V: Tensor) -> int:
        sequence.choices += 1
        return self.token_sampler(logits_V, sequence.index, sequence.choices - 1)

    def _feed(self) -> None:
        """Run the pending token of every live sequence; waiting ones get a column of padding."""
        start_id = self.config.image_gen_start_token_id
        pending = [sequence.pending for sequence in self.live]
        if all(token is None for token in pending):
            return
        ids = torch.tensor([[0 if token is None else token] for token in pending], device=self.device)
        self._append(
            self.model.get_input_embeddings()(ids),
            torch.tensor([token is not None for token in pending], device=self.device),
        )
        for row, sequence in enumerate(self.live):
            if sequence.pending == start_id:
                sequence.token_ids.append(start_id)
                sequence.waiting = True
                if self.model.behaviour.stray_token == "official":
                    sequence.stray_token_id = self._sample(sequence, self.model.lm_head(self.last_RD[row]))
            sequence.pending = None

    def _draw(self) -> Iterator[Event]:
        """Draw one image for every live sequence, all of which wait for theirs, and let the talk go on after it."""
        requests = [
            ImageRequest(sequence.index, sequence.images, sequence.stray_token_id, tuple(sequence.calls))
            for sequence in self.live
        ]
        phase = ImagePhase(
            self.model,
            self.history,
            requests,
            self.schedule,
            self.sampling,
            self.sample_rows,
            self.unconditional,
            self._unconditional_rows(),
            self.trace,
        )
        yield from phase.run()
        slots = self.schedule.padded_length(self.model.behaviour.image_slot_multiple)
        pad_id, end_id = self.config.image_gen_pad_token_id, self.config.image_gen_end_token_id
        for sequence in self.live:
            sequence.token_ids += [pad_id] * slots + [end_id]
            sequence.images += 1
            sequence.waiting = False
        if self.sampling.stop_after_image:
            for sequence in self.live:
                yield self._finished(sequence, "image")
            self.live = []
        else:
            self._close_image(slots - self.schedule.num_tokens)

    def _close_image(self, surplus: int) -> None:
        """Feed what training places after the image: empty slots, then the image end (spec 7.8)."""
        model = self.model
        end_id = torch.tensor([[self.config.image_gen_end_token_id]], device=self.device)
        end = model.get_input_embeddings()(end_id)
        empty = model.in_projector(
            torch.zeros(1, surplus, self.config.decoder.hidden_size, dtype=end.dtype, device=self.device)
        )
        tail = torch.cat([empty.to(end.dtype), end], dim=1).expand(len(self.live), -1, -1)
        self._append(tail, torch.ones(len(self.live), dtype=torch.bool, device=self.device))

    def _unconditional_rows(self) -> list[int]:
        """Return the row of `unconditional` that belongs to each live sequence."""
        shared = self.unconditional is None or self.unconditional.input_ids_BT.shape[0] == 1
        return [0 if shared else sequence.prompt for sequence in self.live]

    def _append(self, embeddings_RQD: Tensor, active_R: Tensor) -> None:
        """Extend the history, and the last hidden states of the active rows."""
        before = self.history.valid_RS.sum(dim=1)
        positions_R = self.history.next_position_R
        hidden = self.history.append(embeddings_RQD, active_R)
        self.last_RD = torch.where(active_R[:, None], hidden[:, -1], self.last_RD)
        if self.trace:
            steps = torch.arange(embeddings_RQD.shape[1], device=self.device)
            for row, sequence in enumerate(self.live):
                if active_R[row]:
                    positions = (positions_R[row] + steps).expand(3, -1)
                    sequence.calls.append(CallTrace(positions, int(before[row]), hidden[row]))

    def _trace_prefill(self, inputs: ModelInputs, hidden_BTD: Tensor) -> None:
        for sequence in self.live:
            real = inputs.attention_mask_BT[sequence.prompt].bool()
            positions = inputs.position_ids_3BT[:, sequence.prompt, real]
            sequence.calls.append(CallTrace(positions, 0, hidden_BTD[sequence.prompt, real]))

    def _select(self, keep: list[int]) -> None:
        """Drop the sequences that have ended."""
        if len(keep) < len(self.live):
            rows = torch.tensor(keep, dtype=torch.int64, device=self.device)
            self.live = [self.live[row] for row in keep]
            self.last_RD = self.last_RD[rows]
            if keep:
                self.history.select(rows)

    def _end_ids(self) -> list[int]:
        ids = self.config.eos_token_id
        return ids if isinstance(ids, list) else [] if ids is None else [ids]

    def _finished(self, sequence: _Sequence, reason: FinishReason) -> Finished:
        return Finished(sequence.index, reason, sequence.token_ids)
