"""Generation against its recordings, scale by scale, both guidance branches.

The recorded bits are fed back whatever our own choice was, so that one wrong bit shows as one wrong bit; our choice
is compared exactly, and a run whose choices all agree is the free run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vargpt.inputs import ModelInputs
from vargpt.model import VargptForConditionalGeneration
from vargpt.model.events import ImageDone, ScaleDone, ScaleTrace, TextDelta
from vargpt.sampling import Sampling, likelier_bits, pixels_to_uint8
from vargpt.scales import ScaleSchedule
from vargpt.verification.compare import BF16_LOGITS, CODES, CONDITION, GUIDED, HIDDEN, IMAGE, Report
from vargpt.verification.goldens import Goldens, Tensors, bfloat16_cross_attention
from vargpt.verification.image_tokenizer import count_scales
from vargpt.verification.patches import compare_patches, recorded_positions

_BF16_SUFFIX = "_bf16ca"


@dataclass
class GenerationRun:
    """What one recorded generation gave when run here."""

    tokens: list[int] = field(default_factory=list)
    scales: list[ScaleTrace] = field(default_factory=list)
    image: ImageDone | None = None


def prompt_inputs(
    model: VargptForConditionalGeneration, batch: Tensors, prefix: str = ""
) -> tuple[ModelInputs, Tensor]:
    """Inputs of recorded prompts with M-RoPE positions, and their rope deltas [B, 1]."""
    ids = batch[f"{prefix}input_ids"].long()
    mask = batch.get(f"{prefix}attention_mask", torch.ones_like(ids)).bool()
    grid = batch.get(f"{prefix}image_grid_thw")
    positions, deltas = recorded_positions(model.config, ids, mask, grid)
    pixels = None if grid is None else batch[f"{prefix}pixel_values"]
    return ModelInputs(ids, mask, positions, pixels, grid), deltas


def generate_recorded(
    goldens: Goldens, model: VargptForConditionalGeneration, recorded: Tensors, schedule: ScaleSchedule
) -> GenerationRun:
    """Run a recorded prompt with its forced tokens and its bits."""
    settings = goldens.settings.get("generation", {})
    defaults = Sampling.official()
    inputs, _ = prompt_inputs(model, recorded)
    prompt_length = inputs.input_ids_BT.shape[1]
    forced = recorded.get("forced_tokens", recorded["sequences"][0, prompt_length:-1]).tolist()
    remaining = [int(token) for token in forced]

    def choose_token(logits_V: Tensor, sequence: int, step: int) -> int:
        return remaining.pop(0) if remaining else int(logits_V.argmax())

    def choose_bits(logits_ld2: Tensor, sequence: int, image: int, scale_index: int) -> Tensor:
        return recorded[f"scale{scale_index}.bits"]

    sampling = Sampling.official(
        guidance_scale=settings.get("cfg", defaults.guidance_scale),
        temperature=settings.get("tau", defaults.temperature),
        max_new_tokens=len(forced),
    )
    run = GenerationRun()
    events = model.generate(
        inputs, sampling, schedule=schedule, bit_sampler=choose_bits, token_sampler=choose_token, trace=True
    )
    for event in events:
        if isinstance(event, TextDelta):
            run.tokens.append(event.token_id)
        elif isinstance(event, ScaleDone):
            assert event.trace is not None
            run.scales.append(event.trace)
        elif isinstance(event, ImageDone):
            run.image = event
    return run


def verify_generation(goldens: Goldens, model: VargptForConditionalGeneration, scenario: str) -> Report:
    """Compare one `gen*` scenario."""
    report, recorded = Report(scenario), goldens.tensors(scenario)
    rounded = scenario.endswith(_BF16_SUFFIX)
    if "input_ids" not in recorded:
        base = goldens.tensors(scenario.removesuffix(_BF16_SUFFIX))
        inputs = ("input_ids", "attention_mask", "sequences", "forced_tokens", "pixel_values", "image_grid_thw")
        recorded = {**{name: base[name] for name in inputs if name in base}, **recorded}
    schedule = goldens.schedule(count_scales(recorded, "scale{s}.bits"))
    if rounded:
        _verify_rounded(goldens, model, report, recorded, schedule)
        return report
    run = generate_recorded(goldens, model, recorded, schedule)
    if run.image is None or len(run.scales) != schedule.num_scales:
        report.failed("(all)", "no image was generated")
        return report
    _compare_prefix(report, model, recorded, run)
    for scale in range(schedule.num_scales):
        _compare_scale(report, recorded, run.scales[scale], scale, choice="forced_bits" not in scenario)
    _compare_image(report, model, recorded, run.image)
    if "input_image_u8" in recorded:
        images, grids = [recorded["input_image_u8"]], recorded["image_grid_thw"]
        compare_patches(report, model.config, images, "pixel_values", recorded["pixel_values"], grids)
    if "prompt_rope_deltas" in recorded:
        report.exact("prompt_rope_deltas", prompt_inputs(model, recorded)[1], recorded["prompt_rope_deltas"])
    return report


def _verify_rounded(
    goldens: Goldens, model: VargptForConditionalGeneration, report: Report, recorded: Tensors, schedule: ScaleSchedule
) -> None:
    """The bfloat16 cross-attention variant: logits within its tolerance, and nearer than without rounding."""
    plain = generate_recorded(goldens, model, recorded, schedule)
    with bfloat16_cross_attention(model):
        run = generate_recorded(goldens, model, recorded, schedule)
    for scale, trace in enumerate(run.scales):
        name = f"scale{scale}.guided_logits"
        report.close(name, trace.guided_logits_ld2, recorded[name], BF16_LOGITS)
    got, other, wanted = (
        torch.cat([value.flatten() for value in values])
        for values in (
            [trace.guided_logits_ld2 for trace in run.scales],
            [trace.guided_logits_ld2 for trace in plain.scales],
            [recorded[f"scale{scale}.guided_logits"] for scale in range(schedule.num_scales)],
        )
    )
    report.nearer("guided_logits (rounding acts)", got, other, wanted)
    assert run.image is not None
    report.close("summed_codes", run.image.canvas_1dhw, recorded["summed_codes"], CODES, CODES)


def _compare_prefix(
    report: Report, model: VargptForConditionalGeneration, recorded: Tensors, run: GenerationRun
) -> None:
    """Tokens, language-model calls before the image, contexts and conditions."""
    assert run.image is not None
    trace = run.image.trace
    assert trace is not None
    if "sequences" in recorded:
        stray = run.image.stray_token_id
        prompt = recorded["input_ids"][0].tolist()
        sequence = [*prompt, *run.tokens, model.config.image_gen_start_token_id, -1 if stray is None else stray]
        report.exact("sequences", torch.tensor([sequence]), recorded["sequences"])
    lengths = torch.tensor([len(context) for context in trace.contexts])
    values = {
        "past_hidden_states": trace.hidden_nD[None],
        "cross_kv": torch.cat(trace.contexts),
        "cond_BD": trace.condition_GC,
        "cross_cu_seqlens_k": torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        "cross_max_seqlen_k": lengths.max(),
    }
    for index, call in enumerate(trace.calls):
        values[f"prefix.call{index}.position_ids"] = call.position_ids_3n[:, None]
        values[f"prefix.call{index}.past_len"] = torch.tensor(call.past_length)
        values[f"prefix.call{index}.hidden"] = call.hidden_nD[None]
    for name in (name for name in recorded if re.fullmatch(r"prefix\.call\d+\.\w+", name) and name not in values):
        report.failed(name, "our generation made fewer language-model calls")
    _compare_known(report, values, recorded)


def _compare_known(report: Report, values: Tensors, recorded: Tensors) -> None:
    for name, value in values.items():
        if name not in recorded:
            continue
        if not recorded[name].dtype.is_floating_point:
            report.exact(name, value, recorded[name])
        elif name == "cond_BD":
            report.close(name, value, recorded[name], CONDITION, CONDITION)
        else:
            report.close(name, value, recorded[name], GUIDED if name.endswith("guided_logits") else HIDDEN)


def _compare_scale(report: Report, recorded: Tensors, trace: ScaleTrace, scale: int, choice: bool) -> None:
    values = {
        "cond_past_len": torch.tensor(trace.past_length),
        "llm_in_cond": trace.backbone_inputs_GlD[:1],
        "llm_in_uncond": trace.backbone_inputs_GlD[1:],
        "llm_out_cond": trace.backbone_hidden_GlD[:1],
        "llm_out_uncond": trace.backbone_hidden_GlD[1:],
        "raw_logits": trace.raw_logits_Gld2.flatten(2),
        "guided_logits": trace.guided_logits_ld2,
    }
    if choice:
        values["bits"] = likelier_bits(trace.guided_logits_ld2)
    _compare_known(report, {f"scale{scale}.{name}": value for name, value in values.items()}, recorded)


def _compare_image(report: Report, model: VargptForConditionalGeneration, recorded: Tensors, done: ImageDone) -> None:
    image = done.image_3HW[None]
    if "summed_codes" in recorded:
        report.close("summed_codes", done.canvas_1dhw, recorded["summed_codes"], CODES, CODES)
    if "image_u8_rgb" in recorded:
        levels = pixels_to_uint8(image, model.behaviour.pixel_rounding)[0]
        report.image_bytes("image_u8_rgb", levels, recorded["image_u8_rgb"])
    for name, value in recorded.items():
        crop = re.fullmatch(r"image_crop_(\d+)_(\d+)", name)
        if name == "image":
            report.close(name, image, value, IMAGE)
        elif crop is not None:
            window = slice(int(crop[1]), int(crop[2]))
            report.close(name, image[:, :, window, window], value, IMAGE)
