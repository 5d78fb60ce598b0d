"""Image tokenizer: bits, the pyramid, and what training needs of it."""

import pytest
import torch

from vargpt.configuration import ImageTokenizerConfig
from vargpt.image_tokenizer import ImageTokenizer
from vargpt.image_tokenizer.bsq import bits_from_latent, codes_from_bits
from vargpt.image_tokenizer.initialization import initialize
from vargpt.image_tokenizer.pyramid import encode_latent, resize_up
from vargpt.image_tokenizer.training_loss import TokenizerLossWeights, laplacian_l1, tokenizer_loss
from vargpt.scales import ScaleSchedule

SCHEDULE = ScaleSchedule.from_template(1.0, 3)


def small_tokenizer(**changes) -> ImageTokenizer:
    sizes = {"bits": 8, "base_channels": 32, "channel_multipliers": (1, 1, 1), "num_res_blocks": 1, "patch_size": 4}
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(ImageTokenizerConfig(**{**sizes, **changes}))
    initialize(tokenizer)
    return tokenizer


def test_bits_literal_zero_gives_zero():
    latent = torch.tensor([[[[0.5, -0.1]], [[0.0, 2.0]]]])  # [1, d=2, 1, 2]
    assert bits_from_latent(latent).tolist() == [[[1, 0], [0, 1]]]


def test_codes_are_unit_length_and_twice_normalised():
    bits = torch.tensor([[[1] * 32, [0] * 32]], dtype=torch.uint8)
    codes = codes_from_bits(bits, 1, 2)
    assert codes.shape == (1, 32, 1, 2)
    assert codes[0, 0, 0, 0].item() == pytest.approx(0.17677671, abs=4e-9)  # 1 ulp above 1/sqrt(32) = 0.17677669
    assert codes[0, 0, 0, 1] == -codes[0, 0, 0, 0]


def test_encoding_equals_sampling_with_the_same_bits():
    latent = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))
    labels, inputs, canvas, _ = encode_latent(latent, SCHEDULE)
    tokenizer = small_tokenizer()
    running, collected = None, []
    for k in range(3):
        running, following = tokenizer.advance(running, labels[:, SCHEDULE.slice(k)], k, SCHEDULE)
        if following is not None:
            collected.append(following)
    assert running is not None
    assert torch.equal(running, canvas) and torch.equal(torch.cat(collected, 1), inputs)
    assert torch.equal(tokenizer.canvas(labels, SCHEDULE), canvas)


def test_labels_repair_injected_errors():
    latent = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(2))
    clean, _, _, _ = encode_latent(latent, SCHEDULE)
    flips = torch.zeros(1, 21, 8, dtype=torch.bool)
    flips[0, 0] = True  # the whole first scale is wrong
    repaired, _, canvas, _ = encode_latent(latent, SCHEDULE, flips)
    assert torch.equal(repaired[:, :1], clean[:, :1])  # labels are never flipped themselves
    assert not torch.equal(repaired[:, 1:], clean[:, 1:])
    wrong_start = resize_up(codes_from_bits(1 - clean[:, :1], 1, 1), (4, 4))
    assert (canvas - latent).abs().mean() < (wrong_start - latent).abs().mean()


def test_flips_of_the_last_scale_change_the_canvas_only():
    latent = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(3))
    flips = torch.zeros(1, 21, 8, dtype=torch.bool)
    flips[0, 20, 0] = True
    clean, flipped = encode_latent(latent, SCHEDULE), encode_latent(latent, SCHEDULE, flips)
    assert torch.equal(clean[0], flipped[0]) and torch.equal(clean[1], flipped[1])
    assert not torch.equal(clean[2], flipped[2])


@pytest.mark.parametrize("key", [1.0, 0.75, 2.5])
def test_round_trip_shapes_for_other_aspects(key):
    schedule = ScaleSchedule.from_template(key, 4)
    tokenizer = small_tokenizer()
    height, width = schedule.image_size
    bits = tokenizer.encode(torch.zeros(1, 3, height, width), schedule)
    assert bits.labels_BLd.shape == (1, schedule.num_tokens, 8)
    assert tokenizer.decode(bits.canvas_Bdhw).shape == (1, 3, height, width)


def test_wrong_sizes_are_named():
    tokenizer = small_tokenizer()
    with pytest.raises(ValueError, match=r"multiples of 16, got \(1, 3, 60, 64\)"):
        tokenizer.features(torch.zeros(1, 3, 60, 64))
    with pytest.raises(ValueError, match=r"ends at grid \(4, 4\) \(64x64 pixels\), got a latent of grid \(8, 8\)"):
        tokenizer.quantize(torch.zeros(1, 8, 8, 8), SCHEDULE)
    with pytest.raises(ValueError, match="2x2 = 4 tokens, got bits for 3"):
        tokenizer.advance(None, torch.zeros(1, 3, 8), 1, SCHEDULE)
    with pytest.raises(ValueError, match="needs 3 channel_multipliers"):
        small_tokenizer(channel_multipliers=(1, 2))
    with pytest.raises(ValueError, match="divisible by 32 or 24"):
        small_tokenizer(base_channels=20)


def test_loss_gradients_reach_the_encoder_through_the_quantiser():
    tokenizer = small_tokenizer()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4)) * 2 - 1
    loss, parts = tokenizer_loss(tokenizer, images, SCHEDULE, TokenizerLossWeights(commitment=0, entropy=0))
    loss.backward()
    gradient = tokenizer.encoder.conv_in.weight.grad
    assert gradient is not None and gradient.abs().sum() > 0
    assert parts["psnr"] > 0


@pytest.mark.parametrize("term", ["l1", "laplacian", "commitment", "entropy"])
def test_every_loss_weight_changes_the_loss(term):
    tokenizer = small_tokenizer()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 2 - 1
    zero = dict.fromkeys(["l1", "laplacian", "commitment", "entropy"], 0.0)
    base, _ = tokenizer_loss(tokenizer, images, SCHEDULE, TokenizerLossWeights(**zero))
    changed, _ = tokenizer_loss(tokenizer, images, SCHEDULE, TokenizerLossWeights(**{**zero, term: 1.0}))
    assert not torch.isclose(base, changed)


def test_laplacian_sees_edges_more_than_a_shift_of_brightness():
    flat = torch.zeros(1, 3, 16, 16)
    brighter = flat + 0.1
    edge = flat.clone()
    edge[..., 8:] = 0.2  # same mean difference, but with an edge
    assert laplacian_l1(brighter, flat) < 1e-6 < laplacian_l1(edge, flat)
