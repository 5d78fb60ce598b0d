"""What lmms-eval asks, answered by a pipeline: requests in its form to conversations, words and losses.

Invariant: nothing here needs lmms-eval; an answer depends on its own request alone, not on the batch, and answers come
in the order of the requests.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vargpt.inference.pipeline import VargptPipeline
from vargpt.inference.streams import TextStream
from vargpt.model.events import Finished, TextDelta
from vargpt.processing.collate import collate
from vargpt.processing.conversation import Conversation, ImagePart, TextPart, assistant, user
from vargpt.processing.images import open_image

IMAGE_MARK = "<image>"
DEFAULT_MAX_NEW_TOKENS = 128
_KNOWN = {"max_new_tokens", "max_gen_toks", "temperature", "top_p", "top_k", "num_beams", "do_sample", "until"}


@dataclass(frozen=True)
class AnswerSettings:
    """How to answer: limits, sampling of words (temperature 0 is greedy), and strings that end an answer."""

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    until: tuple[str, ...] = ()

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> AnswerSettings:
        """Read a task's `generation_kwargs`; those that concern other models are left alone.

        Raises:
            ValueError: for beam search, or an `until` that is no text.
        """
        values = {name: kwargs[name] for name in _KNOWN if kwargs.get(name) is not None}
        if int(values.get("num_beams", 1)) != 1:
            raise ValueError(f"num_beams must be 1, got {values['num_beams']}: vargpt has no beam search")
        until = values.get("until", ())
        until = (until,) if isinstance(until, str) else until
        if not isinstance(until, list | tuple) or not all(isinstance(text, str) for text in until):
            raise ValueError(f"until must be a string or a list of strings, got {until!r}")
        temperature = float(values.get("temperature", 1.0 if values.get("do_sample") else 0.0))
        if values.get("do_sample") is False:
            temperature = 0.0
        return cls(
            max_new_tokens=int(values.get("max_new_tokens", values.get("max_gen_toks", DEFAULT_MAX_NEW_TOKENS))),
            temperature=temperature,
            top_p=float(values.get("top_p", 1.0)),
            top_k=int(values.get("top_k", 0)),
            until=tuple(text for text in until if text),
        )


@dataclass(frozen=True)
class Question:
    """One conversation to answer; `seed` matters where words are sampled."""

    conversation: Conversation
    settings: AnswerSettings
    seed: int = 0


@dataclass(frozen=True)
class Continuation:
    """How likely an answer is: the sum of its tokens' log-probabilities, and whether greedy choice says it."""

    log_probability: float
    tokens: int
    greedy: bool

    @property
    def loss(self) -> float:
        """Mean negative log-probability of a token."""
        return -self.log_probability / self.tokens


