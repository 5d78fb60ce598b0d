"""Comparing a tensor with its recording: one `Row` per tensor.

Invariant: integers, bits, labels and positions are exact; floats have an absolute tolerance, which grows with the
tensor only where float32 itself would (`5e-5` of the largest value, the spread measured for the published code).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

RELATIVE = 5e-5

HIDDEN = 3e-4
GUIDED = 6e-4
IMAGE = 3e-4
LATENT = 5e-5
CONDITION = 1e-5
CODES = 2e-6
BF16_LOGITS = 5e-2
ROPE = 1e-6

_EDGE_SHARE = 0.05


@dataclass(frozen=True)
class Row:
    """Outcome of one comparison; `relative` is the absolute difference over the largest recorded value."""

    scenario: str
    tensor: str
    absolute: float
    relative: float
    tolerance: float
    passed: bool
    note: str = ""


@dataclass
class Report:
    """Collects the rows of one scenario."""

    scenario: str
    rows: list[Row] = field(default_factory=list)

    def _add(self, name: str, absolute: float, largest: float, tolerance: float, passed: bool, note: str = "") -> None:
        relative = absolute / largest if largest else (0.0 if absolute == 0 else float("inf"))
        self.rows.append(Row(self.scenario, name, absolute, relative, tolerance, passed, note))

    def _shapes(self, name: str, got: Tensor, expected: Tensor) -> bool:
        if got.shape == expected.shape:
            return True
        note = f"shape {list(got.shape)}, recorded {list(expected.shape)}"
        self._add(name, float("inf"), 1.0, 0.0, passed=False, note=note)
        return False

    def exact(self, name: str, got: Tensor, expected: Tensor) -> None:
        """Integers, bits, labels, positions: every element equal."""
        if self._shapes(name, got, expected):
            difference = (got.detach().cpu().to(torch.int64) - expected.to(torch.int64)).abs()
            largest = float(expected.to(torch.int64).abs().max()) if expected.numel() else 0.0
            worst = float(difference.max()) if difference.numel() else 0.0
            wrong = int((difference > 0).sum())
            self._add(name, worst, largest, 0.0, worst == 0, f"{wrong} of {expected.numel()} differ" if wrong else "")

    def close(self, name: str, got: Tensor, expected: Tensor, absolute: float, relative: float = RELATIVE) -> None:
        """Floats: worst difference at most `absolute`, or `relative` of the largest recorded value if that is more."""
        if self._shapes(name, got, expected):
            wanted = expected.to(torch.float64)
            difference = (got.detach().cpu().to(torch.float64) - wanted).abs().nan_to_num(nan=float("inf"))
            worst = float(difference.max()) if difference.numel() else 0.0
            largest = float(wanted.abs().max()) if wanted.numel() else 0.0
            tolerance = max(absolute, relative * largest)
            self._add(name, worst, largest, tolerance, worst <= tolerance)

    def image_bytes(self, name: str, got: Tensor, expected: Tensor) -> None:
        """Image bytes: at most one step, and only where truncation falls on an edge (5% would be another rounding)."""
        if self._shapes(name, got, expected):
            difference = (got.cpu().to(torch.int64) - expected.to(torch.int64)).abs()
            share = float((difference > 0).float().mean())
            passed = bool(difference.max() <= 1) and share < _EDGE_SHARE
            self._add(
                name, float(difference.max()), 255.0, 1.0, passed, f"{share:.2%} of the bytes differ" if share else ""
            )

    def nearer(self, name: str, got: Tensor, other: Tensor, expected: Tensor) -> None:
        """A variant that moves values slightly: on average ours is at most an eighth as far away as the plain run."""
        cut = tuple(slice(0, size) for size in expected.shape)
        near = float((got[cut].detach() - expected).abs().mean())
        far = float((other[cut].detach() - expected).abs().mean())
        self._add(name, near, float(expected.abs().max()), far / 8, near <= far / 8)

    def failed(self, name: str, why: str) -> None:
        """A comparison that could not be made."""
        self._add(name, float("inf"), 1.0, 0.0, passed=False, note=why)
