"""The unified forward: masks, independence of rows, gradients, and switches that change the number."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import (
    BITS,
    END,
    SCHEDULE,
    SLOT,
    START,
    conversations,
    image_tokens,
    prompts,
    random_bits,
    random_tokens,
    tiny_model,
)
from torch import Tensor

from vargpt import losses
from vargpt.configuration import Behaviour
from vargpt.model import VargptForConditionalGeneration
from vargpt.model.backbone import causal_mask
from vargpt.model.rope2d import rotary_table, rotate


def close(one: Tensor, other: Tensor) -> bool:
    """Equal up to float32 summation order."""
    return torch.allclose(one, other, rtol=1e-4, atol=2e-5)


def test_causal_mask_literal() -> None:
    valid = torch.tensor([[False, True, True, True], [True, True, True, False]])
    one, zero = True, False
    assert causal_mask(valid, 4)[:, 0].tolist() == [
        # left padding: the first column sees itself only so that its softmax is finite
        [[one, zero, zero, zero], [zero, one, zero, zero], [zero, one, one, zero], [zero, one, one, one]],
        # right padding: the last column sees the words, not itself (the published text loss trains on it)
        [[one, zero, zero, zero], [one, one, zero, zero], [one, one, one, zero], [one, one, one, zero]],
    ]
    assert causal_mask(valid, 1)[:, 0].tolist() == [[[zero, one, one, one]], [[one, one, one, zero]]]


def test_rotation_turns_adjacent_pairs() -> None:
    values = torch.tensor([1.0, 0.0, 0.0, 2.0]).view(1, 1, 1, 4)
    angles = torch.tensor([[torch.pi / 2, torch.pi]])
    turned = rotate(values, angles.cos(), angles.sin()).flatten()
    assert torch.allclose(turned, torch.tensor([0.0, 1.0, 0.0, -2.0]), atol=1e-6)


def test_rotary_table_splits_pairs_between_rows_and_columns() -> None:
    cos, sin = rotary_table(SCHEDULE, 16, torch.device("cpu"))
    assert cos.shape == sin.shape == (21, 8)
    # Token 2 is row 0, column 1 of the 2x2 grid: row pairs stand still, the first column pair turns by 32.
    assert cos[2, :4].tolist() == [1.0] * 4
    assert cos[2, 4].item() == pytest.approx(torch.tensor(32.0).cos().item(), abs=1e-6)


def test_rows_do_not_depend_on_their_batch() -> None:
    model = tiny_model()
    rows = [
        random_tokens(5, 1) + image_tokens(model.behaviour) + [9],
        random_tokens(9, 2) + image_tokens(model.behaviour),
    ]
    bits = random_bits(2)
    with torch.no_grad():
        together = model(conversations(model, rows, bits))
        for index, row in enumerate(rows):
            alone = model(conversations(model, [row], bits[index : index + 1]))
            assert close(together.bit_logits_ILd2[index], alone.bit_logits_ILd2[0])
            assert close(together.text_logits_BTV[index, : len(row)], alone.text_logits_BTV[0])


def test_a_second_image_sees_the_first_and_not_the_future() -> None:
    model = tiny_model()
    first = random_tokens(4, 1) + image_tokens(model.behaviour)
    second = first + random_tokens(3, 2) + image_tokens(model.behaviour)
    bits = random_bits(2)
    with torch.no_grad():
        both = model(conversations(model, [[*second, 9, 9]], bits)).bit_logits_ILd2
        only_first = model(conversations(model, [first], bits[:1])).bit_logits_ILd2
        assert close(both[0], only_first[0])
        other = bits.clone()
        other[0] ^= 1
        changed = model(conversations(model, [[*second, 9, 9]], other)).bit_logits_ILd2
    assert not close(both[1], changed[1])


def test_a_scale_does_not_see_finer_scales_of_its_image() -> None:
    model = tiny_model()
    row = random_tokens(4, 1) + image_tokens(model.behaviour)
    bits = random_bits(1)
    other = bits.clone()
    other[:, SCHEDULE.slice(1)] ^= 1
    with torch.no_grad():
        before = model(conversations(model, [row], bits)).bit_logits_ILd2
        after = model(conversations(model, [row], other)).bit_logits_ILd2
    assert torch.equal(before[:, :5], after[:, :5])
    assert not close(before[:, 5:], after[:, 5:])


def test_text_logits_only_where_there_are_targets() -> None:
    model = tiny_model()
    inputs = conversations(model, [random_tokens(5, 1) + image_tokens(model.behaviour) + [9]], random_bits(1))
    assert inputs.text_targets_BT is not None
    inputs.text_targets_BT[:, :5] = losses.IGNORED
    with torch.no_grad():
        everywhere, chosen = model(inputs), model(inputs, text_logits="targets")
        assert model(inputs, text_logits="none").text_logits_BTV is None
    full = losses.text_loss(everywhere.text_logits_BTV, inputs.text_targets_BT)
    part = losses.selected_text_loss(chosen.target_logits_SV, chosen.targets_S)
    assert chosen.targets_S.tolist() == [START, END, 9]
    assert torch.allclose(full, part)


@pytest.mark.parametrize("dropped", [False, True])
def test_image_gradients_reach_both_uses_of_the_backbone_but_not_the_tokenizer(dropped: bool) -> None:
    model = tiny_model()
    row = random_tokens(5, 1) + image_tokens(model.behaviour)
    inputs = conversations(model, [row], random_bits(1), [dropped])
    output = model(inputs, text_logits="none")
    losses.image_loss(output.bit_logits_ILd2, inputs.labels_ILd, SCHEDULE, "official").backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert not {name for name in touched if name.startswith(("image_tokenizer.", "lm_head.", "backbone.visual."))}
    assert {
        "in_projector.fc1.weight",
        "out_projector.fc2.bias",
        "decoder.start_position",
        "decoder.head.bias",
    } <= touched
    assert ("start_embedding" in touched) != dropped
    unconditional = model.decoder.unconditional.grad
    rows = [] if unconditional is None else unconditional.abs().amax(1).nonzero().flatten().tolist()
    assert rows == ([0] if dropped else [])
    # The prompt's own embeddings learn through the context and the attention of image tokens.
    embeddings = model.get_input_embeddings().weight.grad
    assert embeddings[row[0]].abs().max() > 0


def test_switches_of_the_forward_change_the_number() -> None:
    model = tiny_model()
    bits = random_bits(1)
    with torch.no_grad():
        row = random_tokens(5, 1) + image_tokens(model.behaviour) + [9]
        plain = model(conversations(model, [row], bits))
        dropped = model(conversations(model, [row], bits, [True]))
        assert not close(plain.bit_logits_ILd2, dropped.bit_logits_ILd2)
        model.set_behaviour(replace(model.behaviour, cross_attention_dtype="bfloat16"))
        rounded = model(conversations(model, [row], bits))
        difference = (rounded.bit_logits_ILd2 - plain.bit_logits_ILd2).abs().max()
        assert 1e-4 < difference < 0.3
        model.set_behaviour(Behaviour(image_slot_multiple=8))
        padded = model(conversations(model, [random_tokens(5, 1) + image_tokens(model.behaviour) + [9]], bits))
    # Three empty slots follow: invisible to the image, seen by what comes after it.
    assert padded.text_logits_BTV.shape[1] == plain.text_logits_BTV.shape[1] + 3
    assert close(padded.bit_logits_ILd2, plain.bit_logits_ILd2)
    assert not close(padded.text_logits_BTV[:, -1], plain.text_logits_BTV[:, -1])


def test_forward_is_a_function_and_drop_path_follows_the_decoder_mode() -> None:
    model = tiny_model()
    inputs = conversations(model, [random_tokens(5, 1) + image_tokens(model.behaviour)] * 4, random_bits(4))
    for block in model.decoder.block_list():
        block.drop_path.rate = 0.5
    with torch.no_grad():
        quiet = model(inputs).bit_logits_ILd2
        model.train()
        model.decoder.eval()  # a frozen decoder, or preference training
        assert torch.equal(quiet, model(inputs).bit_logits_ILd2)
        model.decoder.train()
        torch.manual_seed(0)
        assert not torch.allclose(quiet, model(inputs).bit_logits_ILd2)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = tiny_model()
    inputs = conversations(model, [random_tokens(5, 1) + image_tokens(model.behaviour)], random_bits(1))

    def gradient() -> torch.Tensor:
        model.zero_grad()
        output = model(inputs)
        losses.image_loss(output.bit_logits_ILd2, inputs.labels_ILd, SCHEDULE, "per_scale").backward()
        return torch.cat([p.grad.flatten() for p in model.decoder.parameters() if p.grad is not None])

    plain = gradient()
    model.gradient_checkpointing_enable()
    model.train()
    for block in model.decoder.block_list():
        block.drop_path.rate = 0.0
    assert model.decoder.block_list()[0].gradient_checkpointing
    assert torch.allclose(plain, gradient(), rtol=1e-4, atol=1e-7)


def test_bfloat16_runs() -> None:
    model = tiny_model().to(torch.bfloat16)
    inputs = conversations(model, [random_tokens(5, 1) + image_tokens(model.behaviour)], random_bits(1))
    with torch.no_grad():
        output = model(inputs)
    assert output.bit_logits_ILd2.dtype == torch.bfloat16
    assert torch.isfinite(output.bit_logits_ILd2).all()


def test_a_fresh_model_starts_sanely() -> None:
    torch.manual_seed(0)
    model = VargptForConditionalGeneration(tiny_model().config).eval()
    inputs = conversations(model, [random_tokens(5, 1) + image_tokens(model.behaviour)], random_bits(1))
    with torch.no_grad():
        output = model(inputs)
    image = losses.image_loss(output.bit_logits_ILd2, inputs.labels_ILd, SCHEDULE, "official")
    text = losses.text_loss(output.text_logits_BTV, inputs.text_targets_BT)
    assert image.item() == pytest.approx(0.693, abs=0.05)
    assert text.item() == pytest.approx(4.16, abs=0.5)  # log 64
    assert output.bit_logits_ILd2.std() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels_ILd": torch.zeros(1, 3, BITS)}, r"labels_ILd must have shape \(1, 21, 6\)"),
        ({"image_start_I": torch.tensor([4])}, "no <|image_gen_start|> at row 0, column 4"),
        ({"image_start_I": torch.tensor([0])}, "at least one token before the start"),
        ({"next_inputs_IMd": None}, "generated images need"),
        ({"schedule": None}, "generated images need"),
        ({"image_sample_I": None}, "lists no generated image"),
        ({"pixel_values": torch.zeros(4, 96)}, "must be given together"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: dict, message: str) -> None:
    model = tiny_model()
    inputs = conversations(model, [random_tokens(5, 1) + image_tokens(model.behaviour)], random_bits(1))
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        model(replace(inputs, **change))


def test_slots_and_features_are_counted() -> None:
    model = tiny_model()
    inputs = conversations(model, [random_tokens(5, 1) + image_tokens(model.behaviour)], random_bits(1))
    inputs.input_ids_BT[0, 1] = SLOT
    with pytest.raises(ValueError, match=r"tokens \(22\) are not 21 slots"):
        model(inputs)
    with pytest.raises(ValueError, match=r"hold 1 <.image_pad.> tokens but image_grid_thw describes 0"):
        model(prompts([[9, 5, 9]]))
