"""`VargptForConditionalGeneration`: reading, drawing and editing as one `forward` (spec sections 1 and 6).

Invariant: `forward` is a function of `ModelInputs` and the weights. It draws nothing at random (but DropPath in
training mode, see `blocks.DropPath`), computes no loss and leaves nothing on `self`.

Legend: `B T D V` rows, columns, backbone width, vocabulary · `I` generated images · `L` image tokens, `L+` slots ·
`M` = L - n_0 · `P` context columns · `C` decoder width · `d` bits per token · `S` positions with a text target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vargpt.checkpoint.pretrained import VargptPreTrainedModel
from vargpt.configuration import Behaviour, VargptConfig
from vargpt.image_tokenizer import ImageTokenizer
from vargpt.inputs import ModelInputs
from vargpt.losses import IGNORED
from vargpt.model.backbone import build_backbone, causal_mask, embed_tokens, run_language_model
from vargpt.model.decoder import NextScaleDecoder
from vargpt.model.events import BitSampler, Event, TokenSampler
from vargpt.model.generation import Generation
from vargpt.model.initialisation import initialise_connections, initialise_module
from vargpt.sampling import Sampling
from vargpt.scales import ScaleSchedule

TextLogits = Literal["all", "targets", "none"]


class Projector(nn.Module):
    """lin, GELU (erf), lin, position-wise (spec 1.2)."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width_in, hidden)
        self.fc2 = nn.Linear(hidden, width_out)

    def forward(self, values: Tensor) -> Tensor:
        """Apply over the last axis."""
        return self.fc2(F.gelu(self.fc1(values)))


@dataclass
class VargptOutput:
    """What `forward` returns; absent parts are None.

    `bit_logits_ILd2` predicts the bits of the same position (no shift), the last axis holds the values 0 and 1.
    With `text_logits="targets"` only `target_logits_SV` is made: row s predicts `targets_S[s]` (already shifted).
    The rest are intermediate values for verification.
    """

    text_logits_BTV: Tensor | None
    target_logits_SV: Tensor | None
    targets_S: Tensor | None
    bit_logits_ILd2: Tensor | None
    hidden_BTD: Tensor
    inputs_embeds_BTD: Tensor
    condition_IC: Tensor | None = None
    slot_inputs_ILC: Tensor | None = None
    decoder_inputs_ILC: Tensor | None = None
    context_IPC: Tensor | None = None
    context_mask_IP: Tensor | None = None


