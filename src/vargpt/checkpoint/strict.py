"""Strictness: what a checkpoint holds against what the model needs, in one clear message.

Invariant: a tensor is never skipped, invented or reshaped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Shape = tuple[int, ...]

_MAX_LINES = 30
_ADVICE = (
    "Use the config.json that belongs to these weights, or copy all files of the model again; a folder in the "
    "published layout has model_type vargpt_qwen2_vl, one in ours has model_type vargpt."
)


def shorten(names: Iterable[str]) -> list[str]:
    """Fold names that differ only in numbers into one line, e.g. `blocks.*.fc1.weight (32 times)`; order is kept."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    lines = [members[0] if len(members) == 1 else f"{key} ({len(members)} times)" for key, members in groups.items()]
    if len(lines) > _MAX_LINES:
        lines = [*lines[:_MAX_LINES], f"and {len(lines) - _MAX_LINES} more kinds of keys"]
    return lines


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)])


def check_keys(
    where: str,
    found: Mapping[str, Shape],
    expected: Mapping[str, Shape],
    optional: frozenset[str] = frozenset(),
    growable: frozenset[str] = frozenset(),
    described_by: str = "its config.json",
    advice: str = _ADVICE,
) -> None:
    """Compare names and shapes of a checkpoint with what the model needs.

    Args:
        where: the folder, for the message.
        optional: names that may be absent (buffers with a known value).
        growable: names whose first axis may be longer than expected (tables of which some rows are used).
        described_by, advice: what the expectation comes from and what to do, for the message.

    Raises:
        ValueError: listing every missing and unexpected key and every wrong shape.
    """
    missing = [name for name in expected if name not in found and name not in optional]
    unexpected = [name for name in found if name not in expected]
    wrong = []
    for name, shape in expected.items():
        got = tuple(found.get(name, shape))
        fits = got == tuple(shape)
        if name in growable and len(got) == len(shape):
            fits = got[1:] == tuple(shape[1:]) and got[0] >= shape[0]
        if not fits:
            wrong.append(f"{name}: got {list(got)}, expected {list(shape)}")
    if not (missing or unexpected or wrong):
        return
    sections = [f"the weights in {where} do not fit the model that {described_by} describes."]
    if missing:
        sections.append(_section(f"missing ({len(missing)}):", shorten(missing)))
    if unexpected:
        sections.append(_section(f"unexpected ({len(unexpected)}):", shorten(unexpected)))
    if wrong:
        lines = wrong if len(wrong) <= _MAX_LINES else [*wrong[:_MAX_LINES], f"and {len(wrong) - _MAX_LINES} more"]
        sections.append(_section(f"wrong shape ({len(wrong)}):", lines))
    sections.append(advice)
    raise ValueError("\n".join(sections))
