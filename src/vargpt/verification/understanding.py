"""Reading images against its recording: patches, positions, logits, greedy decoding alone and left-padded."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vargpt.inputs import ModelInputs
from vargpt.model import VargptForConditionalGeneration
from vargpt.model.events import Finished, TextDelta
from vargpt.processing.positions import sequential_positions
from vargpt.sampling import Sampling
from vargpt.verification.compare import HIDDEN, Report
from vargpt.verification.generation import prompt_inputs
from vargpt.verification.goldens import Goldens, Tensors
from vargpt.verification.patches import compare_patches


@torch.no_grad()
def verify_understanding(
    goldens: Goldens, model: VargptForConditionalGeneration, scenario: str = "understand"
) -> Report:
    """Compare forward passes and greedy decoding."""
    report, recorded = Report(scenario), goldens.tensors(scenario)
    if "image_a_u8" in recorded and "single.pixel_values" in recorded:
        images, grid = [recorded["image_a_u8"]], recorded["single.image_grid_thw"]
        compare_patches(report, model.config, images, "single.pixel_values", recorded["single.pixel_values"], grid)
    if "image_b_u8" in recorded and "batch.pixel_values_b" in recorded:
        images, grid = [recorded["image_b_u8"]], recorded["batch.image_grid_thw"][1:]
        compare_patches(report, model.config, images, "batch.pixel_values_b", recorded["batch.pixel_values_b"], grid)
    if "single.input_ids" in recorded:
        inputs, deltas = prompt_inputs(model, recorded, "single.")
        _verify_single(report, model, recorded, inputs, deltas)
        _verify_greedy(report, model, recorded, inputs, "greedy")
    if "batch.input_ids" in recorded:
        inputs, deltas = prompt_inputs(model, _with_batch_pixels(recorded), "batch.")
        report.exact("batch.position_ids", inputs.position_ids_3BT, recorded["batch.position_ids"])
        report.exact("batch.rope_deltas", deltas, recorded["batch.rope_deltas"])
        logits = model(inputs).text_logits_BTV * inputs.attention_mask_BT[..., None]
        report.close("batch.logits_masked", logits, recorded["batch.logits_masked"], HIDDEN)
        _verify_greedy(report, model, recorded, inputs, "greedy_batch")
    return report


def _with_batch_pixels(recorded: Tensors) -> Tensors:
    """The batch's patches: those of the single image followed by the recorded others, where not given whole."""
    if "batch.pixel_values" in recorded or "batch.image_grid_thw" not in recorded:
        return recorded
    parts = [recorded[name] for name in ("single.pixel_values", "batch.pixel_values_b") if name in recorded]
    return {**recorded, "batch.pixel_values": torch.cat(parts)}


def _verify_single(
    report: Report, model: VargptForConditionalGeneration, recorded: Tensors, inputs: ModelInputs, deltas: Tensor
) -> None:
    report.exact("single.position_ids", inputs.position_ids_3BT, recorded["single.position_ids"])
    report.exact("single.rope_deltas", deltas, recorded["single.rope_deltas"])
    output = model(inputs)
    values = {
        "single.logits": output.text_logits_BTV,
        "single.last_hidden": output.hidden_BTD,
        "single.inputs_embeds": output.inputs_embeds_BTD,
    }
    if "single.vision_features" in recorded:
        features = model.backbone.visual(inputs.pixel_values, grid_thw=inputs.image_grid_thw).pooler_output
        values["single.vision_features"] = features
    for name, value in values.items():
        if name in recorded:
            report.close(name, value, recorded[name], HIDDEN)
    if "single_nopos.logits_last" in recorded:
        positions = sequential_positions(*inputs.input_ids_BT.shape)
        report.exact("single_nopos.position_ids", positions, recorded["single_nopos.position_ids"])
        logits = model(replace(inputs, position_ids_3BT=positions)).text_logits_BTV[:, -1]
        report.close("single_nopos.logits_last", logits, recorded["single_nopos.logits_last"], HIDDEN)


def _verify_greedy(
    report: Report, model: VargptForConditionalGeneration, recorded: Tensors, inputs: ModelInputs, name: str
) -> None:
    """Greedy decoding with cache; rows that end early are filled with the pad token, as published."""
    if f"{name}.sequences" not in recorded:
        return
    sequences = recorded[f"{name}.sequences"]
    rows, length = inputs.input_ids_BT.shape
    steps = sequences.shape[1] - length
    logits: list[list[Tensor]] = [[] for _ in range(rows)]
    tokens: list[list[int]] = [[] for _ in range(rows)]

    def choose(logits_V: Tensor, sequence: int, step: int) -> int:
        logits[sequence].append(logits_V)
        return int(logits_V.argmax())

    for event in model.generate(inputs, Sampling(max_new_tokens=steps, max_images=0), token_sampler=choose):
        if isinstance(event, TextDelta):
            tokens[event.sequence].append(event.token_id)
        elif isinstance(event, Finished) and event.reason == "stop":
            tokens[event.sequence].append(int(logits[event.sequence][-1].argmax()))
    pad = model.config.pad_token_id
    answers = torch.tensor([row + [pad] * (steps - len(row)) for row in tokens])
    report.exact(f"{name}.sequences", torch.cat([inputs.input_ids_BT, answers], 1), sequences)
    if f"{name}.step_logits" in recorded:
        wanted = recorded[f"{name}.step_logits"]
        for row in range(rows):
            got = torch.stack(logits[row])
            label = f"{name}.step_logits" if rows == 1 else f"{name}.step_logits[{row}]"
            report.close(label, got, wanted[row, : len(got)], HIDDEN)
