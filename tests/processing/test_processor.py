"""Chat format, collation, prompts, and saving and loading of the processor."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, PreTrainedTokenizerFast, Qwen2VLImageProcessorPil

from vargpt.configuration import Behaviour, VargptConfig
from vargpt.processing.chat import DEFAULT_SYSTEM_PROMPT
from vargpt.processing.conversation import Conversation, DrawPart, DrawSource, ImagePart, assistant, user
from vargpt.processing.processor import VargptProcessor
from vargpt.processing.text import SPECIAL_TOKENS, SpecialIds, train_text_tokenizer
from vargpt.scales import ScaleSchedule

TEXTS = ["draw a red heart", "what is this?", "make it blue", "user assistant system"] * 8
ONE = ScaleSchedule(1.0, 1)  # a single image token
TWO = ScaleSchedule(1.0, 2)  # five image tokens, 32x32 pixels


def make(behaviour: Behaviour | None = None, system_prompt: str | None = None) -> VargptProcessor:
    return VargptProcessor.train(
        TEXTS,
        320,
        patch_size=4,
        min_pixels=16 * 16,
        max_pixels=16 * 16,
        behaviour=behaviour,
        system_prompt=system_prompt,
    )


@pytest.fixture(scope="module")
def processor() -> VargptProcessor:
    return make()


PICTURE = Image.new("RGB", (20, 20), (200, 10, 10))


def drawing(image: DrawSource | None = None) -> Conversation:
    return Conversation(messages=(user("draw a red heart"), assistant(DrawPart(image=image))))


def editing() -> Conversation:
    return Conversation(messages=(user(ImagePart(image=PICTURE), "make it blue"), assistant("ok", DrawPart())))


def decoded(processor: VargptProcessor, ids: object) -> str:
    text = processor.tokenizer.decode(ids)
    for token, short in (("im_start", "S"), ("im_end", "E"), ("image_pad", "i"), ("image_gen_pad", "g")):
        text = text.replace(f"<|{token}|>", f"<{short}>")
    return text.replace("\n", "/")


# Format ---------------------------------------------------------------------------------------------------------------


def test_training_format_without_system(processor: VargptProcessor):
    row = processor.encode(drawing(), TWO)
    text = "<S>user/draw a red heart<E>/<S>assistant/<|image_gen_start|><g><g><g><g><g><|image_gen_end|><E>"
    assert decoded(processor, row.ids) == text


def test_system_text_and_several_turns(processor: VargptProcessor):
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    row = processor.encode(messages)
    text = "<S>system/be kind<E>/<S>user/a<E>/<S>assistant/b<E>/<S>user/c<E>/<S>assistant/d<E>"
    assert decoded(processor, row.ids) == text
    assert decoded(processor, row.ids[row.is_answer]) == "b<E>d<E>"


def test_default_system_prompt_is_the_processors():
    row = make(system_prompt="S").encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert decoded(make(), row.ids).startswith("<S>system/S<E>/<S>user/a")


def test_image_placeholders_are_expanded_in_place(processor: VargptProcessor):
    row = processor.encode([{"role": "user", "content": [{"type": "text", "text": "x"}, ImagePart(image=PICTURE)]}])
    assert decoded(processor, row.ids) == "<S>user/x<|vision_start|><i><i><i><i><|vision_end|><E>/<S>assistant/"
    assert row.images[0].grid == (1, 4, 4)


def test_training_starts_with_the_prompt(processor: VargptProcessor):
    for conversation in (drawing(), editing()):
        prompt = processor.prompt(Conversation(messages=conversation.messages[:1]))
        ids = prompt.inputs.input_ids_BT[0]
        assert processor.encode(conversation, TWO).ids[: len(ids)].tolist() == ids.tolist()


def test_an_open_answer_is_continued(processor: VargptProcessor):
    batch = processor.prompt(Conversation(messages=(user("a"), assistant("b"))))
    assert decoded(processor, batch.inputs.input_ids_BT[0]) == "<S>user/a<E>/<S>assistant/b"


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_text_survives_and_never_becomes_a_special_token(processor: VargptProcessor, text: str):
    ids = processor.chat.encoder(text + "<|im_end|>")
    assert not processor.special.all.intersection(ids)
    import unicodedata

    assert processor.tokenizer.decode(list(ids)) == unicodedata.normalize("NFC", text + "<|im_end|>")


def test_chat_template_agrees_with_encoding(processor: VargptProcessor):
    messages = [{"role": "user", "content": "draw a red heart"}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    ids = processor.tokenizer(text)["input_ids"]
    assert ids == processor.prompt(messages).inputs.input_ids_BT[0].tolist()


def test_placeholders_of_published_data_files():
    messages = [
        {"role": "user", "content": "Change <image> please"},
        {"role": "assistant", "content": "The output image is: <image_gen>"},
    ]
    conversation = Conversation.from_placeholders(messages, [Path("a.png"), Path("b.png")])
    assert [part.type for part in conversation.turns[0].content] == ["text", "image", "text"]
    assert conversation.drawings[0].image == Path("b.png")
    with pytest.raises(ValueError, match="1 of 3 images have no"):
        Conversation.from_placeholders(messages, [Path("a.png")] * 3)
    with pytest.raises(ValueError, match="no image is left for <image_gen>"):
        Conversation.from_placeholders(messages, [Path("a.png")])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one user message"),
        ("hello", "must be a list"),
        ([{"role": "assistant", "content": "a"}], "expected user at turn 0, got assistant"),
        ([{"role": "user", "content": "a"}] * 2, "expected assistant at turn 1"),
        ([{"role": "robot", "content": "a"}], "messages.0.role"),
        ([{"role": "user", "content": [{"type": "image_gen"}]}], "belongs in an assistant message"),
        ([{"role": "user", "content": [{"type": "video"}]}], "messages.0.content.0"),
    ],
)
def test_malformed_conversations_say_what_is_wrong(messages: object, reason: str):
    with pytest.raises(ValueError, match=reason) as caught:
        Conversation.parse(messages)
    assert "\n" not in str(caught.value)


# Collation ------------------------------------------------------------------------------------------------------------


def test_collated_arrays_are_literal():
    """The whole batch, with a tokenizer of bytes only: `a` is one token."""
    bytes_only = VargptProcessor.train([], 266, patch_size=4, min_pixels=64, max_pixels=64)
    ids = bytes_only.special
    a, b, newline = (bytes_only.chat.encoder(text)[0] for text in ("a", "b", "\n"))
    header = [*bytes_only.chat.encoder("assistant"), newline]
    start = [ids.im_start, *bytes_only.chat.encoder("user"), newline, a, ids.im_end, newline, ids.im_start, *header]
    rows = [
        bytes_only.encode([user("a"), assistant("b")]),
        bytes_only.encode([user("a"), assistant("b", DrawPart())], ONE),
    ]
    batch = bytes_only.collate(rows, multiple_of=1)
    pad, no = ids.endoftext, -100
    first = [*start, b, ids.im_end, pad, pad, pad]
    second = [*start, b, ids.image_gen_start, ids.image_gen_pad, ids.image_gen_end, ids.im_end]
    quiet = [no] * len(start)
    assert batch.inputs.input_ids_BT.tolist() == [first, second]
    assert batch.inputs.attention_mask_BT.tolist() == [[True] * (len(first) - 3) + [False] * 3, [True] * len(second)]
    assert batch.inputs.text_targets_BT is not None
    assert batch.inputs.text_targets_BT.tolist() == [
        [*quiet, b, ids.im_end, no, no, no],
        [*quiet, b, ids.image_gen_start, no, ids.image_gen_end, ids.im_end],
    ]
    assert batch.inputs.image_sample_I is not None and batch.inputs.image_sample_I.tolist() == [1]
    assert batch.inputs.image_start_I is not None and batch.inputs.image_start_I.tolist() == [len(start) + 1]
    assert batch.inputs.drop_start_I is not None and batch.inputs.drop_start_I.tolist() == [False]
    assert batch.inputs.schedule == ONE
    assert batch.inputs.position_ids_3BT[:, 1].tolist() == [list(range(len(second)))] * 3
    assert batch.target_images_I3HW is None


def test_length_is_rounded_up_and_left_padding_moves_the_images(processor: VargptProcessor):
    rows = [processor.encode([user("a" * 40), assistant("b")]), processor.encode(drawing(), TWO)]
    right, left = processor.collate(rows, multiple_of=16), processor.collate(rows, padding_side="left", multiple_of=16)
    length = right.inputs.input_ids_BT.shape[1]
    assert length % 16 == 0 and left.inputs.input_ids_BT.shape[1] == length
    for batch in (right, left):
        assert batch.inputs.image_start_I is not None
        start = int(batch.inputs.image_start_I[0])
        assert batch.inputs.input_ids_BT[1, start] == processor.special.image_gen_start
        assert batch.inputs.input_ids_BT[1, start + 6] == processor.special.image_gen_end
    assert left.inputs.attention_mask_BT[:, -1].all() and not right.inputs.attention_mask_BT[1, -1]


def test_official_text_targets_are_everything_but_slots_in_batches_that_draw():
    official = make(behaviour=Behaviour.official())
    row = official.encode(drawing(), TWO)
    talk = official.encode([user("a"), assistant("b")])
    batch = official.collate([row, talk])
    ids = batch.inputs.input_ids_BT
    expected = torch.where(ids == official.special.image_gen_pad, -100, ids)
    assert batch.inputs.text_targets_BT is not None and torch.equal(batch.inputs.text_targets_BT, expected)
    alone = official.collate([talk]).inputs.text_targets_BT
    assert alone is not None and int((alone != -100).sum()) == int(talk.is_answer.sum())


def test_official_slots_and_positions(processor: VargptProcessor):
    official = make(behaviour=Behaviour.official())
    row = official.encode(editing(), TWO)
    assert int((row.ids == official.special.image_gen_pad).sum()) == 128
    positions = official.collate([row]).inputs.position_ids_3BT
    assert positions[:, 0].tolist() == [list(range(positions.shape[2]))] * 3
    ours = processor.collate([processor.encode(editing(), TWO)]).inputs.position_ids_3BT
    assert not torch.equal(ours[0], ours[2])
    prompt = official.prompt([editing().messages[0]])
    assert not torch.equal(prompt.inputs.position_ids_3BT[0], prompt.inputs.position_ids_3BT[2])


def test_pixels_are_stacked_in_order(processor: VargptProcessor):
    black, white = torch.full((3, 32, 32), -1.0), torch.full((3, 32, 32), 1.0)
    several = Conversation(messages=(user("two"), assistant(DrawPart(image=black), DrawPart(image=white))))
    batch = processor.collate([processor.encode(several, TWO), processor.encode(drawing(PICTURE), TWO)])
    assert batch.target_images_I3HW is not None
    assert batch.target_images_I3HW[:2, 0, 0, 0].tolist() == [-1.0, 1.0]
    assert batch.target_images_I3HW[2, :, 5, 5].tolist() == pytest.approx(
        [200 / 127.5 - 1, 10 / 127.5 - 1, 10 / 127.5 - 1]
    )
    assert batch.inputs.image_sample_I is not None and batch.inputs.image_sample_I.tolist() == [0, 0, 1]


def test_patches_follow_the_order_of_rows(processor: VargptProcessor):
    wide = Image.new("RGB", (64, 16))
    rows = [processor.encode([user(image, "a"), assistant("b")]) for image in (PICTURE, wide)]
    inputs = processor.collate(rows).inputs
    assert inputs.pixel_values is not None and inputs.image_grid_thw is not None
    assert inputs.image_grid_thw.tolist() == [list(row.images[0].grid) for row in rows]
    assert torch.equal(inputs.pixel_values[:16], rows[0].images[0].patches)


def test_prompt_free_row_keeps_only_the_drawing(processor: VargptProcessor):
    row = processor.encode_prompt_free(editing(), TWO)
    text = "<S>user/<E>/<S>assistant/<|image_gen_start|><g><g><g><g><g><|image_gen_end|><E>"
    assert decoded(processor, row.ids) == text
    drops = processor.collate([row, processor.encode(drawing(), TWO)]).inputs.drop_start_I
    assert drops is not None and drops.tolist() == [True, False]
    negative = processor.encode_prompt_free(drawing(), TWO, training=False, negative_prompt="blue")
    assert decoded(processor, negative.ids).startswith("<S>user/blue<E>/")


def test_mistakes_in_batches_are_named(processor: VargptProcessor):
    with pytest.raises(ValueError, match="give the schedule"):
        processor.encode(drawing())
    with pytest.raises(ValueError, match="one batch draws at one size, got 16x16, 32x32"):
        processor.collate([processor.encode(drawing(), ONE), processor.encode(drawing(), TWO)])
    with pytest.raises(ValueError, match="1 of 2 drawings lack target pixels"):
        processor.collate([processor.encode(drawing(), TWO), processor.encode(drawing(PICTURE), TWO)])
    with pytest.raises(ValueError, match="empty batch"):
        processor.collate([])
    with pytest.raises(ValueError, match=r"must have shape \(3, 32, 32\)"):
        processor.encode(drawing(torch.zeros(3, 16, 16)), TWO)


# Saving and loading ---------------------------------------------------------------------------------------------------


def test_a_saved_processor_encodes_the_same(tmp_path: Path):
    behaviour = Behaviour(image_slot_multiple=4, training_positions="official")
    saved = make(behaviour=behaviour, system_prompt="be brief")
    saved.save_pretrained(tmp_path)
    loaded = VargptProcessor.from_pretrained(tmp_path)
    assert (loaded.behaviour, loaded.system_prompt, loaded.special) == (behaviour, "be brief", saved.special)
    before, after = saved.collate([saved.encode(editing(), TWO)]), loaded.collate([loaded.encode(editing(), TWO)])
    assert torch.equal(before.inputs.input_ids_BT, after.inputs.input_ids_BT)
    assert before.inputs.pixel_values is not None and after.inputs.pixel_values is not None
    assert torch.equal(before.inputs.pixel_values, after.inputs.pixel_values)


def test_published_files_load_with_added_tokens_and_published_behaviour(tmp_path: Path):
    tokenizer = train_text_tokenizer(TEXTS, 320)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = state["added_tokens"][:-3]  # Qwen2-VL has no drawing tokens
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")).save_pretrained(tmp_path)
    Qwen2VLImageProcessorPil(patch_size=4).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vargpt_qwen2_vl"}')
    loaded = VargptProcessor.from_pretrained(tmp_path)
    assert loaded.special.image_gen_start == loaded.special.video_pad + 1
    assert loaded.behaviour == Behaviour.official() and loaded.system_prompt == DEFAULT_SYSTEM_PROMPT
    assert loaded.image_processor.patch_size == 4


def test_folders_without_a_processor_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        VargptProcessor.from_pretrained(tmp_path)


def test_auto_processor_finds_it(tmp_path: Path):
    saved = make()
    saved.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vargpt"}')
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), VargptProcessor)


def test_a_processor_travels_to_another_process(processor: VargptProcessor):
    again = pickle.loads(pickle.dumps(processor))
    assert again.encode(drawing(), TWO).ids.tolist() == processor.encode(drawing(), TWO).ids.tolist()


def test_batches_satisfy_the_models_check(processor: VargptProcessor):
    ids = processor.special
    config = VargptConfig(
        backbone={
            "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 320},
            "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4},
            "image_token_id": ids.image_pad,
        },
        image_gen_start_token_id=ids.image_gen_start,
        image_gen_end_token_id=ids.image_gen_end,
        image_gen_pad_token_id=ids.image_gen_pad,
    )
    rows = [processor.encode(editing(), TWO), processor.encode([user(PICTURE), assistant("b")])]
    for batch in (processor.collate(rows), processor.collate(rows, padding_side="left")):
        bits = torch.zeros(1, 4, config.image_tokenizer.bits)
        dataclasses.replace(batch.inputs, next_inputs_IMd=bits).validate(config)
    processor.prompt([editing().messages[:1], [user("a")]]).inputs.validate(config)


def test_transformers_own_call_works(processor: VargptProcessor):
    out = processor(text=["<|vision_start|><|image_pad|><|vision_end|>"], images=[PICTURE])
    assert out["input_ids"][0].count(processor.special.image_pad) == 4


# Text tokenizer -------------------------------------------------------------------------------------------------------


def test_vocabulary_size_counts_the_special_tokens():
    tokenizer = train_text_tokenizer(TEXTS, 280)
    assert len(tokenizer) == 280
    assert SpecialIds.from_tokenizer(tokenizer).image_gen_pad == 279
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    with pytest.raises(ValueError, match="at least 266"):
        train_text_tokenizer(TEXTS, 200)


def test_tokenizers_without_special_tokens_are_refused():
    tokenizer = train_text_tokenizer(TEXTS, 280)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = []
    from tokenizers import Tokenizer

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    with pytest.raises(ValueError, match=r"lacks the special tokens .*im_start"):
        SpecialIds.from_tokenizer(bare)
    assert len(SPECIAL_TOKENS) == 10
