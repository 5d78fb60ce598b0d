"""The reference of preference training: log-probabilities of the model as its stage found it.

Invariant: while the policy has not moved, all three kinds give bitwise the numbers that the policy gives on the same
CPU: same weights, same kernels, same rows. No reference has a gradient.

    copy          a second model, frozen; parameters that the stage does not train are shared with the policy
    adapters      the policy itself with the stage's own adapter switched off
    precomputed   numbers on disk, made before the first step: no second model in memory
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vargpt.data.pairs import write_durably
from vargpt.inputs import ModelInputs
from vargpt.model.blocks import DropPath
from vargpt.model.modeling import VargptForConditionalGeneration, VargptOutput
from vargpt.scales import NUM_TEMPLATE_SCALES
from vargpt.training import distributed
from vargpt.training.recipes.schema import DpoStage
from vargpt.training.stages.preference_batches import PreferenceMicroBatch
from vargpt.training.stages.preference_logps import scale_logps
from vargpt.training.stages.sft_stage import short_sequence_attention
from vargpt.training.weights import adapters

_PIECE_POSITIONS = 4096
_TOLERANCE = 0.02
"""Relative difference that another machine's arithmetic may make; another model or other pairs differ by more."""


class Reference(Protocol):
    """Gives the reference's log-probabilities of a micro-batch."""

    def scale_logps(self, micro: PreferenceMicroBatch) -> Tensor:
        """Sums per scale of all chosen, then all rejected pictures, float64 [2P, K], without gradient."""
        ...


def run_pairs(model: VargptForConditionalGeneration, inputs: ModelInputs, rows: int) -> tuple[Tensor, VargptOutput]:
    """Forward a micro-batch; return log-probabilities per scale, float64 [rows, K], and all of the output.

    Policy and reference both go through here. Stochastic depth and dropout of the model are off from then on.
    """
    switch_noise_off(model)
    with short_sequence_attention(inputs, model):
        output = model(inputs, text_logits="none")
    assert output.bit_logits_ILd2 is not None
    assert inputs.labels_ILd is not None
    assert inputs.schedule is not None
    return scale_logps(output.bit_logits_ILd2[:rows], inputs.labels_ILd[:rows], inputs.schedule), output


def switch_noise_off(model: nn.Module) -> None:
    """Put stochastic depth and dropout in evaluation mode; activation checkpointing needs the rest in training mode."""
    for module in model.modules():
        if isinstance(module, DropPath | nn.Dropout):
            module.eval()


def frozen_copy(model: VargptForConditionalGeneration) -> VargptForConditionalGeneration:
    """A copy in evaluation mode that takes memory for the trainable parameters alone: frozen ones are shared."""
    shared: dict[int, object] = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


def make_reference(
    stage: DpoStage,
    model: VargptForConditionalGeneration,
    directory: Path,
    twin: VargptForConditionalGeneration | None = None,
) -> Reference:
    """The stage's kind of reference for a model that stands where the stage starts.

    Args:
        directory: of the stage; `precomputed` keeps its numbers there.
        twin: a copy of the model that was made elsewhere, for `copy` on several ranks (`distributed.shard_like`).
    """
    if stage.reference == "copy":
        copied = frozen_copy(model) if twin is None else twin.requires_grad_(False).eval()
        if stage.loop.compile:  # as the trainer does with the policy
            for block in distributed.transformer_blocks(copied):
                block.compile()
        return CopyReference(copied)
    if stage.reference == "adapters":
        return AdapterReference(model, stage.name)
    return PrecomputedReference(directory, stage)


class CopyReference:
    """A frozen copy of the model."""

    def __init__(self, model: VargptForConditionalGeneration) -> None:
        self.model = model

    @torch.no_grad()
    def scale_logps(self, micro: PreferenceMicroBatch) -> Tensor:
        """Forward the copy."""
        inputs = micro.reference_inputs.to(self.model.device)
        return run_pairs(self.model, inputs, 2 * micro.num_pairs)[0]


class AdapterReference:
    """The policy with its stage's adapter switched off; right where nothing else is trained."""

    def __init__(self, model: VargptForConditionalGeneration, stage_name: str) -> None:
        self._model, self._stage_name = model, stage_name

    @torch.no_grad()
    def scale_logps(self, micro: PreferenceMicroBatch) -> Tensor:
        """Forward the base."""
        inputs = micro.reference_inputs.to(self._model.device)
        with adapters.disabled(self._model, self._stage_name):
            return run_pairs(self._model, inputs, 2 * micro.num_pairs)[0]


