"""Which attention kernels training runs: the plain one for short rows on a CPU, none planned per shape on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import nn
from torch.backends import cuda

from vargpt.inputs import ModelInputs
from vargpt.training.stages.sft_stage import short_sequence_attention


@pytest.mark.parametrize(
    ("device", "columns", "plain_alone", "planned"),
    [("cpu", 256, True, False), ("cpu", 257, False, True), ("meta", 1024, False, False), ("meta", 1025, False, True)],
)
def test_kernels_by_device_and_length(device: str, columns: int, plain_alone: bool, planned: bool) -> None:
    """`meta` stands for every device that is no CPU."""
    inputs = cast(ModelInputs, SimpleNamespace(input_ids_BT=torch.zeros(2, columns, device=device)))
    before = cuda.cudnn_sdp_enabled()
    with short_sequence_attention(inputs, nn.Linear(1, 1)):
        assert cuda.math_sdp_enabled()
        assert cuda.mem_efficient_sdp_enabled() == cuda.flash_sdp_enabled() == (not plain_alone)
        assert cuda.cudnn_sdp_enabled() == (planned and before)
    assert cuda.cudnn_sdp_enabled() == before and cuda.flash_sdp_enabled()
