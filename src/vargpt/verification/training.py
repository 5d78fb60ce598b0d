"""The training forward against its recordings: inputs, hidden states, logits, losses and gradients.

Every recorded tensor is a sample and a range of a named intermediate value (`x_BLC_sample1_first64`); all the values
that the public forward can show are made once and cut like the recording.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vargpt.checkpoint.official_keys import KeyEntry, official_key_table
from vargpt.inputs import ModelInputs
from vargpt.losses import all_token_targets, image_loss, text_loss, total_loss
from vargpt.model import VargptForConditionalGeneration, VargptOutput
from vargpt.model.rope2d import rotary_table
from vargpt.processing.positions import sequential_positions
from vargpt.scales import NUM_TEMPLATE_SCALES, ScaleSchedule
from vargpt.verification.compare import BF16_LOGITS, CODES, CONDITION, HIDDEN, ROPE, Report
from vargpt.verification.goldens import Goldens, Tensors, bfloat16_cross_attention, pixels
from vargpt.verification.image_tokenizer import flips_from
from vargpt.verification.patches import compare_patches, recorded_positions

LOSS = 1e-5
"""Relative tolerance of losses."""
GRADIENT = 1e-4
"""Tolerance of a gradient relative to its largest entry."""
NORM = 3e-4
"""Tolerance of a gradient's norm relative to the norm."""
NORM_FLOOR = 1e-7
"""Gradient norms below this part of the largest one are float32 noise."""

_NAME = re.compile(r"(?P<base>.+?)(_sample(?P<sample>\d+))?(_head)?([._]first(?P<first>\d+))?")


@dataclass
class TrainingRun:
    """One forward of a recorded batch."""

    inputs: ModelInputs
    output: VargptOutput
    schedule: ScaleSchedule
    labels: Tensor
    bit_logits: Tensor
    taps: dict[str, Tensor]
    text: Tensor
    image: Tensor
    total: Tensor


