"""The progress line: step, the few main numbers, rates and time left.

Invariant: what it shows beside the metrics depends on the clock and is never written to the journal.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping

import torch

_SCALE = re.compile(r"^(.+)/scale(\d+)$")

PEAK_FLOPS = {
    "B200": 2250e12, "H200": 989e12, "H100": 989e12, "H800": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12,
    "L40": 181e12, "L4": 121e12, "A40": 150e12, "A10G": 70e12, "A10": 125e12, "A6000": 155e12, "4090": 165e12,
    "3090": 71e12, "MI300X": 1307e12, "MI250X": 383e12,
}  # fmt: skip
"""Dense bf16 matrix FLOP/s by a part of the device's name (data sheets; float32 accumulation), longest match first."""


def split_scale(name: str) -> tuple[str, int] | None:
    """`bit_loss/scale3` to (`bit_loss`, 3); None for names without a scale."""
    match = _SCALE.match(name)
    return (match[1], int(match[2])) if match else None


def format_duration(seconds: float) -> str:
    """Format a duration as h:mm:ss."""
    whole = max(0, int(seconds))
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def format_count(value: float) -> str:
    """Three digits with a unit: 1234567 to `1.23M`."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 999.5 or unit == "P":
            return f"{value:.3g}{unit}"
        value /= 1000
    raise AssertionError("the loop returns")


def peak_flops(device_name: str) -> float | None:
    """Peak bf16 FLOP/s of a GPU by its name; None where the table has none."""
    for name in sorted(PEAK_FLOPS, key=len, reverse=True):
        if name in device_name:
            return PEAK_FLOPS[name]
    return None


class Progress:
    """Counts what was done and prints where a stage stands.

    Args:
        devices: how many work together, for the share of their peak (MFU).
    """

    def __init__(self, stage: str, total_steps: int, start_step: int, devices: int, device: torch.device) -> None:
        self._stage, self._total, self._start = stage, total_steps, start_step
        self._began = self._last = time.monotonic()
        self._done: dict[str, float] = {}
        peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._peak = None if peak is None else peak * devices

    def count(self, samples: int, counts: Mapping[str, float]) -> None:
        """Add a step's work: its samples, and `tokens` and `flops` where the task counts them (all ranks together)."""
        done = {"samples": float(samples)} | {name: counts[name] for name in ("tokens", "flops") if name in counts}
        for name, value in done.items():
            self._done[name] = self._done.get(name, 0.0) + value

    def rates(self) -> dict[str, float]:
        """Return samples/s, and where counted tokens/s, flops/s and mfu, since the last call."""
        now = time.monotonic()
        elapsed = max(now - self._last, 1e-9)
        rates = {f"{name}/s": value / elapsed for name, value in self._done.items()}
        self._done, self._last = {}, now
        if self._peak is not None and "flops/s" in rates:
            rates["mfu"] = rates["flops/s"] / self._peak
        return rates

    def show(self, step: int, metrics: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """Print a line on standard error; the many numbers of single scales are left to the journal."""
        main = " ".join(f"{name} {value:.4g}" for name, value in metrics.items() if split_scale(name) is None)
        parts = [f"{self._stage} {step}/{self._total} ({100 * step / self._total:.0f}%) {main}"]
        if rates:
            speed = (step - self._start) / max(time.monotonic() - self._began, 1e-9)
            eta = format_duration((self._total - step) / speed) if speed > 0 else "?"
            parts.append(", ".join([*(_format_rate(name, value) for name, value in rates.items()), f"ETA {eta}"]))
        print(" | ".join(parts), file=sys.stderr, flush=True)


def _format_rate(name: str, value: float) -> str:
    if name == "mfu":
        return f"MFU {100 * value:.1f}%"
    if name == "flops/s":
        return f"{format_count(value)}FLOP/s"
    return f"{format_count(value)} {name}"
