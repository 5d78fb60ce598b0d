"""Break one constant or rule of the specification at a time in a copy of the sources; `verify` must notice.

    python tests/parity/mutations.py GOLDENS [--only TEXT]

Prints a table (section, what was broken, recorded tensors that failed) and, last, one line of JSON; exit status 1 if a
mutation went unnoticed. A mutation whose text is not found exactly once in the sources is an error, so the list cannot
rot in silence.
"""

# ruff: noqa: E501 - one mutation a line reads best
from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True)
class Mutation:
    """One change of one place in the sources."""

    section: str
    what: str
    file: str
    old: str
    new: str


_AUTOENCODER = "image_tokenizer/autoencoder.py"
_BSQ = "image_tokenizer/bsq.py"
_PYRAMID = "image_tokenizer/pyramid.py"
_BLOCKS = "model/blocks.py"
_DECODER = "model/decoder.py"
_ROPE = "model/rope2d.py"
_MODEL = "model/modeling.py"
_PHASE = "model/image_phase.py"

MUTATIONS = (
    Mutation("4", "norm groups 32 → 16", _AUTOENCODER, "in (32, 24)", "in (16, 24)"),
    Mutation("4", "norm groups 24 → 12 where 32 does not divide", _AUTOENCODER, "in (32, 24)", "in (32, 12)"),
    Mutation("4", "norm eps 1e-6 → 1e-5", _AUTOENCODER, "_NORM_EPS = 1e-6", "_NORM_EPS = 1e-5"),
    Mutation("4.2", "down-sampling pads left and top", _AUTOENCODER, "(0, 1, 0, 1)", "(1, 0, 1, 0)"),
    Mutation("4.2", "up-sampling nearest → bilinear", _AUTOENCODER, 'mode="nearest"', 'mode="bilinear"'),
    Mutation("4.2", "output clamp 1 → 0.9", "image_tokenizer/tokenizer.py", "clamp(-1, 1)", "clamp(-0.9, 0.9)"),
    Mutation("4.3", "code magnitude 1/√d → 1/d", _BSQ, "1.0 / dim**0.5\n", "1.0 / dim\n"),
    Mutation("4.3", "second normalisation left out", _BSQ, "codes_Bld = F.normalize(codes_Bld, dim=-1)", "pass"),
    Mutation("4.3", "zero gives bit 1", _BSQ, "(latent_Bdhw > 0)", "(latent_Bdhw >= 0)"),
    Mutation("4.3", "residual by bilinear, not area", _PYRAMID, 'mode="area"', 'mode="bilinear"'),
    Mutation("4.3", "codes up-sampled with aligned corners", _PYRAMID, "align_corners=False", "align_corners=True"),
    Mutation("4.3", "codes up-sampled by nearest", _PYRAMID, 'mode="bilinear", align_corners=False', 'mode="nearest"'),
    Mutation("4.4", "flip strength 0.3 → 0.2", "training/recipes/schema.py", "= Field(0.3, ge=0, le=1)\n    variety", "= Field(0.2, ge=0, le=1)\n    variety"),
    Mutation("4.4", "labels taken after the flip", _PYRAMID, "        labels.append(bits_Bld)\n        residuals.append(residual)\n        if flips_BLd is not None:\n            bits_Bld = bits_Bld ^ flips_BLd[:, schedule.slice(scale_index)].to(torch.uint8)\n", "        residuals.append(residual)\n        if flips_BLd is not None:\n            bits_Bld = bits_Bld ^ flips_BLd[:, schedule.slice(scale_index)].to(torch.uint8)\n        labels.append(bits_Bld)\n"),
    Mutation("5.1", "feed-forward width rounded to 192s", "configuration.py", "self.hidden_size / 256) * 256", "self.hidden_size / 192) * 192"),
    Mutation("5.2", "start norm eps 1e-6 → 1e-5", _DECODER, "RMSNorm(width, eps=1e-6)", "RMSNorm(width, eps=1e-5)"),
    Mutation("5.2", "condition dropout 0.1 → 0.2", "training/recipes/schema.py", "guidance_drop: float = Field(0.1", "guidance_drop: float = Field(0.2"),
    Mutation("5.2", "dropped start takes row 1, not row 0", _DECODER, "self.unconditional[0]", "self.unconditional[1]"),
    Mutation("5.2", "start row one off", "checkpoint/official_keys.py", "row = config.image_gen_start_token_id\n", "row = config.image_gen_start_token_id - 1\n"),
    Mutation("5.3", "modulation order: scales before gates", _BLOCKS, "gate1, gate2, scale1, scale2, shift1, shift2 = parts", "scale1, scale2, gate1, gate2, shift1, shift2 = parts"),
    Mutation("5.4", "layer norm eps 1e-6 → 1e-5", _BLOCKS, "eps=eps)", "eps=10 * eps)"),
    Mutation("5.4", "GELU exact instead of tanh", _BLOCKS, 'approximate="tanh"', 'approximate="none"'),
    Mutation("5.4", "drop path 0.1 → 0.2", "configuration.py", "drop_path_rate: float = 0.1", "drop_path_rate: float = 0.2"),
    Mutation("5.4", "drop path i/depth, not i/(depth-1)", _DECODER, "max(config.depth - 1, 1)", "max(config.depth, 1)"),
    Mutation("5.4", "kept branches not scaled up", _BLOCKS, "(mask.to(values.dtype) / keep)", "mask.to(values.dtype)"),
    Mutation("5.5", "largest scale 100 → 50", _BLOCKS, "math.log(100.0)", "math.log(50.0)"),
    Mutation("5.5", "self-attention scale 1 → 1/√E", _BLOCKS, "attn_mask=mask, scale=1.0", "attn_mask=mask"),
    Mutation("5.5", "initial scale log 4 → log 8", "model/initialisation.py", "math.log(4.0)", "math.log(8.0)"),
    Mutation("5.6", "rotary base 10000 → 1000", _ROPE, "_BASE = 10000.0", "_BASE = 1000.0"),
    Mutation("5.6", "columns before rows", _ROPE, "[rows[:, None] * frequencies, columns[:, None] * frequencies]", "[columns[:, None] * frequencies, rows[:, None] * frequencies]"),
    Mutation("5.6", "rounding half up", "scales.py", "torch.tensor(last_h / h, dtype=torch.float32)).round()", "torch.tensor(last_h / h, dtype=torch.float32) + 0.5).floor()"),
    Mutation("5.6", "stretched to the 12th grid", "scales.py", "last_h, last_w = self.template_sizes[-1]", "last_h, last_w = self.template_sizes[-2]"),
    Mutation("5.7", "cross-attention scale 1/√E → 1", _BLOCKS, "attn_mask=mask_R11P)", "attn_mask=mask_R11P, scale=1.0)"),
    Mutation("5.8", "bfloat16 variant leaves the output unrounded", _BLOCKS, "attended = round_to_bfloat16(attended)", "pass"),
    Mutation("5.9", "level embedding one off", _DECODER, "self.level_embedding.weight[scale_index]", "self.level_embedding.weight[scale_index + 1]"),
    Mutation("5.9", "head order: shift before scale", _DECODER, "scale, shift = self.head_modulation", "shift, scale = self.head_modulation"),
    Mutation("5.11", "unconditional rows 1.2/√C → 1/√C", "model/initialisation.py", "std=1.2 * width**-0.5", "std=1.0 * width**-0.5"),
    Mutation("6.1", "empty slots zero instead of P_in(0)", _MODEL, "empty = self.in_projector(slot_inputs.new_zeros(1, 1, slot_inputs.shape[-1]))", "empty = projected.new_zeros(1, 1, projected.shape[-1])"),
    Mutation("6.1", "slots padded to 64s", "configuration.py", "image_slot_multiple=128", "image_slot_multiple=64"),
    Mutation("6.1", "context includes the start token", _MODEL, "longest = int(starts.max())", "longest = int(starts.max()) + 1; starts = starts + 1"),
    Mutation("6.3", "M-RoPE positions in training", "configuration.py", '            training_positions="official",', '            training_positions="mrope",'),
    Mutation("6.4", "image loss weighted per scale", "configuration.py", '            image_loss_weights="official",', '            image_loss_weights="per_scale",'),
    Mutation("6.4", "per-scale weights 1/√n → 1/n", "losses.py", "lengths.rsqrt()", "lengths.reciprocal()"),
    Mutation("6.5", "text targets not shifted", "losses.py", "return selected_text_loss(logits_BTV[:, :-1][selected]", "return selected_text_loss(logits_BTV[:, 1:][selected]"),
    Mutation("6.6", "image loss weight 3 → 2", "configuration.py", "image_loss_weight: float = 3.0", "image_loss_weight: float = 2.0"),
    Mutation("7.2", "image positions continue with the rope delta", "configuration.py", '            image_positions="official",', '            image_positions="continuous",'),
    Mutation("7.3", "guidance 3 → 4", "sampling.py", '"guidance_scale": 3.0', '"guidance_scale": 4.0'),
    Mutation("7.3", "temperature 0.5 → 1", "sampling.py", '"temperature": 0.5', '"temperature": 1.0'),
    Mutation("7.3", "top-p 0.97 → 0.95", "sampling.py", '"top_p": 0.97', '"top_p": 0.95'),
    Mutation("7.4", "raw unconditional rows one off", _PHASE, "(real_RP.long().cumsum(1) - 1)", "real_RP.long().cumsum(1)"),
    Mutation("7.4", "unconditional positions twice as far apart", _PHASE, "positions = torch.arange(length, device=self.device)", "positions = 2 * torch.arange(length, device=self.device)"),
    Mutation("7.5", "guidance s·c − s·u + c", "sampling.py", "    return scale * conditional + (1 - scale) * unconditional", "    return (1 + scale) * conditional - scale * unconditional"),
    Mutation("7.6", "removal at p < 1 − t, not ≤", "sampling.py", "less & (probabilities <= 1 - top_p)", "less & (probabilities < 1 - top_p)"),
    Mutation("7.6", "Gumbel noise of another stream", "sampling.py", ".exponential_(generator=generator)", ".uniform_(generator=generator)"),
    Mutation("7.7", "bytes rounded instead of truncated", "configuration.py", '            pixel_rounding="official",', '            pixel_rounding="nearest",'),
    Mutation("7.7", "levels × 256 instead of × 255", "sampling.py", "/ 2 * 255", "/ 2 * 256"),
    Mutation("8.2", "log-probability averaged over bits", "losses.py", "return logps_ILd.sum(dim=(1, 2))", "return logps_ILd.sum(dim=1).mean(dim=1)"),
    Mutation("8.3", "rewards not scaled by beta", "losses.py", "return losses, (beta * chosen)", "return losses, (chosen)"),
    Mutation("8.3", "DPO margin with the sign of rejected", "losses.py", "-(1 - label_smoothing) * F.logsigmoid(beta * margin)", "-(1 - label_smoothing) * F.logsigmoid(-beta * margin)"),
    Mutation("8.3", "IPO target 1/(2β) → 1/β", "losses.py", "1 / (2 * beta)", "1 / beta"),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What `verify` said of one mutation; `failed` is empty when it went unnoticed."""

    mutation: Mutation
    failed: list[str]


def apply(mutation: Mutation, package: Path) -> None:
    """Change the copied sources.

    Raises:
        ValueError: if the text is not there exactly once.
    """
    path = package / mutation.file
    source = path.read_text(encoding="utf-8")
    count = source.count(mutation.old)
    if count != 1:
        raise ValueError(
            f"{mutation.section} {mutation.what}: found {count} times in {mutation.file}: {mutation.old!r}"
        )
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")


def try_mutation(mutation: Mutation, goldens: Path) -> Outcome:
    """Run `verify` on a broken copy of the package in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="vargpt-mutation-") as scratch:
        shutil.copytree(SOURCES / "vargpt", Path(scratch) / "vargpt", ignore=shutil.ignore_patterns("__pycache__"))
        apply(mutation, Path(scratch) / "vargpt")
        code = "import sys; from vargpt.verification.report import run; sys.exit(run(sys.argv[1]))"
        done = subprocess.run(
            [sys.executable, "-c", code, str(goldens)],
            env={**os.environ, "PYTHONPATH": scratch, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 0:
        return Outcome(mutation, [])
    lines = done.stdout.splitlines()
    if lines and lines[-1].startswith("{"):
        return Outcome(mutation, json.loads(lines[-1])["failed"])
    return Outcome(mutation, ["loading/stopped with an error"])


def describe(outcome: Outcome) -> str:
    """The first failures of each scenario."""
    if not outcome.failed:
        return "NOT NOTICED"
    shown: dict[str, str] = {}
    for name in outcome.failed:
        shown.setdefault(name.split("/")[0], name)
    return ", ".join(f"`{name}`" for name in list(shown.values())[:3])


def main() -> int:
    """Try all mutations (or those whose description holds a text)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("goldens", type=Path)
    parser.add_argument("--only", default="", help="only mutations whose section or description holds this text")
    arguments = parser.parse_args()
    chosen = [m for m in MUTATIONS if arguments.only in f"{m.section} {m.what}"]
    outcomes = []
    for mutation in chosen:
        outcome = try_mutation(mutation, arguments.goldens)
        outcomes.append(outcome)
        print(f"| {mutation.section} | {mutation.what} | {describe(outcome)} |", flush=True)
    unnoticed = [o.mutation.what for o in outcomes if not o.failed]
    print(json.dumps({"mutations": len(outcomes), "noticed": len(outcomes) - len(unnoticed), "unnoticed": unnoticed}))
    return 1 if unnoticed else 0


if __name__ == "__main__":
    raise SystemExit(main())