class Taps:
    """Outputs of named modules during a forward, by hooks; use as a context manager."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.values: dict[str, Tensor] = {}
        self._modules = modules

    def __enter__(self) -> dict[str, Tensor]:
        self._handles = [module.register_forward_hook(self._save(name)) for name, module in self._modules.items()]
        return self.values

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _save(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            self.values[name] = output.detach()

        return hook


def schedule_of_image(goldens: Goldens, images_u8: Tensor) -> ScaleSchedule:
    """The schedule whose last grid fits the images' size."""
    stride = goldens.config.image_tokenizer.stride
    grid = (images_u8.shape[1] // stride, images_u8.shape[2] // stride)
    for num_scales in range(1, NUM_TEMPLATE_SCALES + 1):
        schedule = goldens.schedule(num_scales)
        if schedule.grid == grid:
            return schedule
    raise ValueError(f"no prefix of the template {goldens.template:g} ends at the grid {grid}")


def training_inputs(
    goldens: Goldens, model: VargptForConditionalGeneration, batch: Tensors, flips: str | None = None
) -> ModelInputs:
    """Build `ModelInputs` of a recorded batch; `flips` is the name pattern of recorded flip masks."""
    config, ids = goldens.config, batch["input_ids"].long()
    schedule = schedule_of_image(goldens, batch["images_u8"])
    masks = None if flips is None else flips_from(batch, flips, schedule)
    bits = model.image_tokenizer.encode(pixels(batch["images_u8"]), schedule, masks)
    rows, columns = (ids == config.image_gen_start_token_id).nonzero(as_tuple=True)
    mask = batch["attention_mask"].bool()
    if config.behaviour.training_positions == "official":
        positions = sequential_positions(*ids.shape)
    else:
        positions, _ = recorded_positions(config, ids, mask, batch.get("image_grid_thw"))
    return ModelInputs(
        input_ids_BT=ids,
        attention_mask_BT=mask,
        position_ids_3BT=positions,
        pixel_values=batch.get("pixel_values"),
        image_grid_thw=batch.get("image_grid_thw"),
        schedule=schedule,
        image_sample_I=rows,
        image_start_I=columns,
        labels_ILd=bits.labels_BLd,
        next_inputs_IMd=bits.next_inputs_BMd,
        text_targets_BT=all_token_targets(ids, config.image_gen_pad_token_id),
    )


def run_training(model: VargptForConditionalGeneration, inputs: ModelInputs, image_loss_weight: float) -> TrainingRun:
    """Forward and losses, with the decoder's inner values."""
    decoder = model.decoder
    modules: dict[str, nn.Module] = {f"decoder_block_{i}": block for i, block in enumerate(decoder.blocks)}
    for name, part in (("sa", "self_attention"), ("ca", "cross_attention"), ("ffn", "ffn")):
        modules[f"decoder_block_0_{name}"] = decoder.blocks[0].get_submodule(part)
    modules["gss"] = decoder.shared_modulation
    with Taps(modules) as taps:
        output = model(inputs)
    schedule, labels, bit_logits = inputs.schedule, inputs.labels_ILd, output.bit_logits_ILd2
    assert schedule is not None
    assert labels is not None
    assert bit_logits is not None
    text = text_loss(_some(output.text_logits_BTV), _some(inputs.text_targets_BT))
    image = image_loss(bit_logits, labels, schedule, model.behaviour.image_loss_weights)
    total = total_loss(text, image, image_loss_weight)
    return TrainingRun(inputs, output, schedule, labels, bit_logits, taps, text, image, total)


def _some(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def intermediate_values(model: VargptForConditionalGeneration, run: TrainingRun) -> Tensors:
    """Every value of a run that a recording may hold, by its recorded name, whole."""
    inputs, output, schedule = run.inputs, run.output, run.schedule
    lengths, samples = _some(inputs.image_start_I), _some(inputs.image_sample_I)
    slots = schedule.padded_length(model.behaviour.image_slot_multiple)
    surplus = slots - schedule.num_tokens
    columns = lengths[:, None] + torch.arange(1, slots + 1)
    packed = [_some(output.context_IPC)[i, : int(length)] for i, length in enumerate(lengths)]
    head_dim = model.config.decoder.hidden_size // model.config.decoder.num_heads
    cos, sin = rotary_table(schedule, head_dim, torch.device("cpu"))
    return {
        **run.taps,
        "gss": run.taps["gss"].unflatten(-1, (6, -1))[:, None],
        "image_gen_labels": run.labels,
        "x_BLC_wo_prefix": _some(inputs.next_inputs_IMd),
        "cond_BD": _some(output.condition_IC),
        "llm_position_ids": inputs.position_ids_3BT,
        "cross_kv": torch.cat(packed),
        "cross_cu_seqlens_k": torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        "cross_max_seqlen_k": lengths.max(),
        "gen_logits": run.bit_logits.flatten(2),
        "x_BLC": nn.functional.pad(_some(output.slot_inputs_ILC), (0, 0, 0, surplus)),
        "llm_inputs_embeds": output.inputs_embeds_BTD,
        "llm_hidden": output.hidden_BTD,
        "decoder_in": model.out_projector(output.hidden_BTD[samples[:, None], columns]),
        "text_logits": _some(output.text_logits_BTV),
        "rope2d_cos_sin": torch.stack([cos, sin]),
        "other_loss": run.text,
        "image_gen_loss": run.image,
        "total_loss": run.total,
        "reference_only.scale_reweighted_image_loss": image_loss(run.bit_logits, run.labels, schedule, "per_scale"),
    }


def cut(value: Tensor, sample: str | None, first: str | None, recorded: Tensor) -> tuple[Tensor, Tensor]:
    """Cut our value as the recording is cut, and both to the image tokens where only the recording has padding."""
    if value.ndim < 2 or value.ndim != recorded.ndim:
        return value, recorded
    if sample is not None:
        value = value[int(sample) : int(sample) + 1]
    elif recorded.shape[0] < value.shape[0]:
        value = value[: recorded.shape[0]]
    if first is not None or value.shape[1] > recorded.shape[1]:
        value = value[:, : recorded.shape[1]]
    return value, recorded[:, : value.shape[1]]


def compare_values(report: Report, values: Tensors, recorded: Tensors, prefix: str = "", bf16: bool = False) -> None:
    """Compare every recorded tensor that has a value of ours."""
    for name, tensor in recorded.items():
        if not name.startswith(prefix):
            continue
        match = _NAME.fullmatch(name.removeprefix(prefix))
        if match is None or match["base"] not in values:
            continue
        value, wanted = cut(values[match["base"]].detach(), match["sample"], match["first"], tensor)
        if not tensor.dtype.is_floating_point:
            report.exact(name, value, wanted)
        elif bf16:
            report.close(name, value, wanted, BF16_LOGITS if value.ndim else 1e-3)
        elif match["base"].endswith("_loss"):
            report.close(name, value, wanted, 0.0, LOSS)
        elif match["base"] == "cond_BD":
            report.close(name, value, wanted, CONDITION, CONDITION)
        elif match["base"] in ("x_BLC_wo_prefix", "rope2d_cos_sin"):
            limit = CODES if match["base"] == "x_BLC_wo_prefix" else ROPE
            report.close(name, value, wanted, limit, limit)
        else:
            report.close(name, value, wanted, HIDDEN)


def verify_training(goldens: Goldens, model: VargptForConditionalGeneration, scenario: str) -> Report:
    """Compare one `train*` scenario with everything recorded in it."""
    report, recorded = Report(scenario), goldens.tensors(scenario)
    batch = recorded if "input_ids" in recorded else {**goldens.tensors("train"), **recorded}
    inputs = training_inputs(goldens, model, batch, "mask_{s}" if "mask_0" in recorded else None)
    weight = goldens.settings.get("training", {}).get("lambda_image_loss", model.config.image_loss_weight)
    gradients = any(name.startswith("grad.") for name in recorded)
    norms = (goldens.folder / f"{scenario}_grad_norms.json").is_file()
    with torch.set_grad_enabled(gradients or norms):
        model.zero_grad(set_to_none=True)
        run = run_training(model, inputs, weight)
        compare_values(report, intermediate_values(model, run), recorded)
        if gradients or norms:
            run.total.backward()
            compare_gradients(report, model, recorded)
    if norms:
        compare_norms(report, model, goldens.norms(f"{scenario}_grad_norms"))
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        _verify_variants(model, inputs, weight, recorded, report)
    if "input_image_u8" in recorded:
        images, grids = [recorded["input_image_u8"]], recorded["image_grid_thw"]
        compare_patches(report, model.config, images, "pixel_values", recorded["pixel_values"], grids)
    if "mrope_position_ids_not_used" in recorded:
        ids, mask, grid = inputs.input_ids_BT, inputs.attention_mask_BT, recorded["image_grid_thw"]
        positions, _ = recorded_positions(model.config, ids, mask, grid)
        report.exact("mrope_position_ids_not_used", positions, recorded["mrope_position_ids_not_used"])
    return report


def _verify_variants(
    model: VargptForConditionalGeneration, inputs: ModelInputs, weight: float, recorded: Tensors, report: Report
) -> None:
    """The same batch with the condition dropped, and with cross-attention rounded to bfloat16."""
    if any(name.startswith("conddrop.") for name in recorded):
        assert inputs.image_sample_I is not None
        dropped = replace(inputs, drop_start_I=torch.ones_like(inputs.image_sample_I, dtype=torch.bool))
        values = intermediate_values(model, run_training(model, dropped, weight))
        compare_values(report, values, recorded, "conddrop.")
    if any(name.startswith("bf16ca.") for name in recorded):
        plain = run_training(model, inputs, weight).bit_logits.flatten(2)
        with bfloat16_cross_attention(model):
            values = intermediate_values(model, run_training(model, inputs, weight))
        for name in (name for name in recorded if name.startswith("bf16ca.gen_logits")):
            report.nearer(f"{name} (rounding acts)", values["gen_logits"], plain, recorded[name])
        compare_values(report, values, recorded, "bf16ca.", bf16=True)


def published_gradient(model: nn.Module, entry: KeyEntry) -> Tensor:
    """The gradient of a published parameter: ours in its rows, zero elsewhere and for unused ones."""
    whole = torch.zeros(entry.official_shape)
    if entry.ours is None:
        return whole
    gradient = model.get_parameter(entry.ours).grad
    return whole if gradient is None else entry.to_official(gradient, whole)


def compare_gradients(report: Report, model: VargptForConditionalGeneration, recorded: Tensors) -> None:
    """Compare the recorded `grad.NAME` tensors."""
    table = {entry.official: entry for entry in official_key_table(model.config)}
    for name, wanted in recorded.items():
        if not name.startswith("grad."):
            continue
        published = name.removeprefix("grad.")
        if published.endswith(".row_start"):
            gradient = model.get_parameter("start_embedding").grad
            assert gradient is not None
        else:
            gradient = published_gradient(model, table[published])
        report.close(name, gradient, wanted, 0.0, GRADIENT)


def compare_norms(
    report: Report, model: VargptForConditionalGeneration, norms: dict[str, float | None], relative: float = NORM
) -> None:
    """Compare gradient norms of all parameters; none recorded means that ours must be absent or zero."""
    table = {entry.official: entry for entry in official_key_table(model.config)}
    largest = max(value or 0.0 for value in norms.values())
    for name, recorded in norms.items():
        if name not in table:
            report.failed(f"grad_norm.{name}", "unknown published parameter")
            continue
        got = published_gradient(model, table[name]).double().norm()
        wanted = torch.tensor(recorded or 0.0, dtype=torch.float64)
        if recorded is None:
            report.close(f"grad_norm.{name} (none)", got, wanted, 0.0, 0.0)
        else:
            report.close(f"grad_norm.{name}", got, wanted, NORM_FLOOR * largest, relative)
