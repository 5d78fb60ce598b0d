"""The image tokenizer against its recording: encode with and without flips, decode."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from vargpt.image_tokenizer import ImageTokenizer, pyramid
from vargpt.scales import ScaleSchedule
from vargpt.verification.compare import CODES, IMAGE, LATENT, Report
from vargpt.verification.goldens import Goldens, Tensors, pixels


def count_scales(tensors: Tensors, pattern: str) -> int:
    """How many scales a family of names like `clean.bits_{s}` has; the pattern has `{s}` for the number."""
    regex = re.compile(re.escape(pattern).replace(re.escape("{s}"), r"\d+") + "$")
    return sum(regex.match(name) is not None for name in tensors)


def flips_from(tensors: Tensors, pattern: str, schedule: ScaleSchedule) -> Tensor:
    """Recorded flip masks [B, 1, h, w, d] of all scales as one [B, L, d]."""
    masks = [tensors[pattern.format(s=scale)] for scale in range(schedule.num_scales)]
    return torch.cat([mask.flatten(1, 3) for mask in masks], 1).bool()


def verify_image_tokenizer(goldens: Goldens, tokenizer: ImageTokenizer, scenario: str = "tokenizer") -> Report:
    """Compare encoder, labels, next-scale inputs, canvas and decoder."""
    report, tensors = Report(scenario), goldens.tensors(scenario)
    images = pixels(tensors["images_u8"])
    with torch.no_grad():
        latent = tokenizer.features(images)
        if "raw_features" in tensors:
            report.close("raw_features", latent, tensors["raw_features"], LATENT)
        if "clean.bits_0" in tensors:
            _verify_clean(goldens, tokenizer, report, tensors, latent)
        if "flip.mask_0" in tensors:
            schedule = goldens.schedule(count_scales(tensors, "flip.mask_{s}"))
            encoded = tokenizer.quantize(latent, schedule, flips_from(tensors, "flip.mask_{s}", schedule))
            for scale in range(schedule.num_scales):
                labels = encoded.labels_BLd[:, schedule.slice(scale)]
                report.exact(f"flip.bits_{scale}", labels, tensors[f"flip.bits_{scale}"])
            report.close(
                "flip.x_BLC_wo_prefix", encoded.next_inputs_BMd, tensors["flip.x_BLC_wo_prefix"], CODES, relative=CODES
            )
    return report


def _verify_clean(
    goldens: Goldens, tokenizer: ImageTokenizer, report: Report, tensors: Tensors, latent: Tensor
) -> None:
    schedule = goldens.schedule(count_scales(tensors, "clean.bits_{s}"))
    encoded = tokenizer.quantize(latent, schedule)
    for scale in range(schedule.num_scales):
        labels = encoded.labels_BLd[:, schedule.slice(scale)]
        report.exact(f"clean.bits_{scale}", labels, tensors[f"clean.bits_{scale}"])
    report.close(
        "clean.x_BLC_wo_prefix", encoded.next_inputs_BMd, tensors["clean.x_BLC_wo_prefix"], CODES, relative=CODES
    )
    for name in ("clean.summed_codes", "vae_encode.z"):
        if name in tensors:
            recorded = tensors[name]
            report.close(name, encoded.canvas_Bdhw, recorded.reshape(encoded.canvas_Bdhw.shape), CODES, relative=CODES)
    if "clean.decoded_0" in tensors:
        report.close("clean.decoded_0", tokenizer.decode(encoded.canvas_Bdhw[:1]), tensors["clean.decoded_0"], IMAGE)
    if "vae_encode.var_input_area" in tensors:
        area = _area_inputs(tokenizer, encoded.labels_BLd, schedule)
        report.close("vae_encode.var_input_area", area, tensors["vae_encode.var_input_area"], CODES, relative=CODES)


def _area_inputs(tokenizer: ImageTokenizer, labels_BLd: Tensor, schedule: ScaleSchedule) -> Tensor:
    """Next-scale inputs of the quantiser's own forward, which shrinks the canvas by area (spec 4.5)."""
    canvas, inputs = None, []
    for scale in range(schedule.num_scales - 1):
        canvas, _ = tokenizer.advance(canvas, labels_BLd[:, schedule.slice(scale)], scale, schedule)
        inputs.append(pyramid.resize_down(canvas, schedule.sizes[scale + 1]).flatten(2).transpose(1, 2))
    return torch.cat(inputs, 1)
