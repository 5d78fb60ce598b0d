"""Learning rate, weight decay and the choice of matrices for Muon, by literal values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from vargpt.model.stem import StemConvolution
from vargpt.training.loop.muon import GroupedMuon
from vargpt.training.loop.optim import build_optimizers, learning_rate_at, parameter_groups
from vargpt.training.loop.settings import LoopSettings


def test_learning_rate_by_literal_values():
    settings = LoopSettings(steps=10, batch_size=1, learning_rate=1.0, warmup=0.2, final_learning_rate=0.1)
    rates = [learning_rate_at(step, settings) for step in range(11)]
    cosine = [1.0, 0.96574, 0.86820, 0.72221, 0.55, 0.37779, 0.23180, 0.13426, 0.1]
    assert rates == pytest.approx([0.5, 1.0, *cosine], abs=1e-5)
    no_warmup = replace(settings, warmup=0.0)
    assert learning_rate_at(0, no_warmup) == 1.0


def test_matrices_decay_but_vectors_and_embeddings_do_not():
    module = nn.ModuleDict({"proj": nn.Linear(2, 3), "embed_tokens": nn.Embedding(4, 2), "norm": nn.LayerNorm(3)})
    module["proj"].weight.requires_grad_(True)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    module["frozen"] = frozen
    decayed, plain = parameter_groups(module, 0.3)
    assert decayed["weight_decay"] == 0.3 and plain["weight_decay"] == 0.0
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 2)]
    assert sorted(tuple(p.shape) for p in plain["params"]) == [(3,), (3,), (3,), (4, 2)]


def test_only_weights_of_products_decay():
    """Modulation offsets [6, C] and unconditional rows [8, C] have two axes and once decayed."""
    module = nn.Module()
    module.modulation_offset = nn.Parameter(torch.ones(6, 2))
    module.unconditional = nn.Parameter(torch.ones(8, 2))
    module.conv = nn.Conv2d(2, 3, 3)
    module.lora_A = nn.ModuleDict({"default": nn.Linear(2, 5, bias=False)})
    decayed, plain = parameter_groups(module, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 2, 3, 3), (5, 2)]
    assert [tuple(p.shape) for p in plain["params"]] == [(6, 2), (8, 2), (3,)]


def test_muon_takes_the_matrices_inside_blocks_and_adamw_the_rest():
    block = nn.ModuleDict({"proj": nn.Linear(2, 3), "norm": nn.LayerNorm(3)})
    module = nn.ModuleDict({"decoder": nn.ModuleDict({"blocks": nn.ModuleList([block])}), "lm_head": nn.Linear(2, 4)})
    settings = LoopSettings(steps=1, batch_size=1, learning_rate=0.1, optimizer="muon")
    (muon, muon_share), (adamw, adamw_share) = build_optimizers(module, settings)
    assert isinstance(muon, torch.optim.Muon) and (muon_share, adamw_share) == (1.0, 0.4)
    assert [tuple(p.shape) for group in muon.param_groups for p in group["params"]] == [(3, 2)]
    sizes = sorted(tuple(p.shape) for group in adamw.param_groups for p in group["params"])
    assert sizes == [(3,), (3,), (3,), (4,), (4, 2)]
    stem = nn.ModuleDict({"patch_embed": nn.ModuleDict({"first": StemConvolution(3, 16, 4)})})
    (muon, _), (adamw, _) = build_optimizers(nn.ModuleDict({"visual": stem}), settings)
    assert [tuple(p.shape) for group in muon.param_groups for p in group["params"]] == [(16, 27)]
    assert [tuple(p.shape) for group in adamw.param_groups for p in group["params"]] == [(16,)]
    only_matrices = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 3, bias=False)])})
    only_matrices = nn.ModuleDict({"decoder": only_matrices})
    assert [type(optimizer).__name__ for optimizer, _ in build_optimizers(only_matrices, settings)] == ["Muon"]


@pytest.mark.parametrize("nesterov", [True, False])
def test_grouped_muon_is_torchs_muon(nesterov: bool):
    shapes = [(4, 8), (8, 4), (4, 8), (6, 6), (8, 4), (4, 8)]
    torch.manual_seed(0)
    first = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    unused = nn.Parameter(torch.ones(4, 8))
    settings: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    one_by_one = torch.optim.Muon(first, nesterov=nesterov, **settings)
    grouped = GroupedMuon([*second, unused], nesterov=nesterov, **settings)
    for _ in range(3):
        for a, b in zip(first, second, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        one_by_one.step()
        grouped.step()
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-3)  # bfloat16 inside; a step is 0.08 long
    assert torch.equal(unused, torch.ones(4, 8))
    assert not torch.allclose(first[0], second[2], atol=0.05)
