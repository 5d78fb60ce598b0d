"""Generation: cache = no cache, alone = in a batch, and every setting acts."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import (
    END,
    EOS,
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

from vargpt.configuration import Behaviour
from vargpt.inputs import ModelInputs
from vargpt.model import (
    BitSampler,
    Event,
    Finished,
    ImageDone,
    ScaleDone,
    TextDelta,
    TokenSampler,
    VargptForConditionalGeneration,
)
from vargpt.sampling import Sampling

DRAW = Sampling(force_image=True, stop_after_image=True, guidance_scale=1.0, temperature=1.0, top_p=1.0)
GUIDED = replace(DRAW, guidance_scale=2.0)
PROMPT_FREE = prompts([[9, 9, 11]])


def close(one: Tensor, other: Tensor) -> bool:
    """Equal up to float32 summation order."""
    return torch.allclose(one, other, rtol=1e-4, atol=5e-5)


def forced_bits(bits_ILd: Tensor) -> BitSampler:
    """A bit sampler that ignores the logits; images are numbered over all sequences of one image each."""
    return lambda logits, sequence, image, scale: bits_ILd[sequence + image, SCHEDULE.slice(scale)]


def forced_tokens(*rows: list[int]) -> TokenSampler:
    """A token sampler that says these tokens, then ends."""
    return lambda logits, sequence, step: rows[sequence][step] if step < len(rows[sequence]) else EOS


def images(events: list[Event]) -> dict[int, list[ImageDone]]:
    """Finished images by sequence."""
    found = defaultdict(list)
    for event in events:
        if isinstance(event, ImageDone):
            found[event.sequence].append(event)
    return found


def raw_logits(events: list[Event], sequence: int = 0, image: int = 0, branch: int = 0) -> Tensor:
    """Raw logits of all scales of one image, [L, d, 2]."""
    scales = [e for e in events if isinstance(e, ScaleDone) and (e.sequence, e.image) == (sequence, image)]
    assert [e.scale_index for e in scales] == [0, 1, 2]
    return torch.cat([e.trace.raw_logits_Gld2[branch] for e in scales if e.trace is not None])


def generate(
    model: VargptForConditionalGeneration, inputs: ModelInputs, sampling: Sampling, **kwargs: Any
) -> list[Event]:
    """All events; the prompt-free conversation is given wherever guidance needs it."""
    if sampling.guidance_scale != 1.0 and model.behaviour.guidance_backbone == "history":
        kwargs.setdefault("unconditional", PROMPT_FREE)
    return list(model.generate(inputs, sampling, schedule=SCHEDULE, trace=True, **kwargs))


# ------------------------------------------------------------------------------------------ cache = no cache


@pytest.mark.parametrize("multiple", [1, 8])
def test_cached_scales_equal_the_training_forward(multiple: int) -> None:
    behaviour = Behaviour(image_slot_multiple=multiple)
    model = tiny_model(behaviour)
    rows, bits = [random_tokens(7, 1), random_tokens(4, 2)], random_bits(2)
    events = generate(model, prompts(rows, pad_left=2), DRAW, bit_sampler=forced_bits(bits))
    with torch.no_grad():
        trained = model(conversations(model, [row + image_tokens(behaviour) for row in rows], bits)).bit_logits_ILd2
    for sequence in range(2):
        assert close(raw_logits(events, sequence), trained[sequence])


def test_the_unconditional_branch_equals_training_on_the_prompt_free_conversation() -> None:
    model = tiny_model()
    bits = random_bits(1)
    events = generate(model, prompts([random_tokens(7, 1)]), GUIDED, bit_sampler=forced_bits(bits))
    row = PROMPT_FREE.input_ids_BT[0].tolist() + image_tokens(model.behaviour)
    with torch.no_grad():
        trained = model(conversations(model, [row], bits, drop=[True])).bit_logits_ILd2[0]
    assert close(raw_logits(events, branch=1), trained)


@pytest.mark.parametrize("multiple", [1, 8])
def test_talk_and_images_interleave_as_in_training(multiple: int) -> None:
    behaviour = Behaviour(image_slot_multiple=multiple)
    model = tiny_model(behaviour)
    prompt, bits = random_tokens(5, 1), random_bits(2)
    said: list[Tensor] = []
    script = [20, 21, START, 22, START, 23, EOS]

    def speak(logits_V: Tensor, sequence: int, step: int) -> int:
        said.append(logits_V)
        return script[step]

    events = generate(model, prompts([prompt]), replace(DRAW, force_image=False, stop_after_image=False),
                      bit_sampler=forced_bits(bits), token_sampler=speak)  # fmt: skip
    whole = [*prompt, 20, 21, *image_tokens(behaviour), 22, *image_tokens(behaviour), 23]
    with torch.no_grad():
        trained = model(conversations(model, [whole], bits))
    starts = [column for column, token in enumerate(whole) if token == START]
    ends = [column for column, token in enumerate(whole) if token == END]
    columns = [4, 5, starts[0] - 1, ends[0], starts[1] - 1, ends[1], len(whole) - 1]
    assert close(torch.stack(said), trained.text_logits_BTV[0, columns])
    for image in range(2):
        assert close(raw_logits(events, image=image), trained.bit_logits_ILd2[image])
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, prompt + finished.token_ids) == ("stop", whole)
    assert [e.token_id for e in events if isinstance(e, TextDelta)] == [20, 21, 22, 23]


def test_an_image_drawn_earlier_may_be_part_of_the_prompt() -> None:
    model = tiny_model()
    bits = random_bits(2)
    history = random_tokens(4, 1) + image_tokens(model.behaviour) + random_tokens(3, 2)
    events = generate(model, conversations(model, [history], bits[:1]), DRAW, bit_sampler=forced_bits(bits[1:]))
    with torch.no_grad():
        trained = model(conversations(model, [history + image_tokens(model.behaviour)], bits)).bit_logits_ILd2
    assert close(raw_logits(events), trained[1])


# ------------------------------------------------------------------------------------------ batches and seeds


@pytest.mark.parametrize("preset", ["vargpt", "official"])
def test_each_image_of_a_batch_equals_the_same_request_alone(preset: str) -> None:
    model = tiny_model(preset)
    rows = [random_tokens(length, seed) for seed, length in enumerate((7, 3, 11))]
    seeds = [3, 4, 5, 6, 7, 8]
    together = images(generate(model, prompts(rows), replace(GUIDED, images_per_prompt=2, seeds=seeds)))
    for sequence, seed in enumerate(seeds):
        alone = images(generate(model, prompts([rows[sequence // 2]]), replace(GUIDED, seeds=[seed])))
        assert torch.equal(alone[0][0].bits_Ld, together[sequence][0].bits_Ld)
        assert torch.equal(alone[0][0].image_3HW, together[sequence][0].image_3HW)
    assert len({tuple(done[0].bits_Ld.flatten().tolist()) for done in together.values()}) == 6


def test_sequences_that_draw_at_different_times_do_not_disturb_each_other() -> None:
    model = tiny_model()
    rows = [random_tokens(7, 1), random_tokens(3, 2), random_tokens(5, 3)]
    scripts = [[20, START, 21, EOS], [22, 23, 24, 25, START, START, 26, EOS], [27, EOS]]
    settings = replace(GUIDED, force_image=False, stop_after_image=False)
    together = generate(model, prompts(rows), replace(settings, seeds=[1, 2, 3]), token_sampler=forced_tokens(*scripts))
    for sequence, row in enumerate(rows):
        alone = generate(model, prompts([row]), replace(settings, seeds=[sequence + 1]),
                         token_sampler=forced_tokens(scripts[sequence]))  # fmt: skip
        ours = images(together)[sequence]
        assert len(ours) == scripts[sequence].count(START)
        for mine, single in zip(ours, images(alone)[0], strict=True):
            assert torch.equal(mine.bits_Ld, single.bits_Ld)
        (finished,) = [e for e in together if isinstance(e, Finished) and e.sequence == sequence]
        assert isinstance(alone[-1], Finished)
        assert finished.token_ids == alone[-1].token_ids


def test_sampled_words_depend_on_the_seed_alone() -> None:
    model = tiny_model()
    settings = Sampling(text_temperature=1.5, max_new_tokens=6, max_images=0)
    rows = [random_tokens(6, 1), random_tokens(3, 2)]

    def words(inputs: ModelInputs, seeds: list[int]) -> dict[int, list[int]]:
        events = generate(model, inputs, replace(settings, guidance_scale=1.0, seeds=seeds))
        return {e.sequence: e.token_ids for e in events if isinstance(e, Finished)}

    together = words(prompts(rows), [5, 6])
    assert together[1] == words(prompts(rows[1:]), [6])[0]
    assert words(prompts(rows[:1]), [5])[0] == together[0] != words(prompts(rows[:1]), [7])[0]


def test_two_generations_can_interleave() -> None:
    model = tiny_model()
    first, second = prompts([random_tokens(7, 1)]), prompts([random_tokens(4, 2)])
    expected = [generate(model, inputs, GUIDED) for inputs in (first, second)]
    streams = [
        model.generate(inputs, GUIDED, schedule=SCHEDULE, unconditional=PROMPT_FREE) for inputs in (first, second)
    ]
    pairs = list(zip(*streams, strict=True))
    for index, wanted in enumerate(expected):
        got = [pair[index] for pair in pairs]
        assert torch.equal(images(got)[0][0].bits_Ld, images(wanted)[0][0].bits_Ld)


def test_closing_the_iterator_cancels_and_leaves_nothing_behind() -> None:
    model = tiny_model()
    before = set(vars(model)) | set(vars(model.decoder)) | set(vars(model.backbone))
    stream = model.generate(prompts([random_tokens(7, 1)]), DRAW, schedule=SCHEDULE)
    assert isinstance(next(stream), ScaleDone)
    assert torch.is_grad_enabled()
    stream.close()
    assert before == set(vars(model)) | set(vars(model.decoder)) | set(vars(model.backbone))
    assert model.backbone.rope_deltas is None


# ------------------------------------------------------------------------------------------ guidance


def test_every_guidance_switch_changes_the_number() -> None:
    model = tiny_model()
    prompt, bits = prompts([random_tokens(12, 1)]), random_bits(1)
    seen, conditional = [], []
    for backbone in ("official", "history"):
        for context in ("official", "hidden"):
            mixed = replace(model.behaviour, guidance_backbone=backbone, guidance_context=context)
            model.set_behaviour(mixed)
            both_official = backbone == context == "official"
            events = list(
                model.generate(prompt, GUIDED, schedule=SCHEDULE, trace=True, bit_sampler=forced_bits(bits),
                               unconditional=None if both_official else PROMPT_FREE)
            )  # fmt: skip
            seen.append(raw_logits(events, branch=1))
            conditional.append(raw_logits(events, branch=0))
    assert all(close(one, conditional[0]) for one in conditional)
    for index, one in enumerate(seen):
        for other in seen[index + 1 :]:
            assert not close(one, other)


def test_official_unconditional_branch_sees_no_history_and_repeats_its_rows() -> None:
    model = tiny_model("official")
    long = random_tokens(20, 1)  # 20 context rows, the table has 8
    (done,) = images(generate(model, prompts([long]), GUIDED))[0]
    assert done.trace is not None
    conditional, unconditional = done.trace.contexts
    table = model.decoder.unconditional
    assert torch.equal(unconditional, table.repeat(3, 1)[:20])
    assert close(conditional, model.out_projector(done.trace.hidden_nD[:-1]))
    assert done.stray_token_id is not None
    bits = random_bits(1)
    branches = [
        raw_logits(generate(model, prompts([random_tokens(20, seed)]), GUIDED, bit_sampler=forced_bits(bits)), branch=1)
        for seed in (1, 2)
    ]
    assert torch.equal(branches[0], branches[1])  # nothing of the prompt but its length


def test_guidance_lists_and_the_end_of_the_unconditional_branch() -> None:
    model = tiny_model()
    prompt, bits = prompts([random_tokens(7, 1)]), forced_bits(random_bits(1))
    constant = generate(model, prompt, GUIDED, bit_sampler=bits)
    early = generate(model, prompt, replace(GUIDED, guidance_scale=[2.0, 1.0, 1.0]), bit_sampler=bits)
    late = generate(model, prompt, replace(GUIDED, guidance_scale=[1.0, 1.0, 2.0]), bit_sampler=bits)
    traces = [[e.trace for e in run if isinstance(e, ScaleDone) and e.trace] for run in (constant, early, late)]
    assert [len(trace.raw_logits_Gld2) for trace in traces[1]] == [2, 1, 1]
    assert [len(trace.raw_logits_Gld2) for trace in traces[2]] == [2, 2, 2]
    for scale in range(3):
        wanted = traces[0][scale]
        for run in (1, 2):
            assert close(traces[run][scale].raw_logits_Gld2[0], wanted.raw_logits_Gld2[0])
    assert torch.equal(traces[2][2].guided_logits_ld2, traces[0][2].guided_logits_ld2)
    guided, raw = traces[0][1].guided_logits_ld2, traces[0][1].raw_logits_Gld2
    assert torch.allclose(guided, 2 * raw[0] - raw[1])


def test_temperature_acts_before_guidance_and_zero_takes_the_likelier_bit() -> None:
    model = tiny_model()
    prompt, bits = prompts([random_tokens(7, 1)]), forced_bits(random_bits(1))
    warm = generate(model, prompt, replace(GUIDED, temperature=[1.0, 0.5, 1.0]), bit_sampler=bits)
    plain = generate(model, prompt, GUIDED, bit_sampler=bits)
    guided = [[e.trace.guided_logits_ld2 for e in run if isinstance(e, ScaleDone) and e.trace] for run in (warm, plain)]
    assert torch.equal(guided[0][0], guided[1][0])
    assert torch.allclose(guided[0][1], 2 * guided[1][1])
    runs = [images(generate(model, prompt, replace(GUIDED, temperature=0.0, seeds=[s])))[0][0].bits_Ld for s in (1, 2)]
    assert torch.equal(runs[0], runs[1])


def test_a_negative_prompt_acts_and_its_absence_is_explained() -> None:
    model = tiny_model()
    prompt = prompts([random_tokens(7, 1)])
    bits = forced_bits(random_bits(1))
    empty = generate(model, prompt, GUIDED, bit_sampler=bits)
    negative = generate(model, prompt, GUIDED, bit_sampler=bits, unconditional=prompts([random_tokens(6, 8)]))
    assert torch.equal(raw_logits(empty), raw_logits(negative))
    assert not close(raw_logits(empty, branch=1), raw_logits(negative, branch=1))
    with pytest.raises(ValueError, match="pass `unconditional`"):
        next(model.generate(prompt, GUIDED, schedule=SCHEDULE))
    model.set_behaviour("official")
    with pytest.raises(ValueError, match="a negative prompt cannot act"):
        next(model.generate(prompt, GUIDED, schedule=SCHEDULE, unconditional=PROMPT_FREE))


def test_unconditional_conversations_may_be_given_per_prompt_and_may_read_images() -> None:
    model = tiny_model()
    rows = prompts([random_tokens(7, 1), random_tokens(4, 2)])
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(16, 96, generator=generator)  # one 4x4 grid of patches makes four features
    reading = replace(prompts([[9, 5, 5, 5, 5, 9]]), pixel_values=patches, image_grid_thw=torch.tensor([[1, 4, 4]]))
    twice = replace(
        prompts([[9, 5, 5, 5, 5, 9], [9, 5, 5, 5, 5, 9]]),
        pixel_values=torch.cat([patches, -patches]),
        image_grid_thw=torch.tensor([[1, 4, 4], [1, 4, 4]]),
    )
    bits = forced_bits(random_bits(4))
    settings = replace(GUIDED, images_per_prompt=2)
    shared = generate(model, rows, settings, unconditional=reading, bit_sampler=bits)
    each = generate(model, rows, settings, unconditional=twice, bit_sampler=bits)
    for sequence in (0, 1):  # both images of the first prompt
        assert close(raw_logits(each, sequence, branch=1), raw_logits(shared, sequence, branch=1))
    for sequence in (2, 3):  # the second prompt's own picture differs
        assert not close(raw_logits(each, sequence, branch=1), raw_logits(shared, sequence, branch=1))


@pytest.mark.parametrize("preset", ["vargpt", "official"])
def test_bfloat16_generates(preset: str) -> None:
    model = tiny_model(preset).to(torch.bfloat16)
    events = generate(model, prompts([random_tokens(7, 1), random_tokens(3, 2)]), GUIDED)
    assert all(torch.isfinite(done[0].image_3HW).all() for done in images(events).values())
    assert events[-1].token_ids[-1] == END  # type: ignore[union-attr]
    strays = [done[0].stray_token_id is None for done in images(events).values()]
    assert strays == [preset == "vargpt"] * 2


def test_image_positions_differ_only_after_prompts_with_a_rope_delta() -> None:
    model = tiny_model()
    bits = forced_bits(random_bits(1))
    inputs = prompts([random_tokens(7, 1)])
    jump = replace(inputs, position_ids_3BT=inputs.position_ids_3BT.clamp(max=3))  # as after an image to read
    runs = {}
    for rule in ("official", "continuous"):
        model.set_behaviour(replace(model.behaviour, image_positions=rule))
        runs[rule] = [raw_logits(generate(model, given, DRAW, bit_sampler=bits)) for given in (inputs, jump)]
    assert torch.equal(runs["official"][0], runs["continuous"][0])
    assert not close(runs["official"][1], runs["continuous"][1])


# ------------------------------------------------------------------------------------------ limits and mistakes


def test_limits_end_a_sequence() -> None:
    model = tiny_model()
    prompt = prompts([random_tokens(5, 1)])
    talk = replace(DRAW, force_image=False, stop_after_image=False)
    events = generate(model, prompt, replace(talk, max_new_tokens=2), token_sampler=forced_tokens([20, 21, 22]))
    assert (events[-1].reason, events[-1].token_ids) == ("length", [20, 21])  # type: ignore[union-attr]
    events = generate(model, prompt, replace(talk, max_images=1), token_sampler=forced_tokens([START, START]))
    assert len(images(events)[0]) == 1
    assert events[-1].reason == "length"  # type: ignore[union-attr]
    events = generate(model, prompt, DRAW)
    assert events[-1].reason == "image"  # type: ignore[union-attr]
    assert events[-1].token_ids == [START, *[SLOT] * 21, END]  # type: ignore[union-attr]


def test_previews_decode_and_the_last_one_is_the_image() -> None:
    model = tiny_model()
    events = generate(model, prompts([random_tokens(5, 1)]), DRAW)
    canvases = [e.canvas_1dhw for e in events if isinstance(e, ScaleDone)]
    previews = [model.image_tokenizer.decode(canvas)[0] for canvas in canvases]
    (done,) = images(events)[0]
    assert done.image_3HW.shape == (3, 8, 8)
    assert torch.equal(previews[-1], done.image_3HW)
    assert not torch.equal(previews[0], previews[-1])
    assert torch.equal(done.canvas_1dhw, model.image_tokenizer.canvas(done.bits_Ld[None], SCHEDULE))


def test_mistakes_are_explained() -> None:
    model = tiny_model()
    prompt = prompts([random_tokens(5, 1)])
    right_padded = replace(prompt, attention_mask_BT=torch.tensor([[True, True, True, True, False]]))
    with pytest.raises(ValueError, match="padded on the left"):
        next(model.generate(right_padded, DRAW))
    with pytest.raises(ValueError, match=r"1 row or one per prompt \(1\), got 2"):
        next(model.generate(prompt, GUIDED, unconditional=prompts([[9], [9]])))
    with pytest.raises(ValueError, match="temperature has 2 entries, but this schedule has 3 scales"):
        next(model.generate(prompt, replace(DRAW, temperature=[1.0, 1.0]), schedule=SCHEDULE))
    model.train()
    with pytest.raises(RuntimeError, match=r"model.eval\(\)"):
        next(model.generate(prompt, DRAW))