def chat_conversation(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """A conversation of lmms-eval's chat messages: parts are {"type": "text", "text"} and {"type": "image", "url"}.

    Raises:
        ValueError: for video or sound.
    """
    turns = []
    for message in messages:
        content = message["content"]
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content
        turns.append({"role": message["role"], "content": tuple(_part(item) for item in items)})
    return Conversation.parse(turns)


def simple_conversation(context: str, visuals: Sequence[Any]) -> Conversation:
    """A conversation of lmms-eval's older form: a text and its pictures.

    Pictures stand where the text has as many `<image>`; otherwise in front, and the marks go.
    """
    pictures = [_picture(visual) for visual in visuals]
    pieces = context.split(IMAGE_MARK)
    parts: list[ImagePart | TextPart] = []
    if pictures and len(pieces) == len(pictures) + 1:
        for number, piece in enumerate(pieces):
            parts += [TextPart(text=piece)] if piece else []
            parts += [pictures[number]] if number < len(pictures) else []
    else:
        parts = [*pictures, TextPart(text="".join(pieces))]
    return Conversation(messages=(user(*parts),))


def question_seeds(keys: Sequence[str]) -> list[int]:
    """A seed for each question by its name; a name that comes again (repeats of a task) gets another one."""
    count: Counter[str] = Counter()
    seeds = []
    for key in keys:
        digest = hashlib.sha256(f"{key}:{count[key]}".encode()).digest()
        seeds.append(int.from_bytes(digest[:8], "big") >> 1)
        count[key] += 1
    return seeds


def answers(pipeline: VargptPipeline, questions: Sequence[Question], batch_size: int) -> list[str]:
    """Answer in words, in the order of the questions; those of equal settings share batches."""
    together: dict[AnswerSettings, list[int]] = {}
    for index, question in enumerate(questions):
        together.setdefault(question.settings, []).append(index)
    found = [""] * len(questions)
    for indices in together.values():
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            for index, text in zip(batch, _batch(pipeline, [questions[index] for index in batch]), strict=True):
                found[index] = text
    return found


def continuation(pipeline: VargptPipeline, conversation: Conversation, words: str) -> Continuation:
    """Score words as the answer to a conversation that ends with a user turn; the token that ends a turn is left out.

    Raises:
        ValueError: for words without tokens.
    """
    processor = pipeline.processor
    prefix = len(processor.encode(conversation, training=False).ids)
    whole = Conversation(messages=(*conversation.messages, assistant(words)))
    row = processor.encode(whole, training=False)
    if len(row.ids) <= prefix:
        raise ValueError(f"the continuation {words!r} has no tokens; give some words")
    inputs = collate(
        [row],
        processor.special,
        padding_side="left",
        multiple_of=1,
        merge_size=processor.merge_size,
        sequential=False,
        all_text_targets=False,
    ).inputs.to(pipeline.device)
    with torch.no_grad():
        logits_BTV = pipeline.model(inputs).text_logits_BTV
    assert logits_BTV is not None
    targets_t = inputs.input_ids_BT[0, prefix:]
    logits_tV = logits_BTV[0, prefix - 1 : -1].float()
    log_probabilities_t = torch.log_softmax(logits_tV, -1).gather(-1, targets_t[:, None])[:, 0]
    greedy = bool((logits_tV.argmax(-1) == targets_t).all())
    return Continuation(float(log_probabilities_t.sum()), len(targets_t), greedy)


def _batch(pipeline: VargptPipeline, questions: Sequence[Question]) -> list[str]:
    """Answers of one batch; it ends early where every answer has met one of its `until`."""
    wanted = questions[0].settings
    settings = replace(
        pipeline.sampling,
        max_new_tokens=wanted.max_new_tokens,
        max_images=0,
        force_image=False,
        guidance_scale=1.0,
        text_temperature=wanted.temperature,
        text_top_p=wanted.top_p,
        text_top_k=wanted.top_k,
        seeds=[question.seed for question in questions],
    )
    streams = [TextStream(pipeline.processor.tokenizer) for _ in questions]
    found, ended = [""] * len(questions), [False] * len(questions)
    inputs = pipeline.inputs([question.conversation for question in questions])
    for event in pipeline.model.generate(inputs, settings):
        if not isinstance(event, TextDelta | Finished):
            continue
        number = event.sequence
        stream = streams[number]
        piece = stream.add(event.token_id) if isinstance(event, TextDelta) else stream.close()
        if not ended[number]:
            found[number], ended[number] = _cut(found[number] + piece, wanted.until)
        if all(ended):
            break
    return found


def _cut(text: str, until: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of the ends in it, and whether there was one."""
    places = [place for end in until if (place := text.find(end)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _part(item: Mapping[str, Any]) -> ImagePart | TextPart:
    if item["type"] == "text":
        return TextPart(text=item["text"])
    if item["type"] == "image":
        return _picture(item.get("url", item.get("image")))
    raise ValueError(f"vargpt reads text and pictures, got {item['type']}: choose tasks with pictures")


def _picture(visual: Any) -> ImagePart:
    """A picture as lmms-eval hands it over: a PIL image, or the path of one."""
    try:
        return ImagePart(image=open_image(visual))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"vargpt reads pictures (PIL images, files), got {type(visual).__name__}") from error