class PrecomputedReference:
    """Numbers read from `directory/reference/`, where `prepare` wrote them.

    A file holds the positions of some steps, whatever ranks and micro-batches they were computed in; it is written
    atomically, and skipped when it is there. All in all this costs the forwards that `copy` would do step by step (bit
    errors differ every epoch, so every position is computed). All ranks must see the directory.
    """

    def __init__(self, directory: Path, stage: DpoStage) -> None:
        self._folder, self._stage = directory / "reference", stage
        self._batch, self._steps = stage.loop.batch_size, stage.loop.settings(0).last_step
        self._piece = max(1, _PIECE_POSITIONS // self._batch)
        self._read = lru_cache(maxsize=4)(_load)

    def prepare(
        self,
        model: VargptForConditionalGeneration,
        batch: Callable[[int], Sequence[PreferenceMicroBatch]],
        validation: Sequence[PreferenceMicroBatch],
    ) -> None:
        """Compute what is missing, with the model as the stage finds it.

        Args:
            batch: this rank's micro-batches of a step. validation: those of the evaluation, at positions -1, -2, ...

        Raises:
            RuntimeError: if the numbers that are there were made with another model or other pairs.
        """
        first = self._run(model, batch(0))
        for start in range(0, self._steps, self._piece):
            if not self._is_there(self._path(start)):
                steps = range(start, min(start + self._piece, self._steps))
                values = [first if step == 0 else self._run(model, batch(step)) for step in steps]
                self._write(self._path(start), values)
        if validation and not self._is_there(self._validation_path):
            self._write(self._validation_path, [self._run(model, validation)])
        self._require_same(first)

    def scale_logps(self, micro: PreferenceMicroBatch) -> Tensor:
        """Look the positions up."""
        schedule = micro.inputs.schedule
        assert schedule is not None
        pairs = [self._at(position)[:, : schedule.num_scales] for position in micro.positions]
        if not pairs:
            return torch.zeros(0, schedule.num_scales, dtype=torch.float64)
        return torch.from_numpy(np.concatenate(np.stack(pairs, axis=1)))

    def _at(self, position: int) -> np.ndarray:
        """Float64 [2, 13]: chosen and rejected, NaN beyond the last scale."""
        if position < 0:
            path, index = self._validation_path, -1 - position
        else:
            step = position // self._batch
            path, index = self._path(step), position - step // self._piece * self._piece * self._batch
        values: np.ndarray = self._read(path)[index]
        return values

    @torch.no_grad()
    def _run(
        self, model: VargptForConditionalGeneration, micros: Sequence[PreferenceMicroBatch]
    ) -> dict[int, np.ndarray]:
        """This rank's numbers by position."""
        values = {}
        for micro in micros:
            inputs = micro.reference_inputs.to(model.device)
            with torch.autocast(model.device.type, torch.bfloat16, enabled=self._stage.loop.precision == "bf16"):
                sums = run_pairs(model, inputs, 2 * micro.num_pairs)[0].cpu().numpy()
            for pair, position in enumerate(micro.positions):
                values[position] = np.full((2, NUM_TEMPLATE_SCALES), np.nan)
                values[position][:, : sums.shape[1]] = sums[[pair, micro.num_pairs + pair]]
        return values

    def _write(self, path: Path, steps: Sequence[dict[int, np.ndarray]]) -> None:
        """Collect all ranks' numbers and write them in the order of their positions."""
        own = {position: value for values in steps for position, value in values.items()}
        merged = {position: value for part in distributed.gather_objects(own) for position, value in part.items()}
        if distributed.is_main():
            buffer = io.BytesIO()
            np.save(buffer, np.stack([merged[position] for position in sorted(merged, key=abs)]))
            write_durably(path, buffer.getvalue())
        distributed.barrier()

    def _require_same(self, first: dict[int, np.ndarray]) -> None:
        """Compare the first step, computed anew in any case, with what is on disk."""
        same = all(
            np.allclose(self._at(position), value, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
            for position, value in first.items()
        )
        if distributed.max_int(0 if same else 1):
            raise RuntimeError(
                f"{self._folder} holds log-probabilities of another model or of other pairs than this stage starts "
                f"with; delete that folder and the stage's checkpoints to train it anew"
            )

    def _is_there(self, path: Path) -> bool:
        return distributed.broadcast_object(path.is_file())

    def _path(self, step: int) -> Path:
        return self._folder / f"steps-{step // self._piece * self._piece:08d}.npy"

    @property
    def _validation_path(self) -> Path:
        return self._folder / "validation.npy"


def _load(path: Path) -> np.ndarray:
    try:
        values: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RuntimeError(
            f"{path}: the reference's log-probabilities cannot be read ({error}); delete this file and run the same "
            f"command again to compute it"
        ) from error
    return values