class VargptForConditionalGeneration(VargptPreTrainedModel):
    """The unified model: Qwen2-VL backbone, next-scale decoder, image tokenizer and what connects them."""

    config_class = VargptConfig
    config: VargptConfig
    base_model_prefix = ""
    main_input_name = "inputs"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Qwen2VLDecoderLayer", "Qwen2VLVisionBlock", "Block", "ResidualUnit")
    _supports_sdpa = True

    def __init__(self, config: VargptConfig) -> None:
        super().__init__(config)
        text, width = config.backbone.text_config, config.decoder.hidden_size
        self.backbone = build_backbone(config.backbone)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.image_tokenizer = ImageTokenizer(config.image_tokenizer)
        self.decoder = NextScaleDecoder(
            config.decoder, config.image_tokenizer.bits, config.behaviour.cross_attention_dtype
        )
        self.in_projector = Projector(width, width, text.hidden_size)
        self.out_projector = Projector(text.hidden_size, text.hidden_size, width)
        self.start_embedding = nn.Parameter(torch.zeros(width))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            std = self.config.backbone.text_config.initializer_range
            initialise_connections(self.start_embedding, self.in_projector.fc2, self.lm_head, std)
        elif not initialise_module(module):
            super()._init_weights(module)

    @property
    def behaviour(self) -> Behaviour:
        """The switches in force; `set_behaviour` changes them."""
        return self.config.behaviour

    def set_behaviour(self, behaviour: Behaviour | str) -> None:
        """Switch behaviour, for example to compare both guidance variants on the same weights."""
        self.config.behaviour = Behaviour.from_any(behaviour)
        self.decoder.cross_attention_dtype = self.config.behaviour.cross_attention_dtype

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.backbone.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.backbone.language_model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """Return the text head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the text head."""
        self.lm_head = new_embeddings

    def forward(self, inputs: ModelInputs, text_logits: TextLogits = "all") -> VargptOutput:
        """Run a batch of whole conversations.

        Args:
            inputs: see `ModelInputs`; bits and teacher inputs of generated images are made beforehand.
            text_logits: at all positions, only where there is a target (cheap with a large vocabulary), or none.

        Raises:
            ValueError: if placeholders and tensors do not fit (checked only for inputs on the CPU).
        """
        if inputs.input_ids_BT.device.type == "cpu":
            inputs.validate(self.config)
        embeddings, condition, slot_inputs = self._embed(inputs)
        hidden = run_language_model(
            self.backbone,
            embeddings,
            inputs.position_ids_3BT,
            causal_mask(inputs.attention_mask_BT.bool(), embeddings.shape[1]),
        )
        output = self._text_output(hidden, embeddings, inputs, text_logits)
        if condition is None:
            return output
        return self._image_output(output, inputs, condition, slot_inputs)

    @torch.no_grad()
    def generate(
        self,
        inputs: ModelInputs,
        sampling: Sampling | None = None,
        *,
        unconditional: ModelInputs | None = None,
        schedule: ScaleSchedule | None = None,
        bit_sampler: BitSampler | None = None,
        token_sampler: TokenSampler | None = None,
        trace: bool = False,
    ) -> Iterator[Event]:
        """Continue conversations with words and images, as an iterator of events; close it to cancel.

        Args:
            inputs: left-padded prompts (the processor's `prompt`); they may hold images drawn earlier.
            unconditional: for guidance where the behaviour is ours: the prompt-free or negative conversation, one
                row for all prompts or one each, ending where the image is to start.
            schedule: grids of new images; default: the prompts' own, else a square at the model's budget.
            bit_sampler, token_sampler: replace the random choices, for example by forced bits or tokens.
            trace: attach intermediate values to `ScaleDone` and `ImageDone`.

        Raises:
            ValueError, RuntimeError: before the first event, for inputs that do not fit.
        """
        generation = Generation(
            self, inputs, sampling or Sampling(), unconditional, schedule, bit_sampler, token_sampler, trace
        )
        yield from generation.run()

    def embed_inputs(self, inputs: ModelInputs) -> Tensor:
        """Return the embeddings [B, T, D] that the language model gets: tokens, images read and images drawn."""
        if inputs.input_ids_BT.device.type == "cpu":
            inputs.validate(self.config)
        return self._embed(inputs)[0]

    def _embed(self, inputs: ModelInputs) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return embeddings, and for batches with images to draw the condition [I, C] and slot inputs [I, L, C]."""
        embeddings = embed_tokens(self.backbone, inputs.input_ids_BT, inputs.pixel_values, inputs.image_grid_thw)
        if not inputs.num_generated_images:
            return embeddings, None, None
        condition, slot_inputs, slot_embeddings = self._embed_slots(inputs)
        return (
            embeddings.index_put(self._slot_index(inputs), slot_embeddings.to(embeddings.dtype)),
            condition,
            slot_inputs,
        )

    def _embed_slots(self, inputs: ModelInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return the condition [I, C], decoder-width inputs [I, L, C] and backbone embeddings [I, L+, D] of slots."""
        assert inputs.schedule is not None
        assert inputs.next_inputs_IMd is not None
        drop = inputs.drop_start_I
        if drop is None:
            drop = torch.zeros(inputs.num_generated_images, dtype=torch.bool, device=inputs.next_inputs_IMd.device)
        condition = self.decoder.condition(self.start_embedding, drop)
        start, following = self.decoder.embed_start(condition), self.decoder.embed_next(inputs.next_inputs_IMd)
        slot_inputs = torch.cat([start.to(following.dtype), following], dim=1)
        projected = self.in_projector(slot_inputs)
        surplus = inputs.schedule.padded_length(self.behaviour.image_slot_multiple) - inputs.schedule.num_tokens
        if surplus:
            empty = self.in_projector(slot_inputs.new_zeros(1, 1, slot_inputs.shape[-1]))
            projected = torch.cat([projected, empty.expand(len(projected), surplus, -1)], dim=1)
        return condition, slot_inputs, projected

    def _slot_index(self, inputs: ModelInputs) -> tuple[Tensor, Tensor]:
        """Return rows [I, 1] and columns [I, L+] of the image slots."""
        assert inputs.schedule is not None
        assert inputs.image_sample_I is not None
        assert inputs.image_start_I is not None
        slots = inputs.schedule.padded_length(self.behaviour.image_slot_multiple)
        steps = torch.arange(1, slots + 1, device=inputs.image_start_I.device)
        return inputs.image_sample_I[:, None], inputs.image_start_I[:, None] + steps

    def _text_output(
        self, hidden_BTD: Tensor, embeddings_BTD: Tensor, inputs: ModelInputs, text_logits: TextLogits
    ) -> VargptOutput:
        output = VargptOutput(None, None, None, None, hidden_BTD, embeddings_BTD)
        if text_logits == "all":
            return replace(output, text_logits_BTV=self.lm_head(hidden_BTD))
        if text_logits == "targets":
            if inputs.text_targets_BT is None:
                raise ValueError("text_logits='targets' needs inputs.text_targets_BT")
            selected = inputs.text_targets_BT[:, 1:] != IGNORED
            logits = self.lm_head(hidden_BTD[:, :-1][selected])
            return replace(output, target_logits_SV=logits, targets_S=inputs.text_targets_BT[:, 1:][selected])
        return output

    def _image_output(
        self,
        output: VargptOutput,
        inputs: ModelInputs,
        condition_IC: Tensor,
        slot_inputs_ILC: Tensor | None,
    ) -> VargptOutput:
        """Project states, attend to each image's own context and predict its bits (spec 6.1, steps 9 to 12)."""
        schedule, starts = inputs.schedule, inputs.image_start_I
        assert schedule is not None
        assert starts is not None
        hidden = output.hidden_BTD
        rows_I1, columns_IL = self._slot_index(inputs)
        decoder_inputs = self.out_projector(hidden[rows_I1, columns_IL[:, : schedule.num_tokens]])
        longest = int(starts.max())
        samples = rows_I1[:, 0]
        context = self.out_projector(hidden[:, :longest])[samples]
        before_start = torch.arange(longest, device=starts.device) < starts[:, None]
        context_mask = before_start & inputs.attention_mask_BT[:, :longest].bool()[samples]
        logits = self.decoder(
            decoder_inputs, condition_IC, schedule, self.decoder.context_keys_values(context), context_mask
        )
        return replace(
            output,
            bit_logits_ILd2=logits,
            condition_IC=condition_IC,
            slot_inputs_ILC=slot_inputs_ILC,
            decoder_inputs_ILC=decoder_inputs,
            context_IPC=context,
            context_mask_IP=context_mask,
        )
